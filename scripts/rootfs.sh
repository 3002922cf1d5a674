#!/usr/bin/env bash
# rootfs.sh FILE: makes FILE, a tar of a small Debian tree, by debootstrap, unless it is there.
# Where that cannot be (no network, no debootstrap) it is busybox and a few links instead, and
# the script says so. Needs root. $DEMO_ROOTFS names a tar to take as it is.
set -euo pipefail
out=$1
[ -s "$out" ] && exit 0
mkdir -p "$(dirname "$out")"
if [ -n "${DEMO_ROOTFS-}" ]; then
	ln -sf "$(realpath "$DEMO_ROOTFS")" "$out"
	exit 0
fi
here=$(dirname "$0")
tree=$(mktemp -d "$(dirname "$out")/rootfs.XXXXXX")
trap 'rm -rf "$tree" "$out.part"' EXIT

pack() { tar --numeric-owner -C "$tree" -cf "$out.part" . && mv "$out.part" "$out"; }

debian() {
	"$here/need.sh" debootstrap || return 1
	local suite mirror
	suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME-}") || true
	mirror=$(sed -nE 's,^(URIs:|deb( \[[^]]*\])?) +([a-z]+://[^ ]+/debian)/?( .*)?$,\3,p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1) || true
	echo "rootfs: debootstrap of Debian ${suite:=stable}; a minute or two, once" >&2
	PATH=$PATH:/usr/sbin:/sbin debootstrap --variant=minbase --include=procps,iproute2 \
		"$suite" "$tree" "${mirror:-http://deb.debian.org/debian}" >"$out.log" 2>&1 || { tail -n 3 "$out.log" >&2; return 1; }
	rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
}

if debian; then
	pack
	exit 0
fi
echo "rootfs: no Debian tree can be made here (see above): a tree of busybox takes its place" >&2
rm -rf "$tree" && mkdir -p "$tree"/{bin,etc,proc,sys,dev,tmp,root,var/www}
"$here/need.sh" busybox-static
cp /bin/busybox "$tree/bin/"
for a in $(/bin/busybox --list); do [ "$a" = busybox ] || ln -s busybox "$tree/bin/$a"; done
ln -sf busybox "$tree/bin/bash"
chmod 1777 "$tree/tmp"
echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
echo 'root:x:0:' >"$tree/etc/group"
echo 'PRETTY_NAME="busybox (no Debian tree could be made)"' >"$tree/etc/os-release"
pack
