#!/usr/bin/env bash
# run.sh [EXERCISE...]: the exercises of the container courses about clusters, one after the other, with docker
# against the manager that DOCKER_HOST names; it needs curl, and a way to the nodes' addresses. Prints a line a
# check with its seconds, and "N passed, M failed" last. Exercises: whoami scale logs secrets update rollback global drain promote voting.
# The images are built on the manager; IMAGES=there when they are there. PORT is the first of four ports.
set -u
cd "$(dirname "$0")/../.."
all="whoami scale logs secrets update rollback global drain promote voting"
exercises=${*:-$all}
port=${PORT:-8080}
passed=0 failed=0

# check WHAT COMMAND...: once it succeeds within $patience seconds, WHAT is so.
patience=60
check() {
	local what=$1 begin=$SECONDS out
	shift
	while ! out=$("$@" 2>&1); do
		if ((SECONDS - begin >= patience)); then
			failed=$((failed + 1))
			echo "FAIL  $what: $(echo "$out" | tail -3 | tr '\n' ' ')"
			return 1
		fi
		sleep 0.2
	done
	passed=$((passed + 1))
	echo "ok    $what ($((SECONDS - begin)) s)"
}
# run WHAT COMMAND...: the same, tried once.
run() { patience=0 check "$@"; }
addresses() { docker node inspect -f '{{.Status.Addr}}' $(docker node ls -q); }
ask() { curl -sS -f -m 3 "http://$1:$port/${2:-}"; }
is() { [ "$1" = "$2" ] || { echo "got '$1', want '$2'"; return 1; }; }
# answer N: N containers answer at the address of each node, the same ones.
answer() {
	local n=$1 at who seen=
	for at in $(addresses); do
		who=$(for _ in $(seq $((3 * n))); do ask "$at" || echo "nothing"; done | sort -u)
		is "$(echo "$who" | wc -l)" "$n" || return 1
		is "$who" "${seen:=$who}" || return 1
		! echo "$who" | grep -q nothing || return 1
	done
}
# says PATH TEXT: every answer at each node is that.
says() {
	local at
	for at in $(addresses); do
		is "$(for _ in $(seq 10); do ask "$at" "$1"; done | sort -u)" "$2" || return 1
	done
}
# asked asks all the time, until the file is gone, and notes in it what failed.
asked() {
	local at=$(addresses | head -1)
	while [ -e "$1" ]; do
		ask "$at" >/dev/null 2>>"$1" || true
		sleep 0.02
	done
}
# unheard WHAT COMMAND...: runs the command while somebody asks, who must not notice.
unheard() {
	local what=$1 note got
	shift
	note=$(mktemp)
	asked "$note" &
	local asker=$!
	run "$what" "$@"
	sleep 1
	got=$(cat "$note")
	rm -f "$note"
	wait "$asker"
	run "$what: no request is lost" is "$got" ""
}
has() { [[ " $exercises " == *" $1 "* ]]; }
service() { docker service create -q --detach=false --no-resolve-image "$@"; }
running() { docker service ps -q --filter desired-state=running "$1" | wc -l; }

images() {
	[ "${IMAGES:-}" = there ] && return
	local work=${EXAMPLES_DIR:-build/examples}
	examples/build.sh course >/dev/null && docker build -q -t course-whoami "$work/course/whoami" || return 1
	if has voting; then
		examples/build.sh voting-app >/dev/null || return 1
		for part in vote result worker store; do docker build -q -t "voting-app-$part" "$work/voting-app/$part" || return 1; done
	fi
}
run "the images are built on one node" images || exit 1

# The service that most exercises are about.
run "service create, five replicas" service --name whoami --replicas 5 --publish "$port:80" --env VERSION=1 \
	--update-order start-first --update-monitor 500ms --rollback-order start-first --rollback-monitor 500ms --rollback-parallelism 5 course-whoami
has whoami && check "all five answer at the address of each node" answer 5

if has scale; then
	run "service scale 2" docker service scale whoami=2
	check "two answer" answer 2
	run "service scale 5" docker service scale whoami=5
	check "five answer" answer 5
