package fork

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// held forks a child that waits for release.
func held(r *raw) (pid int, hold *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, os.NewSyscallError("socketpair", err)
	}
	hold = os.NewFile(uintptr(pair[0]), "hold")
	// The child's end must survive the moving of files. It is no higher than that: from 64
	// descriptors on the table grows, for which a process with threads waits some 10 ms
	// (expand_fdtable() of the kernel's fs/file.c).
	far, err := unix.FcntlInt(uintptr(pair[1]), unix.F_DUPFD_CLOEXEC, int(r.spare))
	unix.Close(pair[1])
	if err != nil {
		hold.Close()
		return 0, nil, os.NewSyscallError("fcntl", err)
	}
	if r.spare != 0 {
		r.spare = uintptr(far) + 1
	}
	syscall.ForkLock.Lock()
	pid, errno := fork(r, uintptr(far))
	syscall.ForkLock.Unlock()
	unix.Close(far) // or the end of the child's would not be heard
	if errno != 0 {
		hold.Close()
		return 0, nil, fmt.Errorf("new namespaces: %w", os.NewSyscallError("clone", errno))
	}
	if r.twice {
		return joined(r, pid, hold)
	}
	return pid, hold, nil
}

// joined waits for the one that went into namespaces: it has forked the one that is
// meant, as a child of ours, and tells its number.
func joined(r *raw, first int, hold *os.File) (int, *os.File, error) {
	if r.of != 0 && ended(r.of, hold) {
		_ = unix.Kill(first, unix.SIGKILL) // it may have come into a cgroup that stands still, and for ever now
	}
	a, err := hear(hold)
	wait(first)
	if err == nil {
		err = a.err()
	}
	if err != nil {
		hold.Close()
		return 0, nil, err
	}
	return int(int32(a.pid)), hold, nil
}

// ended waits for an answer, or for the end of the container whose pidfd this is; it tells
// whether that came first.
func ended(pidfd uintptr, hold *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(hold.Fd()), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return err == nil && fds[0].Revents == 0
		}
	}
}

// hear takes an answer; io.EOF when there was none.
func hear(hold *os.File) (a answer, err error) {
	_, err = io.ReadFull(hold, unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a)))
	if err != nil {
		err = fmt.Errorf("going into namespaces: %w", err)
	}
	return a, err
}

// release lets the child go on; the error is why it could not become its program.
func release(pid int, hold *os.File) error {
	if _, err := hold.Write([]byte{1}); err != nil {
		end(pid)
		return err
	}
	a, err := hear(hold) // its end closes when it is the program
	if err != nil {
		return nil
	}
	wait(pid)
	return a.err()
}
