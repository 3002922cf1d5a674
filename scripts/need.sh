#!/usr/bin/env bash
# need.sh [--optional WHAT-FOR] PACKAGE...: sees to it that Debian packages are there. As root
# they are installed by apt-get; otherwise the command that installs them is named and the
# exit code is 1 (with --optional: 0, after saying what is left out).
set -euo pipefail
optional=
if [ "${1-}" = --optional ]; then optional=$2; shift 2; fi

present() { # whether what the package brings is there, wherever it comes from
	case $1 in
	libseccomp-dev) pkg-config --exists libseccomp 2>/dev/null ;;
	busybox-static) [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 ;;
	tini) [ -x /usr/bin/tini-static ] ;;
	git | gcc | curl | debootstrap | pkg-config) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
	*) dpkg -s "$1" >/dev/null 2>&1 ;;
	esac
}

missing=()
for p in "$@"; do present "$p" || missing+=("$p"); done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "need: installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt() { apt-get -q -y --no-install-recommends install "${missing[@]}" </dev/null >&2; }
	if apt || { apt-get -q update </dev/null >&2 && apt; }; then exit 0; fi
fi
hint="missing: ${missing[*]} (Debian: sudo apt-get install ${missing[*]})"
if [ -n "$optional" ]; then
	echo "need: $hint; left out: $optional" >&2
	exit 0
fi
echo "need: $hint" >&2
exit 1
