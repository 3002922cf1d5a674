package builder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// tempName is the directory of mountPool that BuildKit has for temporary files,
// sockets and mounts. The name is short for the sake of the paths of sockets.
const tempName = "t"

// makeTemp makes that directory and lets this process have its temporary files
// there, for BuildKit knows no other way to be told. What an engine that was killed
// leaves in it is swept by the next one, which could not tell it from the files of
// others in /tmp. It is a file system of its own because what lies in mountPool
// itself cannot be bound, and steps have sockets bound in.
func makeTemp(pool string) (undo func() error, err error) {
	dir := filepath.Join(pool, tempName)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return nil, errors.Join(&os.PathError{Op: "mount", Path: dir, Err: err}, os.Remove(dir))
	}
	before, was := os.LookupEnv("TMPDIR")
	// containerd has read TMPDIR when the program started.
	if err := errors.Join(os.Setenv("TMPDIR", dir), mount.SetTempMountLocation(dir)); err != nil {
		return nil, errors.Join(err, removeMounted(dir))
	}
	return func() error {
		if was {
			err = os.Setenv("TMPDIR", before)
		} else {
			err = os.Unsetenv("TMPDIR")
		}
		return errors.Join(err, mount.SetTempMountLocation(os.TempDir()), removeMounted(dir))
	}, nil
}

// tidyTemp removes empty directories: those in which steps had sockets of agents,
// of which BuildKit removes the sockets only, and those of mounts that the kernel
// still called busy just after they had ended. No build may be under way.
func tidyTemp(pool string) error {
	var errs []error
	for _, names := range []string{".buildkit-ssh-sock*", "containerd-mount*"} {
		list, err := filepath.Glob(filepath.Join(pool, tempName, names))
		errs = append(errs, err)
		for _, dir := range list {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}

// removeMounted removes a directory with all that is in it, mounted or not. What
// something still works in, as a command that a killed engine had started, goes
// when that ends.
func removeMounted(dir string) error {
	list, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		errs = append(errs, mount.UnmountAll(list[i], unix.MNT_DETACH))
	}
	if err := errors.Join(errs...); err != nil {
		return err // what is mounted must not be removed
	}
	return os.RemoveAll(dir)
}
