#!/bin/sh
# Says where it runs: what the sandbox shows of itself, and what it does not show of the host.
echo "Hello${1:+, $1}, from $(uname -srm), as $(id -un) in $(pwd)"
echo "processes: $(ls -d /proc/[0-9]* | wc -l)"
echo "network:   $(ls /sys/class/net 2>/dev/null | tr '\n' ' ')"
echo "home:      $(ls -A "$HOME" | wc -l) files"
