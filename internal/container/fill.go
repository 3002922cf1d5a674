package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	cfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// Names in a volume while it is filled from an image. As long as the first is there the
// copy is not whole and nothing of it is in its place; under the second it is whole, and
// what is in it moves to its place, entry by entry.
const (
	fillPart  = ".escale-fill"
	fillWhole = ".escale-fill.whole"
)

// filling keeps containers that start at once from filling one volume together.
type filling struct{ volumes sync.Map } // by name: *sync.Mutex

func (f *filling) lock(volume string) (unlock func()) {
	v, _ := f.volumes.LoadOrStore(volume, new(sync.Mutex))
	mu := v.(*sync.Mutex)
	mu.Lock()
	return mu.Unlock
}

// fill gives an empty volume, dir, what an image has at src; with first only if the
// volume is being used for the first time by its container. What an engine that was
// killed had begun is done first: a copy that is whole is finished, any other begun anew,
// by whoever comes next. An src that is no directory, or that tells fs.ErrNotExist, leaves the
// volume empty.
func fill(dir string, src func() (string, error), first bool) error {
	if err := settleFill(dir, fillWhole); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(dir, fillPart))
	begun := err == nil
	if begun {
		err = os.RemoveAll(filepath.Join(dir, fillPart))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !first && !begun {
		return nil
	}
	held, err := os.ReadDir(dir)
	if err != nil || len(held) > 0 {
		return err
	}
	from, err := src()
	var info fs.FileInfo
	if err == nil {
		info, err = os.Stat(from)
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	part := filepath.Join(dir, fillPart)
	if err := os.Mkdir(part, 0o700); err != nil {
		return err
	}
	err = cfs.CopyDir(part, from)
	if err == nil {
		err = likeIt(dir, part)
	}
	if err == nil {
		err = syncTree(part)
	}
	if err == nil {
		err = os.Rename(part, filepath.Join(dir, fillWhole))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	return settleFill(dir, fillWhole)
}

// syncedEach is up to how many files and directories are synced one by one. Each is a wait
// for the disk; to sync the whole file system is one, but for all that others have
// written, too.
const syncedEach = 32

// syncTree returns when a directory and all that is in it outlives a power cut: names and
// owners, too, which come after the copy of a file was synced. Before the rename that calls a
// copy whole nothing else needs to: what is moved afterwards is found again under one
// name or the other.
func syncTree(dir string) error {
	paths := []string{filepath.Dir(dir)}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case len(paths) > syncedEach:
			return fs.SkipAll
		case d.IsDir() || d.Type().IsRegular():
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	do := unix.Fsync
	if len(paths) > syncedEach {
		paths, do = paths[:1], unix.Syncfs
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		err = do(fd)
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) { // some file systems sync no directories
			return &fs.PathError{Op: "sync", Path: path, Err: err}
		}
	}
	return nil
}

// settleFill moves what is in a whole copy to its place. What is there by now stays.
func settleFill(dir, whole string) error {
	whole = filepath.Join(dir, whole)
	list, err := os.ReadDir(whole)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range list {
		from, to := filepath.Join(whole, d.Name()), filepath.Join(dir, d.Name())
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return os.RemoveAll(whole)
}

// likeIt gives a directory owner, mode, times and attributes of another.
func likeIt(dir, other string) error {
	var st unix.Stat_t
	if err := unix.Lstat(other, &st); err != nil {
		return err
	}
	if err := os.Lchown(dir, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dir, st.Mode&0o7777); err != nil {
		return err
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(other, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(other, name, value)
		if err == nil && name != "" {
			err = unix.Lsetxattr(dir, name, value[:n], 0)
		}
		if err != nil && name != "" && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return err
		}
	}
	return nil
}
