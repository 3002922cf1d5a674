package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Whiteouts in a layer's tar (image-spec layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

const bufferSize = 1 << 20

// Options say how a layer is unpacked.
type Options struct {
	Limits
	// UserXattr: opaque directories are marked with user.overlay.opaque, for
	// overlayfs mounted with userxattr.
	UserXattr bool
}

// Result is what an unpacked layer amounts to.
type Result struct {
	Size    int64 // bytes of its regular files, each inode once
	Entries int64
	// Implied are directories that the tar has not, but what lies in them: they
	// were made as root's, 0755. Below them in a stack of layers may lie the
	// real ones, see Inherit.
	Implied []string
}

// Apply unpacks the tar r into the directory root, which must exist. Whiteouts
// become overlayfs's own marks. Paths and links of the tar are taken as below
// root, as in a chroot. As another user than root, owners and device nodes are
// left out. r need not be read to its end. What was made stays after an error:
// the caller throws root away.
func Apply(ctx context.Context, root string, r io.Reader, o Options) (Result, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, &os.PathError{Op: "open", Path: root, Err: err}
	}
	a := &applier{ctx: ctx, o: o, root: fd, parent: -1, rootless: os.Geteuid() != 0,
		buf: make([]byte, bufferSize), implied: map[string]struct{}{}}
	defer a.close()
	if o.Space != nil {
		if err := o.Space(); err != nil {
			return Result{}, err
		}
	}
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Result{}, err
		}
		if err := a.admit(hdr); err != nil {
			return Result{}, err
		}
		if err := a.entry(hdr, tr); err != nil {
			return Result{}, err
		}
	}
	if err := a.finish(); err != nil {
		return Result{}, err
	}
	for name := range a.implied {
		a.res.Implied = append(a.res.Implied, name)
	}
	return a.res, nil
}

// applier is one unpacking.
type applier struct {
	ctx      context.Context
	o        Options
	root     int // O_PATH
	rootless bool
	buf      []byte
	res      Result
	total    int64 // sizes in headers
	unasked  int64 // written since Space was asked
	names    int64 // bytes of names in dirs

	parent     int    // O_PATH of the directory resolved last, or -1
	parentName string // its name

	dirs    []dirTime
	implied map[string]struct{}
}

// dirTime is a directory whose times are set at the end.
type dirTime struct {
	name string
	ts   [2]unix.Timespec
}

func (a *applier) close() {
	a.forget()
	unix.Close(a.root)
}

// forget drops the directory resolved last: it may be another one by now.
func (a *applier) forget() {
	if a.parent >= 0 {
		unix.Close(a.parent)
		a.parent = -1
	}
}

// admit counts an entry against the limits.
func (a *applier) admit(hdr *tar.Header) error {
	if err := a.ctx.Err(); err != nil {
		return context.Cause(a.ctx)
	}
	if a.res.Entries++; a.res.Entries > a.o.entries() {
		return fmt.Errorf("layer: more than %d entries: %w", a.o.entries(), unix.E2BIG)
	}
	if hdr.Size < 0 || hdr.Size > a.o.bytes() {
		return errTooBig(a.o.bytes())
	}
	if a.total += hdr.Size; a.total > a.o.bytes() {
		return errTooBig(a.o.bytes())
	}
	return nil
}

// entry unpacks one entry.
func (a *applier) entry(hdr *tar.Header, data io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return nil
		}
		a.dirs = append(a.dirs, dirTime{"", times(hdr)})
		return a.attributes(a.root, "", ".", hdr)
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if len(base) > 255 {
		return pathErr("create", hdr.Name, unix.ENAMETOOLONG)
	}
	parent, err := a.open(dir)
	if err != nil {
		return pathErr("open", path.Dir(hdr.Name), err)
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		if err := a.whiteout(parent, name, base, hdr); err != nil {
			return pathErr("whiteout", hdr.Name, err)
		}
		return nil
	}
	delete(a.implied, name)
	// Most names are new: the kernel says which are not, without being asked.
	err = a.create(parent, name, base, hdr, data, false)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	existed, err := a.clear(parent, base, hdr.Typeflag == tar.TypeDir)
	if err != nil {
		return pathErr("replace", hdr.Name, err)
	}
	if parent, err = a.open(dir); err != nil { // clear may have dropped it
		return pathErr("open", path.Dir(hdr.Name), err)
	}
	return a.create(parent, name, base, hdr, data, existed)
}

