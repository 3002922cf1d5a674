// Package du adds up what files take.
package du

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// Size is the bytes of the regular files at and below dir, each inode once. Directories
// and links, which take no data of their own, count nothing, and what is mounted below dir
// is left out. Files that go meanwhile do not count. It walks the whole tree:
// it blocks for the disk, and ends early with ctx.
func Size(ctx context.Context, dir string) (total int64, err error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var dev uint64
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, os.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if path == dir {
			dev = st.Dev
		}
		if d.IsDir() {
			if st.Dev != dev {
				return filepath.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		if st.Dev == dev && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total, err
}
