package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// Limits on what a hostile tree may cost.
const (
	maxLinks   = 255  // symbolic links followed in one name
	maxRetries = 4096 // of a resolution that somebody's renames disturb
)

// problem is an error in exactly the words given, with a kind.
type problem struct {
	kind error
	text string
}

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return p.kind }

func invalidf(format string, args ...any) error {
	return &problem{errdefs.ErrInvalidArgument, fmt.Sprintf(format, args...)}
}

// open opens name inside root; symbolic links, absolute ones too, stay inside.
func open(root int, name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR:
		case err == unix.EAGAIN && try < maxRetries: // something was renamed meanwhile
			if try%64 == 63 {
				time.Sleep(time.Millisecond)
			}
		default:
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// handle opens an entry of an open directory itself, whatever it is: a link is
// not followed and a device not touched.
func handle(dir int, base string) (int, error) {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: base, Err: err}
	}
	return fd, nil
}

// self is a name for an open file, by which it can be opened anew.
func self(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// readlink gives the target of the link that fd is a handle of.
func readlink(fd int) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(fd, "", b)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// clean makes a name that a client gave absolute and free of "..", and keeps
// what says that a directory is meant: a trailing "/" or "/.".
func clean(name string) string {
	c := path.Clean("/" + name)
	switch {
	case c == "/":
		if name == "." || strings.HasSuffix(name, "/.") {
			return "/."
		}
	case strings.HasSuffix(name, "/"):
		c += "/"
	case strings.HasSuffix(name, "/."):
		c += "/."
	}
	return c
}

// split parts a cleaned name: links in dir are followed, base is taken as it
// is. Base is empty when the name says that a directory is meant.
func split(name string) (dir, base string) {
	dir, base = path.Split(name)
	if base == "." {
		base = ""
	}
	return dir, base
}

// locate opens what a cleaned name means, without following its last link.
func locate(root *os.File, name string) (int, error) {
	dir, base := split(name)
	parent, err := open(int(root.Fd()), dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil || base == "" {
		return parent, err
	}
	defer unix.Close(parent)
	return handle(parent, base)
}

// resolve follows every link of a cleaned name and gives the name of what it
// leads to, which need not exist. The name is only words: to use it, open it.
func resolve(root *os.File, name string) (string, error) {
	rest := strings.Split(name, "/")
	at, links := "/", 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		target, err := linkAt(root, next)
		if err != nil {
			return "", err
		}
		if target == "" {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "resolve", Path: name, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// linkAt gives the target of a link, "" for whatever is none or is not there.
func linkAt(root *os.File, name string) (string, error) {
	fd, err := open(int(root.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	target, err := readlink(fd)
	if errors.Is(err, fs.ErrNotExist) { // /proc/self of another pid namespace: it leads nowhere for us
		return "", nil
	}
	return target, err
}

// Stat tells what a name in the tree is. A link is not followed, but where it
// leads to in the end is told.
func Stat(root *os.File, name string) (container.PathStat, error) {
	name = clean(name)
	fd, err := locate(root, name)
	if err != nil {
		return container.PathStat{}, err
	}
	defer unix.Close(fd)
	return describe(root, name, fd)
}

// describe is Stat of what is open already.
func describe(root *os.File, name string, fd int) (container.PathStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return container.PathStat{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	s := container.PathStat{Name: path.Base(name), Size: st.Size, Mode: fileMode(st.Mode), Mtime: time.Unix(st.Mtim.Unix()).UTC()}
	if s.Mode&fs.ModeSymlink == 0 {
		return s, nil
	}
	target, err := resolve(root, name)
	if err != nil && !errors.Is(err, unix.ELOOP) {
		return s, err
	}
	s.LinkTarget = target
	return s, nil
}

// fileMode is Go's form of the kernel's mode.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	for bit, word := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= word
		}
	}
	return mode
}

// Open opens a regular file of the tree for reading. Blocks on nothing: what is
// no regular file is refused.
func Open(root *os.File, name string) (*os.File, error) {
	fd, err := open(int(root.Fd()), clean(name), unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, invalidf("%s is not a regular file", name)
	}
	return os.OpenFile(self(fd), os.O_RDONLY, 0)
}

// Place gives a handle of a place in the tree to mount something on, and makes
// it when it is not there: a directory, or an empty file.
func Place(root *os.File, name string, dir bool) (*os.File, error) {
	u := &unpacker{root: int(root.Fd())}
	name, err := resolve(root, clean(name))
	if err != nil {
		return nil, err
	}
	if dir {
		fd, err := u.directory(name)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	parent, err := u.directory(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer unix.Close(parent)
	if fd, err := unix.Openat(parent, path.Base(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644); err == nil {
		unix.Close(fd)
	}
	fd, err := handle(parent, path.Base(name))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
