//go:build !386 && !arm

package inside

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setgroups is the system call for this thread; Go's asks all threads.
func setgroups(n int, list *uint32) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(list)), 0)
	return errno
}
