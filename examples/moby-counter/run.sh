#!/usr/bin/env bash
# run.sh [COMMAND]: the counter of the container courses: a page, a store on a volume, a network
# on which one finds the other by its name. COMMAND is escale (the default) or docker; $PORT the
# port on this host. `run.sh down` takes everything back.
set -euo pipefail
cd "$(dirname "$0")/../.."
d=${1:-escale}
if [ "$d" = down ]; then
	d=${2:-escale}
	"$d" rm -f counter redis
	"$d" network rm moby-counter
	"$d" volume rm redis_data
	exit 0
fi

# The programs, then an image of each.
work=build/examples/moby-counter
examples/build.sh moby-counter
for part in store web; do
	"$d" build -q -t "moby-counter-$part" "$work/$part"
done

"$d" network create moby-counter
"$d" volume create redis_data
"$d" run -d --name redis --network moby-counter -v redis_data:/data moby-counter-store
"$d" run -d --name counter --network moby-counter -p "${PORT:-8080}:80" moby-counter-web
echo "open http://localhost:${PORT:-8080}/ and click; $0 down takes it all back"
