package archive

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// Changes tells what the upper layer of an overlay changes of the layers below
// it, the topmost first: what was added, changed and deleted, and the
// directories that this changed. Sorted, parents before what is in them. Names
// that are placed count as there before: they are made for mounts, empty. The
// upper layer may be in use.
func Changes(ctx context.Context, upper string, lowers []string, placed func(name string) bool) ([]container.FilesystemChange, error) {
	c := &comparison{ctx: ctx, placed: placed}
	defer c.close()
	for _, dir := range append([]string{upper}, lowers...) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		c.open = append(c.open, fd)
	}
	if _, err := c.directory(c.open[0], "/", c.open[1:]); err != nil {
		return nil, err
	}
	slices.SortFunc(c.found, func(a, b container.FilesystemChange) int { return comparePaths(a.Path, b.Path) })
	return c.found, nil
}

// comparison walks an upper layer along the layers below.
type comparison struct {
	ctx    context.Context
	open   []int
	placed func(name string) bool
	found  []container.FilesystemChange
}

func (c *comparison) close() {
	for _, fd := range c.open {
		unix.Close(fd)
	}
}

func (c *comparison) tell(kind container.ChangeType, name string) {
	c.found = append(c.found, container.FilesystemChange{Kind: kind, Path: name})
}

// directory compares a directory of the upper layer with those it is merged
// with, the topmost first. placed: something was made in it for a mount.
func (c *comparison) directory(dir int, name string, below []int) (placed bool, err error) {
	if err := c.ctx.Err(); err != nil {
		return false, err
	}
	names, err := list(dir)
	if err != nil {
		return false, err
	}
	for _, base := range names {
		fd, err := handle(dir, base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return placed, err
		}
		hidden, err := c.entry(fd, base, path.Join(name, base), below)
		unix.Close(fd)
		if err != nil {
			return placed, err
		}
		placed = placed || hidden
	}
	return placed, nil
}

// entry compares one entry of the upper layer. placed: it was made for a mount.
func (c *comparison) entry(fd int, base, name string, below []int) (placed bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	old, was := lookup(below, base)
	switch {
	case isWhiteout(&st):
		if was {
			c.tell(container.ChangeDelete, name)
		}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return c.subdirectory(fd, base, name, below)
	case !was && (st.Size == 0 || st.Mode&unix.S_IFMT == unix.S_IFLNK) && c.placed(name): // a mount point, /etc/mtab or /.dockerenv
		return true, nil
	case !was:
		c.tell(container.ChangeAdd, name)
	case !same(&st, &old, true) || st.Size != old.Size:
		c.tell(container.ChangeModify, name)
	}
	return false, nil
}

// subdirectory compares a directory; one that was there before is told if it
// changed itself, or anything in it did.
func (c *comparison) subdirectory(fd int, base, name string, below []int) (placed bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	old, was := lookup(below, base)
	var merged []int
	if was && old.Mode&unix.S_IFMT == unix.S_IFDIR {
		merged = descend(below, base)
		defer closeAll(merged)
	}
	at, kind := len(c.found), container.ChangeModify
	if !was {
		kind = container.ChangeAdd
	}
	c.tell(kind, name)
	if isOpaque(fd) {
		gone, err := hidden(fd, merged)
		if err != nil {
			return false, err
		}
		for _, g := range gone {
			c.tell(container.ChangeDelete, path.Join(name, g))
		}
		// What is in it is compared with what was there before all the same:
		// a file of the same name has changed, it has not been added.
	}
	inside, err := c.directory(fd, name, merged)
	if err != nil || len(c.found) > at+1 {
		return false, err
	}
	if was && same(&st, &old, !inside) {
		c.found = c.found[:at] // it is here for something that changed nothing
		return false, nil
	}
	if !was && c.placed(name) {
		c.found = c.found[:at]
		return true, nil
	}
	return false, nil
}

// comparePaths sorts a directory before what is in it.
func comparePaths(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		default:
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

// same tells whether a copy in the upper layer is as the original was; with its
// time, or without.
func same(a, b *unix.Stat_t, timed bool) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Rdev == b.Rdev && (!timed || a.Mtim == b.Mtim)
}

// hidden lists what the layers below have in a directory that shows nothing of
// them any more, as far as the upper layer has nothing under the name.
func hidden(dir int, below []int) ([]string, error) {
	seen := map[string]bool{}
	for _, fd := range below {
		names, err := list(fd)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			seen[n] = true
		}
	}
	var gone []string
	for n := range seen {
		var st unix.Stat_t
		if _, was := lookup(below, n); was && unix.Fstatat(dir, n, &st, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT {
			gone = append(gone, n)
		}
	}
	slices.Sort(gone)
	return gone, nil
}

// lookup finds what merged directories show under a name.
func lookup(dirs []int, base string) (st unix.Stat_t, ok bool) {
	for _, fd := range dirs {
		if unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return st, !isWhiteout(&st)
		}
	}
	return st, false
}

// descend opens the directories of one name that are merged: down to the first
// layer where the name is something else, deleted, or opaque.
func descend(dirs []int, base string) []int {
	var out []int
	for _, fd := range dirs {
		sub, err := unix.Openat(fd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(sub, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			unix.Close(sub)
			break
		}
		out = append(out, sub)
		if isOpaque(sub) {
			break
		}
	}
	return out
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// isWhiteout tells an overlay's mark of a deleted name: a character device 0:0.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// isOpaque tells a directory that hides those of its name below.
func isOpaque(fd int) bool {
	var b [1]byte
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Getxattr(self(fd), name, b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}
