package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Owner is a user and a group by number.
type Owner struct{ UID, GID int }

// WriteOptions say how an archive is put into a tree.
type WriteOptions struct {
	// NoOverwriteDirNonDir refuses a directory in the place of something else,
	// and something else in the place of a directory.
	NoOverwriteDirNonDir bool
	Owner                *Owner // of everything; nil: as the archive says
	// Exact makes a tree what Backup found: its own directory gets what the archive says
	// of it, files have their holes, and all extended attributes are set.
	Exact bool
}

// maxEntry bounds the name and the link of an entry; longer ones no kernel takes.
const maxEntry = unix.PathMax

// Write puts the tar archive r into the directory that a name in the tree
// leads to. Entries are placed in order; what is there already is replaced,
// directories are merged. Kinds: InvalidArgument for what is no directory and
// for bad archives, PermissionDenied where the tree is read-only.
func Write(ctx context.Context, root *os.File, name string, r io.Reader, o WriteOptions) error {
	dest, err := resolve(root, clean(name))
	if err != nil {
		return err
	}
	if err := checkDest(root, dest); err != nil {
		return err
	}
	u := &unpacker{ctx: ctx, root: int(root.Fd()), dest: dest, o: o, tr: tar.NewReader(r), buf: make([]byte, 128<<10)}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := u.tr.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			return badArchive(err)
		}
		if err := u.entry(hdr); err != nil {
			return err
		}
	}
}

// badArchive gives an archive that cannot be read the kind of a bad argument,
// and leaves other errors of the stream as they are.
func badArchive(err error) error {
	if errdefs.IsUnavailable(err) { // who sends it is gone, which says nothing of the archive
		return fmt.Errorf("reading the archive: %w", err)
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalidf("reading the archive: %s", err)
	}
	return fmt.Errorf("reading the archive: %w", err)
}

// checkDest refuses a destination that nothing can be put in.
func checkDest(root *os.File, dest string) error {
	fd, err := open(int(root.Fd()), dest, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return invalidf("extraction point is not a directory")
	}
	var sf unix.Statfs_t
	if err := unix.Fstatfs(fd, &sf); err != nil {
		return err
	}
	switch {
	case sf.Flags&unix.ST_RDONLY == 0:
		return nil
	case crosses(int(root.Fd()), fd):
		return &problem{errdefs.ErrPermissionDenied, "mounted volume is marked read-only"}
	}
	return &problem{errdefs.ErrPermissionDenied, "container rootfs is marked read-only"}
}

// unpacker puts the entries of an archive into a tree.
type unpacker struct {
	ctx  context.Context
	root int
	dest string // absolute in the tree
	o    WriteOptions
	tr   *tar.Reader
	buf  []byte
	dirs []dirTime
}

// dirTime is a directory's time, set when nothing more goes into it.
type dirTime struct {
	name string
	at   time.Time
}

// inside gives a name of the archive below the destination.
func (u *unpacker) inside(name string) (string, error) {
	if len(name) > maxEntry || strings.IndexByte(name, 0) >= 0 {
		return "", invalidf("bad name in the archive: %.64q", name)
	}
	if rel := path.Clean(strings.TrimLeft(name, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
		return "", invalidf("bad name in the archive: %q leads out of it", name)
	}
	return path.Join(u.dest, name), nil
}

func (u *unpacker) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := u.inside(hdr.Name)
	if err != nil {
		return err
	}
	if name == u.dest {
		if hdr.Typeflag != tar.TypeDir {
			return invalidf("bad name in the archive: %q is a directory", hdr.Name)
		}
		return u.own(hdr)
	}
	parent, err := u.directory(path.Dir(name))
	if err != nil {
		return fmt.Errorf("%s: %w", hdr.Name, err)
	}
	defer unix.Close(parent)
	if err := u.put(parent, path.Base(name), name, hdr); err != nil {
		return u.explain(hdr.Name, err)
	}
	return nil
}

