package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxAccountFile bounds a passwd or group file, which an image may make as
// large as it likes.
const maxAccountFile = 16 << 20

// LookupUser resolves "user", "uid", "user:group", … with the passwd and group
// files below rootfs; empty is root. rootfs may also be /proc/<pid>/root, which
// sees what is mounted in the container. groups are added (--group-add). Links
// in the tree never lead out of it. Errors have Docker's words and no kind.
func LookupUser(rootfs, spec string, groups []string) (specs.User, error) {
	passwd, err := readInRoot(rootfs, "etc/passwd", maxAccountFile)
	if err != nil {
		return specs.User{}, err
	}
	group, err := readInRoot(rootfs, "etc/group", maxAccountFile)
	if err != nil {
		return specs.User{}, err
	}
	return lookupUser(passwd, group, spec, groups)
}

// lookupUser does it with the files' content; nil: no such file.
func lookupUser(passwd, group []byte, spec string, groups []string) (specs.User, error) {
	u, err := user.GetExecUser(spec, nil, reader(passwd), reader(group))
	if err != nil {
		return specs.User{}, err
	}
	// A numeric entry of the file is not checked there.
	if u.Uid < 0 || u.Gid < 0 {
		return specs.User{}, user.ErrRange
	}
	// The library does not expect an empty name.
	if slices.Contains(groups, "") {
		return specs.User{}, fmt.Errorf("unable to find group : %w", user.ErrNoGroupEntries)
	}
	added, err := user.GetAdditionalGroups(groups, reader(group))
	if err != nil {
		return specs.User{}, err
	}
	slices.Sort(added) // they come out of a map
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid), AdditionalGids: []uint32{uint32(u.Gid)}}
	for _, g := range append(u.Sgids, added...) {
		if g < 0 {
			return specs.User{}, user.ErrRange
		}
		if !slices.Contains(out.AdditionalGids, uint32(g)) {
			out.AdditionalGids = append(out.AdditionalGids, uint32(g))
		}
	}
	return out, nil
}

// reader is nil, not an empty file, where there is no file.
func reader(b []byte) io.Reader {
	if b == nil {
		return nil
	}
	return bytes.NewReader(b)
}

// readInRoot reads a file of a container's tree, nil when it is not there or is
// no file. Opening is two steps, so that no device or FIFO that the tree may
// hold is ever opened.
func readInRoot(root, name string, limit int64) ([]byte, error) {
	fd, err := openInRoot(root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s in %s: %w", name, root, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%s in %s: %w", name, root, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", name, root, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", name, root, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s in %s: larger than %d bytes", name, root, limit)
	}
	return b, nil
}

// openInRoot opens name below root with O_PATH, as if root were "/".
func openInRoot(root, name string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		// The tree itself has to be there; what is missing in it may be.
		return -1, fmt.Errorf("%s: %w", root, noKind{err})
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 32 {
		fd, err := unix.Openat2(dir, name, &how)
		switch err {
		case unix.EAGAIN, unix.EINTR: // something was renamed meanwhile
			continue
		case unix.ENOSYS, unix.EPERM: // before Linux 5.6, or filtered
			path, err := securejoin.SecureJoin(root, name)
			if err != nil {
				return -1, err
			}
			return unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
		return fd, err
	}
	return -1, unix.EAGAIN
}

// noKind keeps an error's words and hides its kind from callers to whom
// "does not exist" means something else.
type noKind struct{ error }

// checkWorkingDir refuses a working directory that is something else in the
// tree. One that is missing is made by the runtime.
func checkWorkingDir(rootfs, dir string) error {
	if dir == "" || filepath.Clean(dir) == "/" {
		return nil
	}
	fd, err := openInRoot(rootfs, filepath.Clean("/" + dir)[1:])
	switch {
	case err == unix.ENOTDIR:
		return words("Cannot mkdir: %s is not a directory", dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("working directory %s: %w", dir, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("working directory %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return words("Cannot mkdir: %s is not a directory", dir)
	}
	return nil
}
