package container

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// dockerenv is an empty file by which programs tell that they run in a container.
const dockerenv = ".dockerenv"

// mtab makes /etc/mtab, a link to the kernel's list of mounts, where the image
// has none: old programs look there; and /.dockerenv. Once, before the first start, so that what
// a container makes of them stays; within the root, wherever the image's /etc leads.
func (s *start) mtab(context.Context) error {
	if !s.rec.State.StartedAt.IsZero() {
		return nil
	}
	root, err := unix.Open(s.rootfs(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: s.rootfs(), Err: err}
	}
	defer unix.Close(root)
	mark, err := unix.Openat(root, dockerenv, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
	if err == nil {
		err = errors.Join(unix.Fchmod(mark, 0o755), unix.Close(mark)) // whatever the umask
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "create", Path: "/" + dockerenv, Err: err}
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	etc, err := unix.Openat2(root, "etc", &how)
	if errors.Is(err, unix.ENOENT) {
		if err = unix.Mkdirat(root, "etc", 0o755); err == nil {
			etc, err = unix.Openat2(root, "etc", &how)
		}
	}
	if err != nil {
		s.m.log.Debug("no /etc/mtab", "container", s.e.id.Short(), "error", err) // an image with another idea of /etc
		return nil
	}
	defer unix.Close(etc)
	if err := unix.Symlinkat("/proc/mounts", etc, "mtab"); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "symlink", Path: "/etc/mtab", Err: err}
	}
	return nil
}
