package seccomp

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Install puts the calling thread, and what it starts from now on, under the program.
// The caller has locked the thread, and has CAP_SYS_ADMIN in its user namespace or
// no_new_privs set; otherwise the error is EACCES. It makes one system call, and that
// before the program counts. There is no undo.
func (p *Program) Install() error {
	prog := unix.SockFprog{Len: uint16(p.Len()), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(p.Filter)))}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.Flags), uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("seccomp filter of %d instructions: %w", p.Len(), errno)
	}
	return nil
}
