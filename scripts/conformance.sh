#!/usr/bin/env bash
# Fetches the OCI's conformance suite of registries and builds it into build/.
# ESCALE_CONFORMANCE names one that is there already. Prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=v1.1.1
if [ -n "${ESCALE_CONFORMANCE:-}" ]; then echo "$ESCALE_CONFORMANCE"; exit; fi
out=$PWD/build/conformance-$VERSION
if [ ! -x "$out" ]; then
  src=$(mktemp -d)
  trap 'rm -rf "$src"' EXIT
  if ! git clone -q --depth 1 -b $VERSION https://github.com/opencontainers/distribution-spec "$src" >&2; then
    echo "conformance: the suite cannot be fetched; build it elsewhere (go test -c in conformance/ of distribution-spec $VERSION) and name it in ESCALE_CONFORMANCE" >&2
    exit 1
  fi
  mkdir -p build
  (cd "$src/conformance" && GOFLAGS=-mod=mod CGO_ENABLED=0 go test -c -o "$out" .) >&2
fi
echo "$out"
