#!/usr/bin/env bash
# engine.sh start|stop|kill DIR [ESCALED-OPTION...]: an engine of the checkout, all of whose
# state is below DIR, beside whatever else runs on the machine. start returns when the
# socket DIR/escale.sock answers; stop ends the engine and its containers and removes
# DIR; kill is kill -9 of the engine alone. ENGINE_INSTANCE names it (default: escrun).
set -euo pipefail
bin=$(cd "$(dirname "$0")/.." && pwd)/bin
what=$1 dir=$2
shift 2
instance=${ENGINE_INSTANCE:-escrun}
sock=$dir/escale.sock pidfile=$dir/escaled.pid

# The pid of the engine, if the file names a living escaled.
pid() {
	local p
	p=$(cat "$pidfile" 2>/dev/null) || return 1
	[[ $(readlink "/proc/$p/exe" 2>/dev/null) == */escaled* ]] && echo "$p"
}

answers() { "$bin/escale" -H "unix://$sock" version >/dev/null 2>&1; }

gone() { # wait until process $1 has ended
	for _ in $(seq 300); do
		[ -d "/proc/$1" ] && [[ $(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) != Z ]] || return 0
		sleep 0.1
	done
	return 1
}

case $what in
start)
	mkdir -p "$dir"
	[ -e "$dir/options" ] && [ $# = 0 ] && mapfile -t options <"$dir/options" && set -- "${options[@]}"
	if [ $# -gt 0 ]; then printf '%s\n' "$@" >"$dir/options"; fi
	setsid "$bin/escaled" --instance "$instance" --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" \
		--pidfile "$pidfile" -H "unix://$sock" "$@" >>"$dir/engine.log" 2>&1 </dev/null &
	for _ in $(seq 200); do
		answers && exit 0
		[ -d "/proc/$!" ] || break
		sleep 0.05
	done
	echo "the engine did not start; the end of $dir/engine.log:" >&2
	tail -n 20 "$dir/engine.log" >&2
	exit 1
	;;
kill)
	p=$(pid) && kill -9 "$p" && gone "$p"
	;;
stop)
	[ -d "$dir" ] || exit 0
	pid >/dev/null || "$0" start "$dir" || true # a killed engine's containers have to go, too
	if answers; then
		ids=$("$bin/escale" -H "unix://$sock" ps -aq)
		[ -z "$ids" ] || "$bin/escale" -H "unix://$sock" rm -fv $ids >/dev/null
	fi
	if p=$(pid); then kill -TERM "$p" && gone "$p"; fi
	ip link delete "${instance}0" 2>/dev/null || true
	! grep -q " $dir/" /proc/self/mountinfo || { echo "still mounted below $dir:"; grep -o " $dir/[^ ]*" /proc/self/mountinfo; exit 1; } >&2
	rm -rf "$dir"
	;;
*)
	echo "usage: engine.sh start|stop|kill DIR [OPTION...]" >&2
	exit 2
	;;
esac