// create makes what the header says and sets its attributes.
func (a *applier) create(parent int, name, base string, hdr *tar.Header, data io.Reader, existed bool) error {
	var err error
	switch hdr.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return a.file(parent, base, hdr, data)
	case tar.TypeDir:
		if !existed {
			err = unix.Mkdirat(parent, base, 0o755)
		}
	case tar.TypeSymlink:
		err = unix.Symlinkat(hdr.Linkname, parent, base)
	case tar.TypeLink:
		if err := a.link(parent, base, hdr.Linkname); err != nil {
			return &os.LinkError{Op: "link", Old: hdr.Linkname, New: hdr.Name, Err: err}
		}
		return nil // its attributes are those of the file
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		var done bool
		if done, err = a.node(parent, base, hdr); err == nil && !done {
			return nil
		}
	default:
		return fmt.Errorf("unhandled tar header type %d", hdr.Typeflag)
	}
	if err != nil {
		return pathErr("create", hdr.Name, err)
	}
	if hdr.Typeflag == tar.TypeDir {
		if a.names += int64(len(name)); a.names > maxNames {
			return fmt.Errorf("layer: too many directories: %w", unix.E2BIG)
		}
		a.dirs = append(a.dirs, dirTime{name, times(hdr)})
	}
	return a.attributes(parent, name, base, hdr)
}

// node makes a device or a pipe. A user who may not make devices goes without.
func (a *applier) node(parent int, base string, hdr *tar.Header) (bool, error) {
	mode := uint32(hdr.Mode & 0o7777)
	dev := 0
	switch hdr.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	}
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor > 1<<32-1 || hdr.Devminor < 0 || hdr.Devminor > 1<<32-1 {
			return false, unix.EINVAL
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	err := unix.Mknodat(parent, base, mode, dev)
	if err == unix.EPERM && hdr.Typeflag != tar.TypeFifo {
		return false, nil // a user namespace, or not root
	}
	return err == nil, err
}

// link makes a hard link; target is a name below root.
func (a *applier) link(parent int, base, target string) error {
	target = strings.TrimPrefix(path.Clean("/"+target), "/")
	if target == "" {
		return unix.EPERM
	}
	dir, file := path.Split(target)
	fd, err := a.resolve(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, file, parent, base, 0)
}

// whiteout hides a name of the layers below, or all of a directory's.
func (a *applier) whiteout(parent int, name, base string, hdr *tar.Header) error {
	if base == whiteoutOpaque {
		attr := "trusted.overlay.opaque"
		if a.o.UserXattr {
			attr = "user.overlay.opaque"
		}
		return unix.Lsetxattr(procPath(parent, "."), attr, []byte("y"), 0)
	}
	hidden := base[len(whiteoutPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return unix.EINVAL
	}
	if _, err := a.clear(parent, hidden, false); err != nil {
		return err
	}
	parent, err := a.open(strings.TrimSuffix(path.Dir("/" + name)[1:], "/"))
	if err != nil {
		return err
	}
	if err := unix.Mknodat(parent, hidden, unix.S_IFCHR, 0); err != nil {
		return err
	}
	if a.rootless {
		return nil
	}
	return unix.Fchownat(parent, hidden, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW)
}

// finish sets the times of directories, which making their files changed.
func (a *applier) finish() error {
	a.forget()
	for i := len(a.dirs) - 1; i >= 0; i-- {
		fd, err := a.lookup(a.dirs[i].name)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue // replaced by a later entry
		}
		if err != nil {
			return pathErr("open", a.dirs[i].name, err)
		}
		err = unix.UtimesNanoAt(fd, ".", a.dirs[i].ts[:], 0)
		unix.Close(fd)
		if err != nil {
			return pathErr("chtimes", a.dirs[i].name, err)
		}
	}
	return nil
}

func pathErr(op, name string, err error) error {
	return &os.PathError{Op: op, Path: "/" + strings.TrimPrefix(path.Clean("/"+name), "/"), Err: err}
}

// times of an entry; the kernel takes no time it cannot hold, so that those
// are set to the epoch.
func times(hdr *tar.Header) [2]unix.Timespec {
	m := stamp(hdr.ModTime)
	at := m
	if hdr.AccessTime.After(hdr.ModTime) {
		at = stamp(hdr.AccessTime)
	}
	return [2]unix.Timespec{at, m}
}

func stamp(t time.Time) unix.Timespec {
	if t.IsZero() || t.Unix() < -(1<<40) || t.Unix() > 1<<40 {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
