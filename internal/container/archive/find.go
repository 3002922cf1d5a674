package archive

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Found is what is at a path.
type Found int

// What Find tells.
const (
	Nothing   Found = iota
	Directory       // one that is no link
	File            // anything else that is no link
	Unsure          // there is a link, or a file, on the way: a mount would tell
)

// Find tells what the layers of an overlay, the topmost first, show at a path, without
// a mount and without following links. They must not change meanwhile. It blocks for the disk.
func Find(layers []string, name string) (Found, error) {
	dirs := make([]int, 0, len(layers))
	defer func() { closeAll(dirs) }()
	for _, l := range layers {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return Nothing, &os.PathError{Op: "open", Path: l, Err: err}
		}
		dirs = append(dirs, fd)
	}
	rest := strings.TrimPrefix(path.Clean("/"+name), "/")
	for rest != "" {
		base, after, more := strings.Cut(rest, "/")
		st, ok := lookup(dirs, base)
		switch kind := st.Mode & unix.S_IFMT; {
		case !ok:
			return Nothing, nil
		case kind == unix.S_IFLNK, kind != unix.S_IFDIR && more:
			return Unsure, nil
		case kind != unix.S_IFDIR:
			return File, nil
		}
		below := descend(dirs, base)
		closeAll(dirs)
		dirs, rest = below, after
	}
	return Directory, nil
}
