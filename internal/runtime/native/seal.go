package native

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// sealed says whether our own program lies on a mount that nobody can write through, now
// or later: one of program's, which has no place, whatever has become of the file since (the
// kernel's d_path() says so of one that was removed). One that is read-only where it lies, as
// /usr often is, may be made writable, and who has held on to the file until then has it.
func sealed() (bool, error) {
	if at, err := os.Readlink("/proc/self/exe"); err != nil || strings.TrimSuffix(at, " (deleted)") != "/" {
		return false, err
	}
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

// program opens what we are, as a mount that nobody can write through: whatever a
// container does with /proc/PID/exe of the half inside, our file stays as it is. The
// descriptor is the lowest free one from above on: a table of more than 64 has to
// grow, for which a process with threads waits some 10 ms (expand_fdtable() of the
// kernel's fs/file.c).
func program(above int) (int, error) {
	if done, err := sealed(); err != nil {
		return -1, err
	} else if done {
		// Of a mount that lies nowhere there is no copy to be had before Linux 6.15.
		return openAbove("/proc/self/exe", above)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("own program: %w", os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return -1, fmt.Errorf("own program: %w", os.NewSyscallError("mount_setattr", err))
	}
	fd, err := unix.FcntlInt(uintptr(tree), unix.F_DUPFD_CLOEXEC, above)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// openAbove opens what is to be executed.
func openAbove(path string, above int) (int, error) {
	low, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(low)
	fd, err := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, above)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// hidden makes a copy of what we are that can be executed but not read. Who runs a
// program that it may not read cannot be looked into from the first moment on, not by
// root of its user namespace either (would_dump() of the kernel's fs/exec.c). It lies in
// a file system of its own, which lies nowhere: memory files may be barred from being
// executed (vm.memfd_noexec, Documentation/userspace-api/mfd_noexec.rst).
func hidden(above int) (int, error) {
	room, err := unnamed()
	if err != nil {
		return -1, fmt.Errorf("own program: %w", err)
	}
	defer unix.Close(room)
	const name = "escale-runtime"
	if err := copySelf(room, name); err != nil {
		return -1, fmt.Errorf("own program: %w", err)
	}
	if err := setTree(room, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false); err != nil {
		return -1, fmt.Errorf("own program: %w", err)
	}
	return openAbove(fmt.Sprintf("/proc/self/fd/%d/%s", room, name), above)
}

// unnamed mounts an empty tmpfs nowhere.
func unnamed() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	room, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	return room, os.NewSyscallError("fsmount", err)
}

// copySelf copies our program into a directory, to be executed by all and read by nobody.
func copySelf(dir int, name string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	copied := os.NewFile(uintptr(fd), name)
	if _, err = copied.ReadFrom(self); err == nil {
		err = copied.Chmod(0o711)
	}
	return errors.Join(err, copied.Close())
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
	tree, err := nullTree()
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	return reopenNull(tree)
}

// nullTree is the null device in a mount of its own.
func nullTree() (*os.File, error) {
	tree, err := openTree("/dev/null", false)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(tree), "/dev/null")
	err = setTree(tree, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}, false)
	if err == nil && !isNull(tree) {
		err = &os.PathError{Op: "open", Path: "/dev/null", Err: unix.ENODEV}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// reopenNull opens it for one container: what is set of an open file is seen by all that
// share it.
func reopenNull(tree *os.File) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	return os.NewFile(uintptr(fd), "/dev/null"), nil
}
