// Package blockgroup tells ext4 where to lay directories.
package blockgroup

import (
	"os"

	"golang.org/x/sys/unix"
)

// topDir is FS_TOPDIR_FL of linux/fs.h.
const topDir = 0x00020000

// Spread tells ext4 that the directories in dir have nothing to do with each other
// (chattr +T), so that it lays those that are made from now on each in a block group of
// its own. Else whoever makes files soon after others were removed spends most of the
// time looking for inodes that were not freed just now. Other file systems do not know
// it, and nothing happens.
func Spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&topDir != 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topDir))
}
