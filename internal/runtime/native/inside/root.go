package inside

import (
	"fmt"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// openRoot cuts the mounts of the namespace off from the host's and puts the
// root file system over itself, as pivot_root(2) wants it.
func (h *half) openRoot() error {
	if h.OwnMounts {
		propagation := h.Root.Propagation
		if propagation == 0 {
			propagation = unix.MS_SLAVE | unix.MS_REC
		}
		if err := unix.Mount("", "/", "", propagation, ""); err != nil {
			return fmt.Errorf("propagation of the root: %w", err)
		}
	}
	at, err := unix.Open(h.Root.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("error preparing rootfs: %w", pathError("open", h.Root.Path, err))
	}
	defer closeFD(at)
	// A root is not moved out of a mount that is shared.
	if err := h.parentPrivate(at); err != nil {
		return err
	}
	if err := unix.MoveMount(h.Root.Tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("error preparing rootfs: %w", pathError("move_mount", h.Root.Path, err))
	}
	h.root = h.Root.Tree
	null, err := unix.Open("/dev/null", unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return pathError("open", "/dev/null", err)
	}
	if !isNull(null) {
		return pathError("open", "/dev/null", fmt.Errorf("is not the null device"))
	}
	h.null = null
	return nil
}

// parentPrivate makes the mount private on which the root lies.
func (h *half) parentPrivate(at int) error {
	if !h.OwnMounts || h.Root.Propagation&(unix.MS_SHARED|unix.MS_UNBINDABLE) == 0 {
		return nil // a slave that is not shared as well will do
	}
	// Only the root of a mount can be changed: go up to it.
	fd, err := unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for range 256 {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
		if err != unix.EINVAL {
			break
		}
		up, uerr := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		closeFD(fd)
		if uerr != nil {
			return pathError("open", "..", uerr)
		}
		fd = up
	}
	closeFD(fd)
	if err != nil {
		return fmt.Errorf("making the mount of %s private: %w", h.Root.Path, err)
	}
	return nil
}

// lateReadOnly makes read-only what had to be written to until now.
func (h *half) lateReadOnly() error {
	for _, m := range h.Mounts {
		if m.Again || !m.Late() {
			continue
		}
		fd, err := h.open(m.Dest, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		closeFD(fd)
		if err != nil {
			return pathError("mount_setattr", m.Dest, err)
		}
	}
	if !h.Root.ReadOnly {
		return nil
	}
	if err := unix.MountSetattr(h.root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("error setting rootfs as readonly: %w", err)
	}
	return nil
}

// enterRoot makes the container's root that of this process and lets go of the host's.
func (h *half) enterRoot() error {
	jail := h.pivot
	if !h.OwnMounts {
		jail = h.chroot
	}
	if err := jail(); err != nil {
		return err
	}
	closeFD(h.null)
	h.null = plan.NoFD
	return nil
}

// workplace makes the working directory, if it is missing. All mounts have their places.
func (h *half) workplace() error {
	cwd := h.Process.Cwd
	if cwd == "" || cwd == "/" {
		return nil
	}
	fd, err := h.target(cwd, true, 0)
	if err != nil {
		return err
	}
	closeFD(fd)
	return nil
}

// chroot is for a container that has the host's mounts.
func (h *half) chroot() error {
	if err := unix.Fchdir(h.root); err != nil {
		return pathError("fchdir", h.Root.Path, err)
	}
	if err := unix.Chroot("."); err != nil {
		return pathError("chroot", h.Root.Path, err)
	}
	return nil
}

func (h *half) pivot() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", "/", err)
	}
	defer closeFD(old)
	if err := unix.Fchdir(h.root); err != nil {
		return pathError("fchdir", h.Root.Path, err)
	}
	// Both names are the same place: the old root comes to lie over the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("error jailing process inside rootfs: %w", pathError("pivot_root", h.Root.Path, err))
	}
	if err := unix.Fchdir(old); err != nil {
		return pathError("fchdir", "/", err)
	}
	// What is unmounted here must not be unmounted on the host.
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("old root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return pathError("chdir", "/", err)
	}
	if h.Root.Propagation&(unix.MS_SHARED|unix.MS_UNBINDABLE) != 0 {
		if err := unix.Mount("", "/", "", h.Root.Propagation, ""); err != nil {
			return fmt.Errorf("unable to apply root propagation flags: %w", err)
		}
	}
	return nil
}
