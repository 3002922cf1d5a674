// Package loopdisk keeps a file system in a file, for what the file system
// around it cannot do. Source: loop(4).
package loopdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrNoTool tells that the program which makes file systems is not there.
var ErrNoTool = errors.New("mkfs.ext4 is not installed (package e2fsprogs)")

// Mount shows on dir, which it makes, the ext4 file system that the file holds,
// and makes that first where there is none: as large as the disk that the file is
// on, of which it takes only what is written to it, and gives back what is deleted.
// Idempotent. The mount stays when the process ends; its loop device goes with it.
// Killed amid the making, the next call makes it again.
func Mount(ctx context.Context, file, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(resolved); err != nil || mounted {
		return err
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if err := create(ctx, file); err != nil {
			return fmt.Errorf("file system in %s: %w", file, err)
		}
	}
	m := mount.Mount{Type: "ext4", Source: file, Options: []string{"loop", "discard", "noatime"}}
	if err := m.Mount(resolved); err != nil {
		return fmt.Errorf("file system in %s: %w", file, err)
	}
	return os.Chmod(resolved, 0o700)
}

// create makes the file under another name and renames it when it is whole.
func create(ctx context.Context, file string) error {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		if mkfs, err = exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
			return ErrNoTool
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(file), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: filepath.Dir(file), Err: err}
	}
	half := file + ".new"
	f, err := os.OpenFile(half, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(half) // is not there any more when all went well
	err = f.Truncate(int64(st.Blocks) * st.Bsize)
	if err == nil {
		var out []byte
		// No blocks are kept for root, and no tables written before they are needed.
		out, err = exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", half).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("mkfs.ext4: %w: %.200s", err, out)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(half, file); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(file))
}
