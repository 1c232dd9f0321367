#!/bin/sh
# Brings what the tests need beyond Go: the programs of Debian's packages, and a current runc, which Debian does not
# have, built from its Go module into .cache/bin. Does nothing, fast, when all is there.
set -eu
cd "$(dirname "$0")/.."

runc_version=v1.5.2
bin=$PWD/.cache/bin

missing=
need() { # need FILE-OR-PROGRAM PACKAGE
	case $1 in
	/*) [ -e "$1" ] || missing="$missing $2" ;;
	*) command -v "$1" >/dev/null 2>&1 || missing="$missing $2" ;;
	esac
}
need crun crun
need cc gcc
need pkg-config pkg-config
need /usr/include/seccomp.h libseccomp-dev
need mmdebstrap mmdebstrap
need mkfs.erofs erofs-utils
need mkfs.ext4 e2fsprogs
need bwrap bubblewrap
need newuidmap uidmap

if [ -n "$missing" ]; then
	sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	command -v apt-get >/dev/null 2>&1 || { echo "install-test-tools: no apt-get here; install:$missing" >&2; exit 1; }
	$sudo apt-get update -qq
	# shellcheck disable=SC2086 # the list is meant to be split
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing
fi

if ! "$bin/runc" --version 2>/dev/null | grep -q "^runc version ${runc_version#v}$"; then
	mkdir -p "$bin"
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	# `go install` cannot set the program's version, which the driver reads; so build it in a module of its own.
	(
		cd "$work"
		go mod init runcbuild >/dev/null 2>&1
		go get "github.com/opencontainers/runc@$runc_version" >log 2>&1 || { cat log >&2; exit 1; }
		CGO_ENABLED=1 go build -trimpath -tags seccomp -ldflags "-s -w -X main.version=${runc_version#v}" \
			-o "$work/runc" github.com/opencontainers/runc
	)
	mv "$work/runc" "$bin/runc.new.$$"
	mv "$bin/runc.new.$$" "$bin/runc"
fi
