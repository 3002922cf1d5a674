package inside

import (
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// copyUp copies what lies in a directory into a new tmpfs: files, directories and
// links, with their owners and modes; other kinds are left out. The directory's own
// owner and mode are those of the original, unless the tmpfs was told others.
func copyUp(from, to int, told []plan.Param) error {
	given := func(key string) bool {
		return slices.ContainsFunc(told, func(p plan.Param) bool { return p.Key == key })
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := copyEntries(from, to); err != nil {
		return err
	}
	uid, gid := int(st.Uid), int(st.Gid)
	if given("uid") {
		uid = -1
	}
	if given("gid") {
		gid = -1
	}
	return likeOriginal(to, uid, gid, st.Mode, given("mode"))
}

// likeOriginal gives a directory its owners; -1 leaves them.
func likeOriginal(dir, uid, gid int, mode uint32, keepMode bool) error {
	if err := unix.Fchownat(dir, "", uid, gid, unix.AT_EMPTY_PATH); err != nil || keepMode {
		return err
	}
	return unix.Fchmodat(dir, ".", mode&0o7777, 0)
}

func copyEntries(from, to int) error {
	src, err := reopenDir(from)
	if err != nil {
		return err
	}
	defer src.Close()
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(int(src.Fd()), to, name); err != nil {
			return err
		}
	}
	return nil
}

// reopenDir opens for reading what an O_PATH descriptor is of.
func reopenDir(fd int) (*os.File, error) {
	n, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "directory"), nil
}

func copyEntry(from, to int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(from, name, buf[:])
		if err != nil {
			return pathError("readlink", name, err)
		}
		if err := unix.Symlinkat(string(buf[:n]), to, name); err != nil {
			return pathError("symlink", name, err)
		}
		return unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return pathError("mkdir", name, err)
		}
		src, err := reopen(from, name, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer closeFD(src)
		dst, err := reopen(to, name, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer closeFD(dst)
		if err := copyEntries(src, dst); err != nil {
			return err
		}
		return likeOriginal(dst, int(st.Uid), int(st.Gid), st.Mode, false)
	case unix.S_IFREG:
		return copyFile(from, to, name, &st)
	}
	return nil
}

func copyFile(from, to int, name string, st *unix.Stat_t) error {
	a, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", name, err)
	}
	src := os.NewFile(uintptr(a), name)
	defer src.Close()
	b, err := unix.Openat(to, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return pathError("create", name, err)
	}
	dst := os.NewFile(uintptr(b), name)
	if _, err = io.Copy(dst, src); err == nil {
		if err = dst.Chown(int(st.Uid), int(st.Gid)); err == nil {
			err = unix.Fchmod(b, st.Mode&0o7777)
		}
	}
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	return err
}
