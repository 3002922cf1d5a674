#!/usr/bin/env bash
# vm.sh: makes, below build/vm, the virtual machine that test/vm boots: Debian's kernel, a disk
# with a small Debian tree, an initramfs that finds it, and a disk with the built programs and
# the compiled tests. Kernel and tree are fetched once; the rest is made anew. Needs root, for debootstrap.
# The packages of test/vm/testdata/suites and suites-systemd go along as compiled tests ($VMTESTS names others).
set -euo pipefail
cd "$(dirname "$0")/.."
dir=build/vm
export PATH=$PATH:/usr/sbin:/sbin CGO_ENABLED=0
scripts/need.sh qemu-system-x86 debootstrap e2fsprogs busybox-static
mkdir -p $dir

# The kernel: the package that linux-image-cloud-amd64 stands for, unpacked and not installed.
if [ ! -s $dir/vmlinuz ]; then
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -1)
	echo "vm: fetching ${package:?apt knows no linux-image-cloud-amd64: apt-get update}" >&2
	rm -rf $dir/kernel $dir/deb && mkdir -p $dir/deb
	(cd $dir/deb && apt-get -q -o APT::Sandbox::User=root download "$package" >&2)
	dpkg-deb -x $dir/deb/*.deb $dir/kernel
	cp $dir/kernel/boot/vmlinuz-* $dir/vmlinuz
	rm -rf $dir/deb $dir/root.img
fi
version=$(ls $dir/kernel/lib/modules)

# The root disk: a Debian with what engine and tests call, and the kernel's modules.
packages=kmod,busybox-static,nftables,iptables,iproute2,procps,apparmor,curl,xz-utils,bzip2,zstd,systemd,dbus
if [ ! -s $dir/root.img ] || [ "$(cat $dir/packages)" != "$packages" ]; then
	suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME-}") || true
	mirror=$(sed -nE 's,^(URIs:|deb( \[[^]]*\])?) +([a-z]+://[^ ]+/debian)/?( .*)?$,\3,p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1) || true
	echo "vm: debootstrap of Debian ${suite:=stable}; a minute or two, once" >&2
	rm -rf $dir/tree
	debootstrap --variant=minbase \
		--include="$packages" \
		"$suite" $dir/tree "${mirror:-http://deb.debian.org/debian}" >$dir/debootstrap.log 2>&1 || { tail -n 3 $dir/debootstrap.log >&2; exit 1; }
	rm -rf $dir/tree/var/cache/apt/archives/*.deb $dir/tree/var/lib/apt/lists/* $dir/tree/usr/share/{doc,locale,man}
	cp -a $dir/kernel/lib/modules $dir/tree/lib/
	chroot $dir/tree depmod -a "$version"
	mkdir -p $dir/tree/escale $dir/tree/data
	# What leads to the disks and the network, in the order in which it loads.
	for m in virtio_pci virtio_blk virtio_net ext4 crc32c_generic; do
		chroot $dir/tree modprobe --show-depends --ignore-install -S "$version" $m
	done | sed -n 's,^insmod /lib/modules/\([^ ]*\).*,\1,p' | awk '!seen[$0]++' >$dir/first-modules
	mkfs.ext4 -q -F -d $dir/tree $dir/root.part 4G 2>/dev/null
	rm -rf $dir/tree
	mv $dir/root.part $dir/root.img
	echo "$packages" >$dir/packages
fi

# The initramfs: the agent and those modules.
rm -rf $dir/initramfs && mkdir -p $dir/initramfs/{proc,sys,dev,new,modules.d}
go build -trimpath -ldflags '-s -w' -o $dir/initramfs/init ./test/vm/agent
n=0
while read -r module; do
	n=$((n + 1))
	cp $dir/kernel/lib/modules/"$module" "$dir/initramfs/modules.d/$n.ko"
	echo "/modules.d/$n.ko"
done <$dir/first-modules >$dir/initramfs/modules
(cd $dir/initramfs && find . | busybox cpio -o -H newc 2>/dev/null) >$dir/initramfs.img
rm -rf $dir/initramfs

# The disk of this checkout: programs, clients and tests, laid out as the checkout is.
work=$dir/work
rm -rf $work && mkdir -p $work/bin $work/test
cp go.mod $work/
cp bin/* $work/bin/
if docker=$(command -v docker); then cp -L "$docker" $work/bin/docker; fi
for package in ${VMTESTS-$(sed 's/#.*//; s/ .*//' test/vm/testdata/suites test/vm/testdata/suites-systemd | sort -u)}; do
	mkdir -p "$work/$package"
	go test -c -ldflags '-s -w' -o "$work/$package/$(basename "$package").test" "./$package"
	[ ! -d "$package/testdata" ] || cp -r "$package/testdata" "$work/$package/"
done
rm -f $dir/work.img
size=$(du -sm $work | cut -f1)
mkfs.ext4 -q -F -m 0 -O ^has_journal -d $work $dir/work.img $((size + size / 10 + 32))M 2>/dev/null
rm -rf $work
