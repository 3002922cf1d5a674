// Package nobind makes directories below which mounts stay alone: no recursive
// bind of a directory above takes them along, and they pass to no peer.
//
// A container that mounts the host's root would otherwise hold copies of what is
// mounted for all the others: namespaces would live as long as it does, and while
// a copy is in this mount namespace the kernel refuses to remove the directory or
// file of the original with EBUSY. The source is "unbindable mount" in
// mount_namespaces(7).
package nobind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Prepare makes dir, mounts it on itself and makes that mount unbindable. What
// lies in dir, but is not mounted there, cannot be bound either: EINVAL. Idempotent.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("%q: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %q: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("make %q unbindable: %w", dir, err)
	}
	return nil
}

// Release undoes Prepare and removes dir; it fails when something is left in it.
// Idempotent.
func Release(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Unmount(resolved, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %q: %w", resolved, err)
	}
	if err := os.Remove(resolved); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
