#!/usr/bin/env bash
# Builds the OCI's validation of runtimes (opencontainers/runtime-tools) out of its Go
# module into build/, some 160 MB. ESCALE_VALIDATION names a directory that has it already.
# Prints where it is.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=v0.9.1-0.20251205004911-5e639034dcdc
if [ -n "${ESCALE_VALIDATION:-}" ]; then echo "$ESCALE_VALIDATION"; exit; fi
out=$PWD/build/validation-$VERSION
if [ ! -d "$out" ]; then
  dir=$(go mod download -json github.com/opencontainers/runtime-tools@$VERSION | sed -n 's/.*"Dir": "\(.*\)",/\1/p') || dir=
  if [ -z "$dir" ]; then
    echo "validation: the module github.com/opencontainers/runtime-tools@$VERSION cannot be had; nothing was validated" >&2
    exit 1
  fi
  rm -rf "$out.new"
  mkdir -p "$out.new"
  (
    cd "$dir"
    export CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false"
    go build -trimpath -ldflags '-s -w' -o "$out.new/" $(go list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' ./validation/...) ./cmd/runtimetest
    cp rootfs-*.tar.gz "$out.new/"
    chmod -R u+w "$out.new"
  ) >&2
  mv "$out.new" "$out"
fi
echo "$out"