// own takes the archive's word for the destination itself, which otherwise stays as
// it is.
func (u *unpacker) own(hdr *tar.Header) error {
	if !u.o.Exact {
		return nil
	}
	fd, err := open(u.root, u.dest, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.dirs = append(u.dirs, dirTime{u.dest, hdr.ModTime})
	return u.explain(hdr.Name, u.dress(fd, Owner{hdr.Uid, hdr.Gid}, uint32(hdr.Mode&0o7777), hdr))
}

// explain gives the kernel's refusals the kind and words they mean here.
func (u *unpacker) explain(name string, err error) error {
	var p *problem
	switch {
	case err == nil, errors.As(err, &p):
		return err
	case errors.Is(err, unix.EROFS):
		return &problem{errdefs.ErrPermissionDenied, name + ": read-only file system"}
	}
	return fmt.Errorf("%s: %w", name, err)
}

// directory opens a directory of the tree, making what is missing of the way.
// A destination that has gone meanwhile is not made anew.
func (u *unpacker) directory(name string) (int, error) {
	fd, err := open(u.root, name, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil || !errors.Is(err, fs.ErrNotExist) || name == "/" || name == u.dest {
		return fd, err
	}
	parent, err := u.directory(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(name), 0o755); err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return open(u.root, name, unix.O_PATH|unix.O_DIRECTORY)
}

// put places one entry into an open directory.
func (u *unpacker) put(parent int, base, name string, hdr *tar.Header) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && err != unix.ENOENT {
		return err
	}
	there := err == nil
	if there {
		isDir, wantsDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, hdr.Typeflag == tar.TypeDir
		switch {
		case u.o.NoOverwriteDirNonDir && isDir && !wantsDir:
			return invalidf("cannot overwrite directory %q with non-directory %q", name, u.dest)
		case u.o.NoOverwriteDirNonDir && !isDir && wantsDir:
			return invalidf("cannot overwrite non-directory %q with directory %q", name, u.dest)
		case isDir && wantsDir:
		default:
			if err := remove(parent, base); err != nil {
				return err
			}
			there = false
		}
	}
	owner := Owner{hdr.Uid, hdr.Gid}
	if u.o.Owner != nil {
		owner = *u.o.Owner
	}
	mode := uint32(hdr.Mode & 0o7777)
	switch hdr.Typeflag {
	case tar.TypeDir:
		if !there {
			if err := unix.Mkdirat(parent, base, 0o700); err != nil {
				return err
			}
		}
		u.dirs = append(u.dirs, dirTime{name, hdr.ModTime})
		fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return u.dress(fd, owner, mode, hdr)
	case tar.TypeReg, tar.TypeGNUSparse, 0:
		return u.file(parent, base, owner, mode, hdr)
	case tar.TypeLink:
		return u.link(parent, base, hdr)
	case tar.TypeSymlink:
		if len(hdr.Linkname) > maxEntry || hdr.Linkname == "" {
			return invalidf("bad link in the archive: %q", hdr.Name)
		}
		err = unix.Symlinkat(hdr.Linkname, parent, base)
	case tar.TypeFifo:
		err = unix.Mknodat(parent, base, unix.S_IFIFO|mode, 0)
	case tar.TypeChar:
		err = unix.Mknodat(parent, base, unix.S_IFCHR|mode, device(hdr))
	case tar.TypeBlock:
		err = unix.Mknodat(parent, base, unix.S_IFBLK|mode, device(hdr))
	default:
		return invalidf("unhandled tar header type %d", hdr.Typeflag)
	}
	if err != nil {
		return err
	}
	return dressNode(parent, base, owner, mode, hdr)
}

func device(hdr *tar.Header) int {
	return int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
}

// dressNode gives what cannot be opened without doing something its owner,
// mode and times, by way of a handle.
func dressNode(parent int, base string, owner Owner, mode uint32, hdr *tar.Header) error {
	fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchownat(fd, "", owner.UID, owner.GID, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(self(fd), mode); err != nil {
			return err
		}
	}
	ts := times(hdr.ModTime)
	return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
}

// dress gives an open file its owner, attributes, and mode, in this order: a
// change of owner takes the set-user-id bit and capabilities away.
func (u *unpacker) dress(fd int, owner Owner, mode uint32, hdr *tar.Header) error {
	if err := unix.Fchown(fd, owner.UID, owner.GID); err != nil {
		return err
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || strings.HasPrefix(name, "trusted.") && (!u.o.Exact || strings.HasPrefix(name, "trusted.overlay.")) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		if err != nil && err != unix.ENOTSUP && err != unix.EPERM {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	return unix.Fchmod(fd, mode)
}

// file writes a regular file; one that is not written to its end is taken away.
func (u *unpacker) file(parent int, base string, owner Owner, mode uint32, hdr *tar.Header) (err error) {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer func() {
		f.Close()
		if err != nil {
			unix.Unlinkat(parent, base, 0)
		}
	}()
	if u.o.Exact && hasHoles(hdr) {
		err = u.copyWithHoles(f, hdr.Size)
	} else {
		err = u.copy(f)
	}
	if err != nil {
		return err
	}
	if err := u.dress(fd, owner, mode, hdr); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, self(fd), times(hdr.ModTime), 0)
}

// copy writes the content of the present entry.
func (u *unpacker) copy(w io.Writer) error {
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := u.tr.Read(u.buf)
		if n > 0 {
			if _, err := w.Write(u.buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return badArchive(err)
		}
	}
}

// link makes a hard link to what an earlier entry, or the tree, has below the
// destination.
func (u *unpacker) link(parent int, base string, hdr *tar.Header) error {
	target, err := u.inside(hdr.Linkname)
	if err != nil {
		return err
	}
	dir, err := open(u.root, path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Linkat(dir, path.Base(target), parent, base, 0)
}

// finish sets the times of directories, the deepest first. One that is gone or
// replaced meanwhile has none to set.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		fd, err := open(u.root, u.dirs[i].name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		err = unix.UtimesNanoAt(fd, "", times(u.dirs[i].at), unix.AT_EMPTY_PATH)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", u.dirs[i].name, err)
		}
	}
	return nil
}

// times are those of utimensat: both are the entry's. A time that no file
// system holds is now.
func times(at time.Time) []unix.Timespec {
	if at.Unix() < 0 || at.Unix() > math.MaxInt32*4 {
		at = time.Now()
	}
	ts := unix.NsecToTimespec(at.UnixNano())
	return []unix.Timespec{ts, ts}
}

// remove deletes an entry of an open directory and all that is in it, but
// nothing that is mounted there.
func remove(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	}
	dir, openErr := unix.Openat2(parent, base, &how)
	if openErr != nil {
		return openErr
	}
	names, listErr := list(dir)
	for _, name := range names {
		if err := remove(dir, name); err != nil {
			unix.Close(dir)
			return err
		}
	}
	unix.Close(dir)
	if listErr != nil {
		return listErr
	}
	if err := unix.Unlinkat(parent, base, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}
