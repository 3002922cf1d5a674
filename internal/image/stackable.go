package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"escale.dev/escale/internal/sys/loopdisk"
	"golang.org/x/sys/unix"
)

// diskFile, in the root of the store, holds the file system of the layers where
// that of the root cannot be used by overlayfs.
const diskFile = "layers.ext4"

// stackable makes dir a directory on which overlayfs can stack layers: where the
// store lies on an overlay itself, as in a container without a volume for it, it
// is a file system in a file. See docs/decisions/0011-layers-on-an-overlay.md.
func (s *Store) stackable(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return nil
	}
	file := filepath.Join(s.cfg.Root, diskFile)
	if err := loopdisk.Mount(ctx, file, dir); err != nil {
		hint := "keep the data root on ext4 or xfs (in a container: on a volume)"
		if errors.Is(err, loopdisk.ErrNoTool) {
			hint += " or install e2fsprogs"
		}
		return fmt.Errorf("overlayfs cannot stack layers on %s, which is an overlay itself, and a file system in a file is not to be had: %w; %s", dir, err, hint)
	}
	s.log.Info("the data root is on an overlay: layers are kept in a file system of their own, in a file; a volume for the data root is quicker", "file", file)
	return nil
}
