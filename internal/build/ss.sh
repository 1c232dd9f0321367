#!/bin/bash
# Shows sockets that listen, from /proc/net, where there is no iproute2. It knows of its flags -H -t -u -l -n -a -4 -6, and
# of its filters one: sport = :PORT.
set -f
tcp= udp= head=1 port= args=
for arg in "$@"; do
	case $arg in
	--*) echo "ss: $arg is not known here" >&2; exit 1 ;;
	-*)
		for ((i = 1; i < ${#arg}; i++)); do
			case ${arg:i:1} in
			H) head= ;;
			t) tcp=1 ;;
			u) udp=1 ;;
			l | n | a | p | 4 | 6) ;;
			*) echo "ss: -${arg:i:1} is not known here" >&2; exit 1 ;;
			esac
		done
		;;
	*) args+=" $arg" ;;
	esac
done
if [[ $args =~ sport[[:space:]]*(=|==|eq)[[:space:]]*[^[:space:]:]*:([0-9]+) ]]; then
	port=$((10#${BASH_REMATCH[2]}))
elif [[ -n ${args// /} ]]; then
	echo "ss: the filter$args is not known here" >&2
	exit 1
fi
[[ -n $tcp$udp ]] || tcp=1 udp=1
[[ -z $head ]] || echo "Netid State  Recv-Q Send-Q Local Address:Port Peer Address:Port"

address() { # of hexadecimal digits, in the order of this machine's bytes
	local h=$1
	if ((${#h} == 8)); then
		echo "$((16#${h:6:2})).$((16#${h:4:2})).$((16#${h:2:2})).$((16#${h:0:2}))"
	elif [[ $h =~ ^0+$ ]]; then
		echo "[::]"
	else
		local out= i
		for i in 0 8 16 24; do
			out+=:${h:i+6:2}${h:i+4:2}:${h:i+2:2}${h:i:2}
		done
		echo "[${out:1}]"
	fi
}

show() { # name, file, hexadecimal state, its word, any address
	[[ -r $2 ]] || return 0
	local number at peer state rest
	while read -r number at peer state rest; do
		[[ $number == *: && $state == "$3" ]] || continue
		local own=$((16#${at##*:}))
		[[ -z $port || $own == "$port" ]] || continue
		echo "$1   $4 0      0      $(address "${at%:*}"):$own $5:*"
	done <"$2"
}
if [[ -n $tcp ]]; then
	show tcp /proc/net/tcp 0A LISTEN 0.0.0.0
	show tcp /proc/net/tcp6 0A LISTEN "[::]"
fi
if [[ -n $udp ]]; then
	show udp /proc/net/udp 07 UNCONN 0.0.0.0
	show udp /proc/net/udp6 07 UNCONN "[::]"
fi
