#!/usr/bin/env bash
# build.sh APP...: a project directory of each example below build/examples, ready for
# `escale up` or `docker compose up`: its compose file, and the static programs beside the
# Dockerfiles that copy them. It needs Go and nothing of the internet. Prints the directories.
set -euo pipefail
cd "$(dirname "$0")"
for app; do
	to=${EXAMPLES_DIR:-$PWD/../build/examples}/$app
	mkdir -p "$to"
	to=$(cd "$to" && pwd)
	find "$app" -maxdepth 1 -type f ! -name '*.sh' ! -name '*.md' -exec cp -t "$to" {} +
	for part in "$app"/*/ store/; do
		name=$(basename "$part")
		CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$to/$name/" "./$part"
		cp "$part/Dockerfile" "$to/$name/"
	done
	echo "$to"
done
