#!/usr/bin/env bash
# What `make run` shows: an engine of its own with all of its state in a temporary directory,
# and an app on it that is kept as its compose file has it. It needs nothing of the internet, ends
# by itself and leaves nothing; with KEEP=1 engine and app stay until Ctrl-C. Exit code 1 when
# something did not do what it should.
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

top=$PWD
export ENGINE_INSTANCE=${ENGINE_INSTANCE:-escrun}
for old in /tmp/"$ENGINE_INSTANCE"-run.*/; do # of runs that were cut short
	[ -O "$old" ] || continue
	if [ -d "/proc/$(cat "$old/demo.pid" 2>/dev/null || echo 0)" ]; then
		echo "make run: one is under way in $old" >&2
		exit 1
	fi
	scripts/engine.sh stop "${old%/}"
done
dir=$(mktemp -d /tmp/"$ENGINE_INSTANCE"-run.XXXXXX)
echo $$ >"$dir/demo.pid"
port=${DEMO_PORT:-$((30000 + RANDOM % 2000))}
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done # taken
export ESCALE_HOST=unix://$dir/escale.sock PATH=$PWD/bin:$PATH
export PORT=$port REPLICAS=3 VERSION=1 EXAMPLES_DIR=$dir
unset DOCKER_HOST DOCKER_CONTEXT COMPOSE_FILE COMPOSE_PROJECT_NAME COMPOSE_PROFILES
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
	cd "$top"
	scripts/engine.sh stop "$dir" || exit 1
	echo "done: $steps steps, $wrong wrong"
	[ $wrong = 0 ] || exit 1
	exit 0
}

scripts/need.sh curl busybox-static
trap finish EXIT
trap 'exit' INT TERM HUP
trap '' PIPE
examples/build.sh shop >/dev/null
go build -o "$dir/load" ./examples/load
from=$(date +%s%N)
scripts/engine.sh start "$dir" --bip "${DEMO_BIP:-10.214.7.1/24}"
echo "engine up in $((($(date +%s%N) - from) / 1000000)) ms, all of its state in $dir"
cd "$dir/shop"

# note writes down who the second replica is; replaced waits until another is there.
note() { escale inspect -f '{{.ID}} {{.State.Pid}}' shop-web-2 >"$dir/victim"; }
victim() { cut -d' ' -f2 "$dir/victim"; }
replaced() {
	local was is _
	was=$(cut -c-12 "$dir/victim")
	for _ in $(seq 300); do
		is=$(escale ps -q -f name=shop-web-2 -f health=healthy)
		[ -z "$is" ] || [ "$is" = "$was" ] || break
		sleep 0.1
	done
	[ "$is" = "$was" ] || echo "$was is gone, $is is another"
	escale ps shop
}
# loaded COMMAND...: the command, with 200 new connections a second before, amid and after it.
loaded() {
	local pid
	"$dir/load" -rate 200 -for 1m "http://127.0.0.1:$port/who" &
	pid=$!
	sleep 1
	"$@" 2>&1 | tail -1
	sleep 1
	kill -INT $pid
	wait $pid
}
export -f note victim replaced loaded
export dir port top
shop=http://127.0.0.1:$port

show "Images from Dockerfiles, of two versions" 'shop-web +2' "escale compose build -q; VERSION=2 escale compose build -q; escale images"
show "The app as its compose file has it: a store, and once that is healthy a front in three replicas" 'web +Started 3/3' "escale up -d --wait 2>&1 | grep ed"
show "One port: each new connection goes to the next replica" 'version 1' "for i in 1 2 3 4 5 6; do curl -sf $shop/who; done"
show "What is for sale is a config, the seal on it a secret" 'sealed' "curl -sf $shop/; curl -sf -X POST $shop/buy/rope"
show "A replica is killed, and another takes its place" 'is another' "note; kill -9 \$(victim); replaced"
show "A new version: the plan" 'shop-web:1 → shop-web:2' "VERSION=2 escale up --dry-run"
show "then one replica after the other, under load: no request fails" ' 0 failed' "VERSION=2 loaded escale up -d"
show "Back again, under load, too" ' 0 failed' "loaded escale rollback shop"
show "What it has been" 'shop-web:2' "escale history shop"
show "A stop by hand is meant: it is left so until the next up" 'shop +running\(4\)' "escale stop shop-web-1; escale apps; escale up -d --wait 2>/dev/null; escale apps"
show "kill -9 of the engine: the app goes on without" 'version 1' "note; kill -9 \$(cat $dir/escaled.pid); escale ps 2>/dev/null || echo no engine; curl -sf $shop/who"
show "A replica dies meanwhile; a new engine replaces it" 'is another' "kill -9 \$(victim); \$top/scripts/engine.sh start $dir; replaced"
show "The store has kept what was sold" '^ *1$' "curl -sf $shop/sold"

basics() {
	install -D -m 755 /bin/busybox "$dir/tree/bin/busybox"
	for name in sh cat echo head tail wc hostname grep; do ln -sf busybox "$dir/tree/bin/$name"; done
	tar -C "$dir/tree" -c . | escale import - busybox
}
export -f basics
show "Without an app: an image from a tree" 'sha256:[0-9a-f]{64}' "basics"
show "Hello from a container" 'hello from' "escale run --rm busybox sh -c 'echo hello from process \$\$ of \$(hostname)'"
show "Exit codes come through, and pipes both ways" 'exit code 42' "seq 1000 | escale run --rm -i busybox wc -l; escale run --rm busybox sh -c 'exit 42'"
show "A memory limit that is one" 'true 137' "escale run --name hog -m 32m busybox sh -c 'head -c 200000000 /dev/zero | tail'; escale inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' hog; escale rm hog"

if [ -n "${KEEP:-}" ]; then
	cat <<T

$steps steps, $wrong wrong. Engine and app stay. In another terminal:

  export ESCALE_HOST=$ESCALE_HOST PATH=$PATH
  cd $dir/shop && export PORT=$port
  curl $shop/                            # the front, or open it
  escale ps shop; escale logs -f shop
  VERSION=2 escale up -d                 # escale history shop; escale rollback shop
  docker -H $ESCALE_HOST ps              # the stock client speaks to it as well

Ctrl-C here ends it and its containers.
T
	while :; do read -r -t 3600 _ || sleep 1; done
fi
show "Down with its volume, and nothing stays" '^ *0 containers, 0 volumes, 0 networks$' "escale down -v 2>/dev/null; echo \$(escale ps -aq | wc -l) containers, \$(escale volume ls -q | wc -l) volumes, \$(escale network ls -qf type=custom | wc -l) networks"
cat <<T

To look around in it: make run KEEP=1. An app of your own: examples/shop/README.md, docs/apps.md.
T
