package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/containerd/v2/core/mount"
)

// InitLayer is what lies below the layers of every container: one directory of
// the store, made once. A container keeps that with which it was made.
type InitLayer struct {
	// Version names what Make makes; not empty. Another is made beside the former, on
	// which containers stay.
	Version string
	// Make fills an empty directory, which nothing changes afterwards.
	Make func(dir string) error
}

// initPrefix begins the names of init layers, in the directory of the snapshots.
const initPrefix = "init-"

func initDir(snapRoot, version string) string { return filepath.Join(snapRoot, initPrefix+version) }

// makeInit makes the init layer unless it is there. It is on the disk, whole, before
// it has its name.
func makeInit(snapRoot string, l *InitLayer) error {
	dir := initDir(snapRoot, l.Version)
	switch _, err := os.Lstat(dir); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	tmp := filepath.Join(snapRoot, "new-"+initPrefix+l.Version) // of a killed engine, perhaps
	err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o755))
	if err == nil {
		err = os.Chmod(tmp, 0o755) // whatever the umask
	}
	if err == nil {
		err = l.Make(tmp)
	}
	if err == nil {
		err = filepath.WalkDir(tmp, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err // the files are empty
			}
			return atomicfile.SyncDir(path)
		})
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return atomicfile.SyncDir(snapRoot)
}

// onInit puts the init layer below an overlay. What has no layers to put it below
// is a bind mount, and stays one.
func onInit(mounts []mount.Mount, dir string) []mount.Mount {
	for i, m := range mounts {
		if m.Type != "overlay" {
			continue
		}
		mounts[i].Options = slices.Clone(m.Options)
		for j, o := range m.Options {
			if strings.HasPrefix(o, "lowerdir=") {
				mounts[i].Options[j] = o + ":" + dir
			}
		}
	}
	return mounts
}
