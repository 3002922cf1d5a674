#!/usr/bin/env bash
# engine.sh start|stop|kill DIR [ESCALED-OPTION...]: an engine of the checkout, all of whose
# state is below DIR, beside whatever else runs on the machine. start returns when the
# socket DIR/escale.sock answers; stop ends the engine and its containers and removes
# DIR and what is theirs in the kernel; kill is kill -9 of the engine alone. ENGINE_INSTANCE names it (default: escrun).
set -euo pipefail
bin=$(cd "$(dirname "$0")/.." && pwd)/bin
what=$1 dir=$2
shift 2
instance=${ENGINE_INSTANCE:-escrun}
bridge=${instance}0
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

# An engine that stops leaves the kernel as its containers need it. This takes away what
# bears the instance's name when no container is left.
forget() {
	local g d handle family table chain
	# The mount namespace of handles, and the folders of runs and of what builds mount, are
	# mounts, and so are snapshots where the file system around them cannot hold them.
	for d in exec/{netns.mnt/ns,netns.mnt,containers,build/mounts,tasks} data/snapshots; do
		while grep -q " $dir/$d " /proc/self/mountinfo; do umount "$dir/$d"; done
	done
	ip link delete "$bridge" 2>/dev/null || true
	# The bridges of networks that were made bear the instance's name as their alias.
	ip -o link | awk -v mark="alias $instance:" 'index($0, mark) {split($2, name, /[:@]/); print name[1]}' |
		while read -r link; do ip link delete "$link" || true; done
	for g in /sys/fs/cgroup/{*/,}"escale-$instance"{,-monitors}; do
		[ ! -d "$g" ] || find "$g" -depth -type d -exec rmdir {} + 2>/dev/null || true
	done
	if ! command -v nft >/dev/null; then
		echo "left in the kernel, as nft is not here to remove them: tables inet and bridge escale-$instance" >&2
		return
	fi
	for family in ip inet bridge; do nft delete table $family "escale-$instance" 2>/dev/null || true; done
	# What was added to another firewall's chains carries the name as its comment.
	nft -a list ruleset 2>/dev/null | awk -v name="$instance" '
		$1 == "table" {family = $2; table = $3} $1 == "chain" {chain = $2}
		index($0, "comment \"escale-" name ":") {print family, table, chain, $NF}' |
		while read -r family table chain handle; do nft delete rule "$family" "$table" "$chain" handle "$handle" || true; done
}

case $what in
start)
	mkdir -p "$dir"
	[ -e "$dir/daemon.json" ] || echo '{}' >"$dir/daemon.json"
	[ -e "$dir/options" ] && [ $# = 0 ] && mapfile -t options <"$dir/options" && set -- "${options[@]}"
	if [ $# -gt 0 ]; then printf '%s\n' "$@" >"$dir/options"; fi
	setsid "$bin/escaled" --instance "$instance" --bridge-name "$bridge" --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" \
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
	forget
	! grep -q " $dir/" /proc/self/mountinfo || { echo "still mounted below $dir:"; grep -o " $dir/[^ ]*" /proc/self/mountinfo; exit 1; } >&2
	rm -rf "$dir"
	;;
*)
	echo "usage: engine.sh start|stop|kill DIR [OPTION...]" >&2
	exit 2
	;;
esac
