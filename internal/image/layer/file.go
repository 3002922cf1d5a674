package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const paxXattr = "SCHILY.xattr."

// procPath names a directory entry for the calls that take no descriptor.
func procPath(dir int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + base
}

// lookup resolves a directory below root; links lead nowhere else.
func (a *applier) lookup(dir string) (int, error) {
	if dir == "" {
		dir = "."
	}
	for {
		fd, err := unix.Openat2(a.root, dir, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// resolve is lookup, making what is missing. The caller closes the result.
func (a *applier) resolve(dir string) (int, error) {
	fd, err := a.lookup(dir)
	if err != unix.ENOENT || dir == "" {
		return fd, err
	}
	up, base := path.Split(dir)
	parent, err := a.resolve(strings.TrimSuffix(up, "/"))
	if err != nil {
		return -1, err
	}
	err = unix.Mkdirat(parent, base, 0o755)
	unix.Close(parent)
	if err == nil {
		a.implied[dir] = struct{}{}
	} else if err != unix.EEXIST { // EEXIST: a link to nowhere, said below
		return -1, err
	}
	return a.lookup(dir)
}

// open is resolve with a memory of one: entries come directory by directory.
func (a *applier) open(dir string) (int, error) {
	if a.parent >= 0 && a.parentName == dir {
		return a.parent, nil
	}
	fd, err := a.resolve(dir)
	if err != nil {
		return -1, err
	}
	a.forget()
	a.parent, a.parentName = fd, dir
	return fd, nil
}

// clear removes what stands in the way of an entry. A directory stays where a
// directory is to be: existed.
func (a *applier) clear(parent int, base string, dir bool) (existed bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if dir && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return true, nil
	}
	err = a.remove(parent, base, &st)
	a.forget()
	return false, err
}

// remove deletes an entry and all below it.
func (a *applier) remove(parent int, base string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 {
			a.res.Size -= st.Size
		}
		return unix.Unlinkat(parent, base, 0)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		var sub unix.Stat_t
		if err := unix.Fstatat(fd, n, &sub, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if err := a.remove(fd, n, &sub); err != nil {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// file writes a regular file and its attributes by its descriptor.
func (a *applier) file(parent int, base string, hdr *tar.Header, data io.Reader) error {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return pathErr("create", hdr.Name, err)
	}
	err = a.fill(fd, hdr, data)
	if err == nil {
		err = a.fileAttributes(fd, hdr)
	}
	if err1 := unix.Close(fd); err == nil && err1 != nil {
		err = pathErr("close", hdr.Name, err1)
	}
	if err == nil {
		a.res.Size += hdr.Size
	}
	return err
}

// isSparse tells whether zeros of the entry may be holes of its file.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for _, k := range []string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize"} {
		if hdr.PAXRecords[k] != "" {
			return true
		}
	}
	return false
}

// fill copies the contents. Errors of the stream go out as they are.
func (a *applier) fill(fd int, hdr *tar.Header, data io.Reader) error {
	sparse := isSparse(hdr)
	var at int64
	for at < hdr.Size {
		n, err := io.ReadFull(data, a.buf[:min(int64(len(a.buf)), hdr.Size-at)])
		if n > 0 {
			if werr := a.write(fd, a.buf[:n], at, sparse); werr != nil {
				if _, ok := werr.(unix.Errno); ok {
					werr = pathErr("write", hdr.Name, werr)
				}
				return werr
			}
			at += int64(n)
		}
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if a.ctx.Err() != nil {
			return context.Cause(a.ctx)
		}
	}
	if sparse {
		if err := unix.Ftruncate(fd, hdr.Size); err != nil {
			return pathErr("truncate", hdr.Name, err)
		}
	}
	return nil
}

var zeros [64 << 10]byte

// write puts p at offset at; with sparse, stretches of zeros are skipped.
func (a *applier) write(fd int, p []byte, at int64, sparse bool) error {
	for len(p) > 0 {
		piece := p
		if sparse {
			piece = p[:min(len(p), len(zeros))]
			if bytes.Equal(piece, zeros[:len(piece)]) {
				p, at = p[len(piece):], at+int64(len(piece))
				continue
			}
		}
		n, err := unix.Pwrite(fd, piece, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
		if a.unasked += int64(n); a.unasked >= SpaceStep && a.o.Space != nil {
			a.unasked = 0
			if err := a.o.Space(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fileAttributes sets owner, extended attributes, mode and times, in the order
// in which one does not undo the other.
func (a *applier) fileAttributes(fd int, hdr *tar.Header) error {
	if !a.rootless {
		if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
			return pathErr("chown", hdr.Name, err)
		}
	}
	err := a.xattrs(hdr, func(k, v string) error { return unix.Fsetxattr(fd, k, []byte(v), 0) })
	if err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode&0o7777)); err != nil {
		return pathErr("chmod", hdr.Name, err)
	}
	ts := times(hdr)
	if err := futimens(fd, &ts); err != nil {
		return pathErr("chtimes", hdr.Name, err)
	}
	return nil
}

// attributes is fileAttributes for what has no descriptor. name is "" for the root.
func (a *applier) attributes(parent int, name, base string, hdr *tar.Header) error {
	if !a.rootless {
		if err := unix.Fchownat(parent, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathErr("chown", name, err)
		}
	}
	err := a.xattrs(hdr, func(k, v string) error {
		return unix.Lsetxattr(procPath(parent, base), k, []byte(v), 0)
	})
	if err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		// The entry was just made here and is no link: nothing is followed.
		if err := unix.Fchmodat(parent, base, uint32(hdr.Mode&0o7777), 0); err != nil {
			return pathErr("chmod", name, err)
		}
	}
	ts := times(hdr)
	if err := unix.UtimesNanoAt(parent, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathErr("chtimes", name, err)
	}
	return nil
}

// xattrs sets the extended attributes of an entry. Those by which overlayfs
// keeps its own books are not for a tar to set: they could redirect a
// directory. What the file system or the user may not hold is left out.
func (a *applier) xattrs(hdr *tar.Header, set func(k, v string) error) error {
	for k, v := range hdr.PAXRecords {
		k, ok := strings.CutPrefix(k, paxXattr)
		if !ok || isOverlay(k) {
			continue
		}
		err := set(k, v)
		switch {
		case err == nil, err == unix.ENOTSUP, err == unix.EPERM && (a.rootless || strings.HasPrefix(k, "user.")):
		default:
			return pathErr("setxattr "+k, hdr.Name, err)
		}
	}
	return nil
}
