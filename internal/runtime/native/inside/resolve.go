package inside

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// open looks a path of the container up below its root, as the container would,
// but through no magic link of procfs. More is of RESOLVE_*.
func (h *half) open(name string, flags int, more uint64) (int, error) {
	return openIn(h.root, name, flags, more)
}

func openIn(dir int, name string, flags int, more uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | more}
	for range 128 {
		fd, err := unix.Openat2(dir, name, &how)
		switch err {
		case nil:
			return fd, nil
		case unix.EAGAIN, unix.EINTR: // somebody renamed beside it: whether it stayed inside is not known
			continue
		}
		return -1, pathError("openat2", name, err)
	}
	return -1, pathError("openat2", name, unix.EAGAIN)
}

// target opens the place of a mount; what is missing of the path is made, the last
// of it as a directory or a file. The caller closes the descriptor, which is O_PATH.
func (h *half) target(name string, dir bool, more uint64) (int, error) {
	name = path.Clean("/" + name)
	for range maxLinks {
		fd, err := h.open(name, unix.O_PATH, more)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
		further, err := h.dangling(name, more)
		if err != nil {
			return -1, err
		}
		if further == name {
			return h.make(name, dir, more)
		}
		name = further
	}
	return -1, pathError("open", name, unix.ELOOP)
}

// maxLinks is how many links to nowhere are followed, as many as the kernel would follow.
const maxLinks = 40

// dangling follows the first link of a path that leads to what is not there: the
// image means its target, inside its root. The path itself when there is none.
func (h *half) dangling(name string, more uint64) (string, error) {
	there, rest := name, ""
	for there != "/" {
		parent, base := path.Dir(there), path.Base(there)
		dir, err := h.open(parent, unix.O_PATH|unix.O_DIRECTORY, more)
		if errors.Is(err, unix.ENOENT) {
			there, rest = parent, path.Join(base, rest)
			continue
		}
		if err != nil {
			return "", err
		}
		defer closeFD(dir)
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(dir, base, buf[:])
		switch {
		case err == unix.ENOENT || err == unix.EINVAL: // nothing, or no link
			return name, nil
		case err != nil:
			return "", pathError("readlink", there, err)
		case more&unix.RESOLVE_NO_SYMLINKS != 0:
			return "", pathError("open", there, unix.ELOOP)
		}
		target := string(buf[:n])
		if !path.IsAbs(target) {
			target = path.Join(parent, target)
		}
		return path.Join("/", target, rest), nil
	}
	return name, nil
}

// make makes what is missing of a path, none of which is a link.
func (h *half) make(name string, dir bool, more uint64) (int, error) {
	if dir {
		return h.mkdirAll(name, more)
	}
	parent, err := h.mkdirAll(path.Dir(name), more)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	file, err := unix.Openat(parent, path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o755)
	switch err {
	case nil:
		_ = unix.Close(file) // nothing was written
	case unix.EEXIST: // another container that has the directory too was faster
	default:
		return -1, pathError("create", name, err)
	}
	return reopen(parent, path.Base(name), 0)
}

// reopen opens an entry of a directory, which must be no link.
func reopen(dir int, name string, flags int) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return -1, pathError("open", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, pathError("stat", name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		_ = unix.Close(fd)
		return -1, pathError("open", name, unix.ELOOP)
	}
	return fd, nil
}

// mkdirAll makes the directories of a clean path that are missing, below the
// longest part that is there.
func (h *half) mkdirAll(name string, more uint64) (int, error) {
	there, missing := name, []string{}
	var fd int
	for {
		var err error
		fd, err = h.open(there, unix.O_PATH|unix.O_DIRECTORY, more)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || there == "/" {
			return -1, err
		}
		missing = append(missing, path.Base(there))
		there = path.Dir(there)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		err := unix.Mkdirat(fd, missing[i], 0o755)
		if err != nil && err != unix.EEXIST {
			_ = unix.Close(fd)
			return -1, pathError("mkdir", name, err)
		}
		next, err := reopen(fd, missing[i], unix.O_DIRECTORY)
		_ = unix.Close(fd)
		if err != nil {
			return -1, fmt.Errorf("mkdir %s: %w", name, err)
		}
		fd = next
	}
	return fd, nil
}

// ownProc makes a procfs of this pid namespace that no path leads to. Where the kernel
// does not let us, in a user namespace that does not see all of procfs, what lies at
// /proc is taken, once it is known to be the root of one.
func ownProc() (int, error) {
	if fd, err := makeFS(&plan.Mount{FS: "proc", Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}); err == nil {
		return fd, nil
	}
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, pathError("open", "/proc", err)
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	const rootInode = 1 // PROC_ROOT_INO
	if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st)); err != nil || fs.Type != unix.PROC_SUPER_MAGIC || st.Ino != rootInode {
		_ = unix.Close(fd)
		return -1, pathError("open", "/proc", errors.Join(err, errors.New("is no procfs")))
	}
	return fd, nil
}

// writeProc writes to a file of the host's procfs, to nothing mounted over it, and by
// no path of the container. The file is that of our own namespaces all the same:
// procfs looks at who opens it.
func (h *half) writeProc(name, text string) error {
	proc := h.Proc
	if proc == plan.NoFD {
		own, err := ownProc()
		if err != nil {
			return err
		}
		defer unix.Close(own)
		proc = own
	}
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(proc, name, &how)
	if err != nil {
		return pathError("open", "/proc/"+name, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		return pathError("open", "/proc/"+name, errors.Join(err, errors.New("is not of procfs")))
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return pathError("write", "/proc/"+name, err)
	}
	return nil
}

// sysctls sets the kernel's parameters in the container's namespaces.
func (h *half) sysctls() error {
	for key, value := range h.Sysctl {
		name := key
		// The first separator says which of the two it is (sysctl.d(5)).
		if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
			name = strings.Map(func(r rune) rune {
				switch r {
				case '.':
					return '/'
				case '/':
					return '.'
				}
				return r
			}, key)
		}
		// A name that leads upwards is one of another namespace than it seems to be of.
		for part := range strings.SplitSeq(name, "/") {
			if part == "" || part == "." || part == ".." {
				return fmt.Errorf("sysctl %s: no such name", key)
			}
		}
		if err := h.writeProc("sys/"+name, value); err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
	}
	return nil
}

func isDir(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func closeFD(fd int) { _ = unix.Close(fd) }
