// Package pin takes hold of files and directories so that what was looked at is
// what is mounted: a path is walked once, and the descriptor, not the path, is
// bound to a mount point of ours. Whoever swaps a directory for a symbolic link
// meanwhile changes nothing. The sources are openat2(2) and mount(2).
package pin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// ErrLink tells of a symbolic link where there was to be none.
var ErrLink = errors.New("is a symbolic link")

const handle = unix.O_PATH | unix.O_CLOEXEC

// Plain reports whether no symbolic link stands on the way to path, as far as
// the way exists.
func Plain(path string) bool {
	f, err := walk(path, false)
	if err == nil {
		f.Close()
	}
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// Walk opens path, an absolute one, with O_PATH, and refuses symbolic links on
// the way with ErrLink. Directories that are missing are made, if mkdir says so.
func Walk(path string, mkdir bool) (*os.File, error) { return walk(path, mkdir) }

func walk(path string, mkdir bool) (*os.File, error) {
	fd, err := unix.Open("/", handle|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	at := ""
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean(path), "/"), "/") {
		if name == "" {
			break // the root itself
		}
		at += "/" + name
		next, err := step(fd, name, mkdir)
		unix.Close(fd)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: at, Err: err}
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), path), nil
}

// step opens name in the directory dir.
func step(dir int, name string, mkdir bool) (int, error) {
	fd, err := unix.Openat(dir, name, handle|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT && mkdir {
		if err := unix.Mkdirat(dir, name, 0o755); err != nil && err != unix.EEXIST {
			return -1, err
		}
		fd, err = unix.Openat(dir, name, handle|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = ErrLink
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Open opens path with O_PATH and follows symbolic links.
func Open(path string) (*os.File, error) {
	fd, err := unix.Open(path, handle, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Below opens sub with O_PATH as if root were "/": links lead nowhere outside.
func Below(root *os.File, sub string) (*os.File, error) {
	how := unix.OpenHow{Flags: handle, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	path := filepath.Join(root.Name(), sub)
	err := error(unix.EAGAIN)
	for try := 0; try < 32 && (err == unix.EAGAIN || err == unix.EINTR); try++ { // something was renamed meanwhile
		var fd int
		fd, err = unix.Openat2(int(root.Fd()), sub, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), path), nil
		case unix.ENOSYS, unix.EPERM: // before Linux 5.6, or filtered
			safe, err := securejoin.SecureJoin(root.Name(), sub)
			if err != nil {
				return nil, err
			}
			return walk(safe, false)
		}
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: err}
}

// How says what a pinned mount is like.
type How struct {
	NonRecursive bool // without what is mounted below
	Slave        bool // mounts that appear at the source appear here; else nothing passes
}

// Bind mounts what f refers to on target, which is made: a directory or an
// empty file, as f is. Nothing that happens below target reaches the source.
func Bind(f *os.File, target string, how How) error {
	if err := makePoint(f, target); err != nil {
		return err
	}
	recursive := uintptr(unix.MS_REC)
	if how.NonRecursive {
		recursive = 0
	}
	source := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if err := unix.Mount(source, target, "", unix.MS_BIND|recursive, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", f.Name(), target, err)
	}
	kind := uintptr(unix.MS_PRIVATE)
	if how.Slave {
		kind = unix.MS_SLAVE
	}
	if err := unix.Mount("", target, "", kind|unix.MS_REC, ""); err != nil {
		// Peers would hear of the unmounting: it has to stay where it is.
		return fmt.Errorf("propagation of %s: %w", target, err)
	}
	return nil
}

func makePoint(f *os.File, target string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.Mkdir(target, 0o700)
	}
	p, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return p.Close()
}

// Clear unmounts what is mounted on the entries of dir and removes them and
// dir. It never looks below an entry: when one stays mounted it fails, and
// nothing behind the mount is touched. Idempotent.
func Clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil { // one may cover another
		}
		remove := unix.Rmdir
		if !e.IsDir() {
			remove = unix.Unlink
		}
		if err := remove(path); err != nil && err != unix.ENOENT {
			errs = append(errs, &fs.PathError{Op: "remove", Path: path, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(dir)
}
