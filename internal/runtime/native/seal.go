package native

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sealed says whether our own program lies on a mount that nobody can write through.
func sealed() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/proc/self/exe", &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: "/proc/self/exe", Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// seal has us go on from such a mount: it executes the program anew, with the same
// arguments, unless it runs from there already. It is for whoever has a child born in
// another's pid namespace: until that child has executed something, it is seen there
// as our program, and who holds on to that could write to it once we are done
// (CVE-2019-5736). It comes first, before anything is made. It costs a millisecond.
func seal() error {
	if done, err := sealed(); err != nil || done {
		return err
	}
	fd, err := program(0)
	if err != nil {
		return err
	}
	return fmt.Errorf("own program: %w", syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), os.Args, os.Environ()))
}

// streams are the standard streams that the half inside gets: ours, but for the null
// device, which it gets through a mount that is read-only. The device can be written to
// there, and its owner and mode, which are the host's, cannot be changed through
// /proc/PID/fd. The caller closes opened, if there is one.
func streams() (fds []uintptr, opened *os.File, err error) {
	fds = []uintptr{0, 1, 2}
	for i := range fds {
		if !isNull(i) {
			continue
		}
		if opened == nil {
			if opened, err = openNull(); err != nil {
				return nil, nil, err
			}
		}
		fds[i] = opened.Fd()
	}
	return fds, opened, nil
}

func isNull(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

func openNull() (*os.File, error) {
	tree, err := openTree("/dev/null", false)
	if err != nil {
		return nil, err
	}
	defer unix.Close(tree)
	if err := setTree(tree, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}, false); err != nil {
		return nil, err
	}
	if !isNull(tree) {
		return nil, &os.PathError{Op: "open", Path: "/dev/null", Err: unix.ENODEV}
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", tree), os.O_RDWR, 0)
}
