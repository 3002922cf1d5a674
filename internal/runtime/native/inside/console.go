package inside

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// console makes the terminal of the process in the container's own devpts, sends
// its controlling side out, and makes the other side the process' streams.
func (h *half) console() error {
	if !h.Process.Terminal {
		return nil
	}
	master, err := h.openMaster()
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer closeFD(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("console: unlock: %w", err)
	}
	// Asked of the descriptor: no path leads astray.
	slave, err := peer(master)
	if err != nil {
		return fmt.Errorf("console: its other side: %w", err)
	}
	defer closeFD(slave)
	if size := h.Process.ConsoleSize; size != nil {
		ws := unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)}
		if err := unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, &ws); err != nil {
			return fmt.Errorf("console: size: %w", err)
		}
	}
	if !h.Exec {
		if err := h.bindConsole(slave); err != nil {
			return fmt.Errorf("console: %w", err)
		}
	}
	if err := plan.SendFile(h.socket, plan.KindTerminal, master); err != nil {
		return fmt.Errorf("console: sending: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return fmt.Errorf("console: dup: %w", err)
		}
	}
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("console: controlling terminal: %w", err)
	}
	return nil
}

func peer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// openMaster opens the multiplexer of the container's terminals, once it is known
// to be one (Documentation/filesystems/devpts.rst).
func (h *half) openMaster() (int, error) {
	var errs []error
	for _, name := range []string{"/dev/pts/ptmx", "/dev/ptmx"} {
		at, err := h.open(name, unix.O_PATH, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var st unix.Stat_t
		var fs unix.Statfs_t
		err = errors.Join(unix.Fstat(at, &st), unix.Fstatfs(at, &fs))
		closeFD(at)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
			errs = append(errs, pathError("open", name, errors.New("is no terminal multiplexer")))
			continue
		}
		fd, err := h.open(name, unix.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var again unix.Stat_t
		if unix.Fstat(fd, &again) == nil && again.Mode&unix.S_IFMT == unix.S_IFCHR && again.Rdev == st.Rdev {
			return fd, nil
		}
		closeFD(fd)
		errs = append(errs, pathError("open", name, errors.New("changed meanwhile")))
	}
	return -1, errors.Join(errs...)
}

// placeConsole makes the place where another half will show the terminal, which may be
// read-only by then.
func (h *half) placeConsole() error {
	if !h.Process.Terminal {
		return nil
	}
	at, err := h.target("/dev/console", false, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	closeFD(at)
	return nil
}

// bindConsole shows the terminal at /dev/console as well.
func (h *half) bindConsole(slave int) error {
	at, err := h.target("/dev/console", false, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer closeFD(at)
	tree, err := unix.OpenTree(slave, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer closeFD(tree)
	return attach(&plan.Mount{}, tree, at)
}
