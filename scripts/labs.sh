#!/usr/bin/env bash
# labs.sh DIR: replays the exercises of container courses (DIR/labs.sh, DIR/lab-rootfs.sh) with docker's own
# client: all of them against one engine of the checkout, and those about clusters against a manager of five nodes, too.
# The exercises make a cluster of one node with `swarm init` and look for tasks with `docker ps`. So on five
# nodes the client's `swarm init` also joins the other four, and these are drained: what the
# exercises ask, three managers decide and five nodes carry, and the tasks run where they look.
set -uo pipefail
cd "$(dirname "$0")/.."
labs=$(realpath "${1:?the folder of labs.sh}")
work=$(mktemp -d) rootfs=$PWD/build/lab escale=$PWD/bin/escale wrong=0 name=labs$((RANDOM % 1000))
trap 'rm -rf "$work"; "$escale" cluster dev --name "$name" down >/dev/null 2>&1; ENGINE_INSTANCE=labs scripts/engine.sh stop "$work.e" >/dev/null 2>&1' EXIT
bash "$labs/lab-rootfs.sh" "$rootfs"

try() { # try NAME COMMAND...: what went wrong, and how many did not
	local what=$1; shift
	printf '%-34s ' "$what"
	"$@" >"$work/out" 2>&1 || wrong=1
	grep -E '^FAIL' "$work/out"; tail -1 "$work/out"
}

ENGINE_INSTANCE=labs scripts/engine.sh start "$work.e" --bip 10.94.0.1/24 --registry 127.0.0.1:5055 || exit
sock=unix://$work.e/escale.sock
for group in base limits net volumes swarm; do try "$group" bash "$labs/labs.sh" "$sock" "$rootfs" $group; done
for kit in 0 1; do
	if [ $kit = 1 ] && ! docker buildx version >/dev/null 2>&1; then echo "images, build, registry by BuildKit: skipped, docker's buildx is not installed"; continue; fi
	docker -H "$sock" image prune -af >/dev/null
	REGISTRY=127.0.0.1:5055 DOCKER_BUILDKIT=$kit try "images, build, registry ($([ $kit = 1 ] && echo BuildKit || echo classic))" bash "$labs/labs.sh" "$sock" "$rootfs" images build registry
done
COMPOSE="$escale compose" try "compose (escale compose)" bash "$labs/labs.sh" "$sock" "$rootfs" compose
if command -v docker-compose >/dev/null; then COMPOSE=docker-compose try "compose (docker-compose)" bash "$labs/labs.sh" "$sock" "$rootfs" compose; fi
ENGINE_INSTANCE=labs scripts/engine.sh stop "$work.e"

# The client on five nodes.
export LABS_DOCKER LABS_NODES=/run/escale-dev/$name LABS_FIRST
LABS_DOCKER=$(command -v docker)
cat >"$work/docker" <<'CLIENT'
#!/usr/bin/env bash
if [ "$1 $2" != "swarm init" ]; then exec "$LABS_DOCKER" "$@"; fi
set -e
"$LABS_DOCKER" swarm init --advertise-addr "$LABS_FIRST"
for n in 2 3 4 5; do
	role=worker; if [ $n -le 3 ]; then role=manager; fi
	"$LABS_DOCKER" -H "unix://$LABS_NODES/n$n/escale.sock" swarm join --token "$("$LABS_DOCKER" swarm join-token -q $role)" "$LABS_FIRST:2377"
done
"$LABS_DOCKER" node ls --format '{{.ID}} {{.Self}}' | awk '$2 == "false" {print $1}' | xargs -n1 "$LABS_DOCKER" node update --availability drain
[ "$("$LABS_DOCKER" node ls -q | wc -l)" = 5 ] # or the exercise has failed
CLIENT
chmod +x "$work/docker"
"$escale" cluster dev --name "$name" up 5 >/dev/null || exit
LABS_FIRST=$("$escale" cluster dev --name "$name" ls --format json | grep '"n1"' | grep -oE '[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+' | head -1)
for n in 5 4 3 2 1; do docker -H "unix://$LABS_NODES/n$n/escale.sock" swarm leave --force >/dev/null || exit; done
# What is published is asked for at 127.0.0.1, which is the first node's there.
PATH=$work:$PATH try "swarm, at a manager of five nodes" ip netns exec "$name-n1" bash "$labs/labs.sh" "unix://$LABS_NODES/n1/escale.sock" "$rootfs" swarm
exit $wrong