fi

if has logs; then
	lines() { is "$(docker service logs whoami 2>/dev/null | grep -o '^whoami\.[0-9]' | sort -u | wc -l)" 5; }
	check "service logs has lines of all five" lines
fi

if has secrets; then
	run "secret create" bash -c 'printf hush | docker secret create course_key - >/dev/null'
	run "service update --secret-add" docker service update -q --secret-add course_key --update-parallelism 0 whoami
	check "each has the secret" says secret hush
	run "a secret in use cannot be removed" bash -c '! docker secret rm course_key'
	run "service update --secret-rm" docker service update -q --secret-rm course_key --update-parallelism 0 whoami
	run "secret rm" docker secret rm course_key
fi

if has update; then
	begin=$SECONDS
	unheard "rolling update, two at once, a second between" docker service update -q --update-parallelism 2 --update-delay 1s --env-add VERSION=2 whoami
	run "it took its time" [ $((SECONDS - begin)) -ge 2 ]
	check "all are of version 2" says version 2
	run "its state" is "$(docker service inspect -f '{{.UpdateStatus.State}}' whoami)" completed
fi

if has rollback; then
	has update || docker service update -q --update-parallelism 0 --env-add VERSION=2 whoami >/dev/null
	unheard "service rollback" docker service rollback -q whoami
	check "all are of version 1" says version 1
fi

if has global; then
	run "a global service" service --name everywhere --mode global course-whoami
	check "one on each node" bash -c '[ "$(docker service ps --filter desired-state=running --format "{{.Node}}" everywhere | sort -u | wc -l)" = "$(docker node ls -q | wc -l)" ]'
	run "service rm" docker service rm everywhere
fi

if has drain; then
	node=$(docker node ls -q --filter role=worker | head -1)
	gone() { is "$(docker node ps --filter desired-state=running -q "$node" | wc -l)" 0 && is "$(running whoami)" 5; }
	empty() {
		docker node update --availability drain "$node" || return 1
		for _ in $(seq 300); do
			gone >/dev/null && return
			sleep 0.2
		done
		gone
	}
	unheard "node update --availability drain, until its tasks are elsewhere" empty
	check "five answer, at the drained node, too" answer 5
	run "node update --availability active" docker node update --availability active "$node"
	run "service update --force" docker service update -q --force --update-parallelism 0 whoami
	check "the node has tasks again" bash -c "[ \$(docker node ps --filter desired-state=running -q $node | wc -l) -ge 1 ]"
fi

if has promote; then
	node=$(docker node ls -q --filter role=worker | head -1)
	reaches() { is "$(docker node inspect -f '{{if .ManagerStatus}}{{.ManagerStatus.Reachability}}{{end}}' "$node")" "$1"; }
	run "node promote" docker node promote "$node"
	check "it is a manager" reaches reachable
	run "node demote" docker node demote "$node"
	check "it is none any more" reaches ""
	check "five answer still" answer 5
fi

if has voting; then
	export VOTE_PORT=$((port + 1)) RESULT_PORT=$((port + 2))
	run "stack deploy" docker stack deploy --detach=true --resolve-image never -c examples/voting-app/stack.yaml course
	up() { ! docker stack services --format '{{.Replicas}}' course | grep -v -x -e '1/1' -e '2/2'; }
	check "all of the stack runs" up
	first=$(addresses | head -1) last=$(addresses | tail -1)
	vote() { curl -sS -f -m 3 -o /dev/null -d vote=a "http://$first:$VOTE_PORT/"; }
	check "a vote at one node" vote
	result() { curl -sS -f -m 3 "http://$last:$RESULT_PORT/votes" | grep -q '"a":[1-9]'; }
	check "is in the result at another" result
	run "stack ps" docker stack ps course
	run "stack rm" docker stack rm course
	check "nothing of it is left" bash -c '[ -z "$(docker stack ls --format "{{.Name}}")" ]'
fi

run "service rm whoami" docker service rm whoami
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
