#!/usr/bin/env bash
# What `make run` shows: an engine of its own under build/run, an image from a real Debian tree,
# and containers at work. With a terminal the engine then stays until Ctrl-C; without one it is
# torn down. Exit code 1 when something did not do what it should.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
	bin/escale --version
	cat <<'T'
make run: built escale, escaled and escale-shim. Left out: starting the engine and its containers (and building runc).
Why: namespaces, mounts, cgroups and nftables rules are root's in the kernel, and you are not root.
Do:  sudo make run
T
	exit 0
fi

dir=$PWD/build/run
port=${DEMO_PORT:-$((30000 + RANDOM % 2000))}
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done # taken
export ENGINE_INSTANCE=escrun ESCALE_HOST=unix://$dir/escale.sock PATH=$PWD/bin:$PATH
unset DOCKER_HOST DOCKER_CONTEXT
here() { [ -t 0 ] && [ -t 1 ]; }
if here; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' off=$'\e[0m'; else bold= dim= red= off=; fi
steps=0 wrong=0

# show TITLE PATTERN COMMAND: runs the command, prints it, what it prints, and how long it took;
# the output, with "exit code N" added when that is not 0, has to match the extended regexp.
show() {
	local out code=0 from to
	steps=$((steps + 1))
	echo
	echo "$bold$steps. $1$off"
	echo "  \$ $3"
	from=$(date +%s%N)
	out=$(timeout 120 bash -c "$3" 2>&1 </dev/null) || code=$?
	to=$(date +%s%N)
	[ $code = 0 ] || out+="${out:+$'\n'}exit code $code"
	[ -z "$out" ] || sed 's/^/    /' <<<"$out"
	echo "    $dim($(((to - from) / 1000000)) ms)$off"
	if ! grep -qE -- "$2" <<<"$out"; then
		wrong=$((wrong + 1))
		echo "    ${red}not as it should be: expected /$2/$off"
	fi
}

finish() {
	trap - EXIT
	trap '' INT TERM HUP PIPE # what comes now has to be done, whoever still reads
	set +e
	echo
	echo "tearing down: containers, engine, $dir"
	scripts/engine.sh stop "$dir" || exit 1
	echo "done: $steps steps, $wrong wrong"
	[ $wrong = 0 ] || exit 1
	exit 0
}

scripts/need.sh curl busybox-static
scripts/rootfs.sh build/debian.tar
scripts/engine.sh stop "$dir" # of a run that was cut short
trap finish EXIT
trap 'exit' INT TERM HUP
trap '' PIPE
from=$(date +%s%N)
scripts/engine.sh start "$dir" --bip "${DEMO_BIP:-10.214.7.1/24}"
echo "engine up in $((($(date +%s%N) - from) / 1000000)) ms, all of its state in $dir"

show "An image from a tree" 'sha256:[0-9a-f]{64}' "escale import -c 'CMD [\"bash\"]' build/debian.tar debian"
show "It is there" 'debian +latest' "escale images"
show "Hello from a container" 'hello from' "escale run --rm debian sh -c '. /etc/os-release; echo hello from \$PRETTY_NAME, process \$\$ of \$(hostname)'"
show "Exit codes come through" 'exit code 42' "escale run --rm debian sh -c 'exit 42'"
show "A command that is not there is 127" 'exit code 127' "escale run --rm debian nosuchcommand"
show "Pipes, both ways" '^ *1000$' "seq 1000 | escale run --rm -i debian wc -l"
show "A service on a published port, its program a bind mount" '[0-9a-f]{64}' "escale run -d --name web -p $port:80 --init -v /bin/busybox:/bin/busybox:ro debian sh -c 'mkdir -p /srv && echo served from a container >/srv/index.html && exec /bin/busybox httpd -f -p 80 -h /srv'"
show "reached from the host" 'served from a container' "for i in 1 2 3 4 5; do curl -sf http://127.0.0.1:$port/ && break; sleep 0.2; done"
show "and what was set up for it" "$port->80/tcp" "escale ps"
show "One more process inside it" 'pid' "escale exec web sh -c 'echo pid \$\$ beside: \$(cat /proc/1/comm)'"
show "A memory limit that is one" 'true 137' "escale run --name hog -m 32m debian sh -c 'head -c 200000000 /dev/zero | tail' ; escale inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' hog"
show "A restart policy: twice more after a failure" '^ *2$' "escale run -d --name flaky --restart on-failure:2 debian false >/dev/null; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.5; c=\$(escale inspect -f '{{.RestartCount}}' flaky); [ \$c = 2 ] && break; done; echo \$c"
show "Logs, with their times" 'Z line 3' "escale run -d --name talk debian sh -c 'for i in 1 2 3; do echo line \$i; done' >/dev/null; escale wait talk; escale logs --timestamps --tail 2 talk"
show "A container that counts" '[0-9a-f]{64}' "escale run -d --name count debian sh -c 'i=0; while :; do i=\$((i+1)); echo \$i; sleep 0.05; done'"
show "kill -9 of the engine: the container goes on" 'alive' "p=\$(escale inspect -f '{{.State.Pid}}' count); scripts/engine.sh kill $dir; sleep 1; [ -d /proc/\$p ] && echo engine gone, container process \$p alive"
show "and the published port answers without an engine" 'served from a container' "escale ps 2>/dev/null || echo no engine; curl -sf http://127.0.0.1:$port/"
show "A new engine finds it" 'count' "scripts/engine.sh start $dir && escale ps"
show "and not one line is missing" 'no gap' "escale logs count | awk 'NR != \$1 {print \"gap at\", NR; exit 1} END {print NR \" lines, no gap\"}'"
show "What there was" 'flaky' "escale ps -a --format 'table {{.Names}}\t{{.Status}}\t{{.Command}}'"
show "Removed, nothing stays" '^ *0$' "escale rm -f hog flaky talk count web >/dev/null; escale ps -aq | wc -l"

here || exit 0
cat <<T

$steps steps, $wrong wrong. The engine stays, with the image debian. In another terminal:

  export ESCALE_HOST=$ESCALE_HOST
  $PWD/bin/escale run -it --rm debian
  docker -H $ESCALE_HOST ps          # the stock client speaks to it as well

Ctrl-C here ends it and its containers.
T
while :; do read -r -t 3600 _ || sleep 1; done
