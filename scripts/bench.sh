#!/usr/bin/env bash
# bench.sh [PEER]: figures of this engine beside PEER, a Docker endpoint. Without one only the
# benchmarks of the hot paths run. BENCHFLAGS go to ./bench (go run ./bench -h).
set -euo pipefail
cd "$(dirname "$0")/.."
go test -run '^$' -bench . -benchtime 0.5s ./internal/... | grep -E '^(pkg:|Benchmark)' || true
if [ -z "${1-}" ]; then
	echo "bench: no other engine given: make bench PEER=unix:///var/run/docker.sock measures both in turn"
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "bench: needs root to start an engine: sudo make bench PEER=$1" >&2
	exit 1
fi
dir=$PWD/build/bench
export ENGINE_INSTANCE=escbench
trap 'scripts/engine.sh stop "$dir"' EXIT
scripts/engine.sh start "$dir" --bip "${BENCH_BIP:-10.213.0.1/16}"
mkdir -p build/figures
# shellcheck disable=SC2086 # BENCHFLAGS is several words
go run ./bench -a "$1" -b "unix://$dir/escale.sock" -json build/figures/bench.json ${BENCHFLAGS-}
