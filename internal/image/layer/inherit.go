package layer

import (
	"errors"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// Inherit gives directories of the unpacked layer root that its tar only
// implied (Result.Implied) the owner, mode, extended attributes and times that
// they have in the layers below: lowers, topmost first, each an unpacked
// directory. What no layer has stays as it is.
func Inherit(root string, implied, lowers []string) error {
	for _, name := range implied {
		to, err := securejoin.SecureJoin(root, name)
		if err != nil {
			return err
		}
		if err := inheritOne(to, name, lowers); err != nil {
			return &os.PathError{Op: "inherit", Path: "/" + name, Err: err}
		}
	}
	return nil
}

func inheritOne(to, name string, lowers []string) error {
	for _, lower := range lowers {
		from, err := securejoin.SecureJoin(lower, name)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(from, &st)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil // hidden, or something else: nothing to go by
		}
		return copyAttributes(from, to, &st)
	}
	return nil
}

func copyAttributes(from, to string, st *unix.Stat_t) error {
	if os.Geteuid() == 0 {
		if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, names)
	if err != nil && err != unix.ENOTSUP {
		return err
	}
	for _, name := range splitNUL(names[:max(n, 0)]) {
		if isOverlay(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			continue // gone, or not ours to read
		}
		if err := unix.Lsetxattr(to, name, value[:n], 0); err != nil && err != unix.ENOTSUP && err != unix.EPERM {
			return err
		}
	}
	if err := unix.Chmod(filepath.Clean(to), st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
