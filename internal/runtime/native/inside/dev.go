package inside

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// devices makes the nodes of the container and the links that programs expect in /dev.
func (h *half) devices() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for i := range h.Devices {
		if err := h.device(&h.Devices[i]); err != nil {
			return fmt.Errorf("error creating device nodes: %s: %w", h.Devices[i].Path, err)
		}
	}
	dev, err := h.target("/dev", true, 0)
	if err != nil {
		return err
	}
	defer closeFD(dev)
	var st unix.Stat_t
	if err := unix.Fstatat(dev, "ptmx", &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if err := unix.Unlinkat(dev, "ptmx", 0); err != nil {
			return fmt.Errorf("error setting up ptmx: %w", err)
		}
	}
	links := [][2]string{{"ptmx", "pts/ptmx"}, {"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}}
	if fd, err := h.open("/proc/kcore", unix.O_PATH, 0); err == nil {
		closeFD(fd)
		links = append(links, [2]string{"core", "/proc/kcore"})
	}
	for _, l := range links {
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("error setting up /dev symlinks: %w", pathError("symlink", "/dev/"+l[0], err))
		}
	}
	return nil
}

// device makes a node, or shows the host's where the kernel lets nobody make one.
func (h *half) device(d *plan.Device) error {
	name := path.Clean("/" + d.Path)
	parent, err := h.target(path.Dir(name), true, 0)
	if err != nil {
		return err
	}
	defer closeFD(parent)
	base := path.Base(name)
	if d.Tree != plan.NoFD {
		defer closeFD(d.Tree)
		file, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return pathError("create", name, err)
		}
		closeFD(file)
		at, err := reopen(parent, base, 0)
		if err != nil {
			return err
		}
		defer closeFD(at)
		return attach(&plan.Mount{}, d.Tree, at)
	}
	rdev := unix.Mkdev(d.Major, d.Minor)
	err = unix.Mknodat(parent, base, d.Mode, int(rdev))
	if err != nil && err != unix.EEXIST {
		return pathError("mknod", name, err)
	}
	fd, oerr := reopen(parent, base, 0)
	if oerr != nil {
		return oerr
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", name, err)
	}
	// One that is there already must be the one that was asked for.
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || d.Mode&unix.S_IFMT != unix.S_IFIFO && st.Rdev != rdev {
		return pathError("mknod", name, fmt.Errorf("another file is there"))
	}
	if st.Uid != d.UID || st.Gid != d.GID {
		if err := unix.Fchownat(fd, "", int(d.UID), int(d.GID), unix.AT_EMPTY_PATH); err != nil {
			return pathError("chown", name, err)
		}
	}
	return nil
}

// ownNull has the standard streams that are the host's null device be the container's: by
// its name, which programs may ask for, and by a mount of the container's. A container whose
// own cannot be opened keeps the host's.
func ownNull(h *half) error {
	for fd := range 3 {
		if !isNull(fd) {
			continue
		}
		own, err := h.open("/dev/null", unix.O_RDWR, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return nil
		}
		if isNull(own) {
			err = unix.Dup3(own, fd, 0)
		}
		closeFD(own)
		if err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}

func isNull(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}
