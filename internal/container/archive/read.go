package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// paxXattr is how extended attributes stand in a tar archive.
const paxXattr = "SCHILY.xattr."

// Read writes what a name in the tree is as a tar archive, whose entries begin
// with the last part of the name. A link goes in as a link. open is called once
// the name is found, before anything is written.
func Read(ctx context.Context, root *os.File, name string, open func(container.PathStat) (io.Writer, error)) error {
	name = clean(name)
	fd, err := locate(root, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	st, err := describe(root, name, fd)
	if err != nil {
		return err
	}
	w, err := open(st)
	if err != nil {
		return err
	}
	if st.Mode.IsDir() && strings.Trim(name, "/") == "" {
		return pack(ctx, w, fd, "/")
	}
	return pack(ctx, w, fd, path.Base(name))
}

// Export writes the whole tree as a tar archive.
func Export(ctx context.Context, root *os.File, w io.Writer) error {
	p := newPacker(ctx, w)
	if err := p.children(int(root.Fd()), ""); err != nil {
		return err
	}
	return p.tw.Close()
}

// pack writes what fd is a handle of, under a name.
func pack(ctx context.Context, w io.Writer, fd int, name string) error {
	p := newPacker(ctx, w)
	if err := p.add(fd, name); err != nil {
		return err
	}
	return p.tw.Close()
}

type inode struct{ dev, ino uint64 }

// packer writes a tree into a tar archive.
type packer struct {
	ctx   context.Context
	tw    *tar.Writer
	first map[inode]string // the names under which files with several went in
	attrs func(fd int, hdr *tar.Header)
	buf   []byte
	exact bool      // times to the nanosecond, and files with their holes
	out   io.Writer // below tw; with exact only
}

func newPacker(ctx context.Context, w io.Writer) *packer {
	return &packer{ctx: ctx, tw: tar.NewWriter(w), first: map[inode]string{}, attrs: xattrs, buf: make([]byte, 128<<10)}
}

// add writes what fd is a handle of, and what is in it.
func (p *packer) add(fd int, name string) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	hdr := p.header(&st, name)
	switch hdr.Typeflag {
	case 0: // a socket means nothing elsewhere
		return nil
	case tar.TypeSymlink:
		target, err := readlink(fd)
		if err != nil {
			return &os.PathError{Op: "readlink", Path: name, Err: err}
		}
		hdr.Linkname = target
	case tar.TypeReg:
		return p.file(fd, &st, hdr)
	}
	p.attrs(fd, hdr)
	if err := p.tw.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if hdr.Typeflag != tar.TypeDir || kernelMade(fd) {
		return nil
	}
	return p.children(fd, hdr.Name)
}

// header is the entry of a file as this archive has times.
func (p *packer) header(st *unix.Stat_t, name string) *tar.Header {
	hdr := header(st, name)
	hdr.ModTime = modTime(st, p.exact)
	return hdr
}

// header is the entry of a file; its type is 0 for what no archive holds.
func header(st *unix.Stat_t, name string) *tar.Header {
	hdr := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, 0), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		hdr.Typeflag = tar.TypeDir
		if !strings.HasSuffix(name, "/") {
			hdr.Name += "/"
		}
	case unix.S_IFLNK:
		hdr.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		hdr.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		hdr.Typeflag = tar.TypeBlock
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return hdr
}

// children writes what is in a directory, sorted. What goes meanwhile is left out.
func (p *packer) children(dir int, prefix string) error {
	names, err := list(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", prefix, err)
	}
	return p.each(dir, prefix, names)
}

// each writes entries of a directory.
func (p *packer) each(dir int, prefix string, names []string) error {
	for _, base := range names {
		fd, err := handle(dir, base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if prefix == "/" && base == "dev" && crosses(dir, fd) {
			err = p.empty(fd, prefix+base) // the devices of the container's own
		} else {
			err = p.add(fd, prefix+base)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// empty writes a directory without what is in it.
func (p *packer) empty(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return p.tw.WriteHeader(header(&st, name))
}

// list reads the names in a directory that is open as a handle.
func list(dir int) ([]string, error) {
	f, err := os.OpenFile(self(dir), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// file writes a regular file, or a link to the name it went in with before. A
// file that shrinks meanwhile is filled up with zeros, as tar does; of one that
// grows, only what was announced goes in.
func (p *packer) file(fd int, st *unix.Stat_t, hdr *tar.Header) error {
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := p.first[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return p.tw.WriteHeader(hdr)
		}
		p.first[id] = hdr.Name
	}
	f, err := os.OpenFile(self(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", hdr.Name, errors.Unwrap(err))
	}
	defer f.Close()
	p.attrs(fd, hdr)
	if p.exact {
		if parts := spans(f, st); parts != nil {
			return p.sparse(f, hdr, parts)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if err := p.tw.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%s: %w", hdr.Name, err)
	}
	if err := p.content(f, hdr.Size, p.tw); err != nil {
		return fmt.Errorf("%s: %w", hdr.Name, err)
	}
	return nil
}

// content copies so many bytes of a file.
func (p *packer) content(f *os.File, left int64, w io.Writer) error {
	for left > 0 {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(p.buf[:min(int64(len(p.buf)), left)])
		if n == 0 && err == io.EOF {
			n, err = int(min(int64(len(p.buf)), left)), nil
			clear(p.buf[:n])
		}
		if err != nil && err != io.EOF {
			return err
		}
		if _, err := w.Write(p.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// xattrs notes what makes a file what it is: capabilities, and what users put
// there. Where there are none, or none can be read, the entry goes without.
func xattrs(fd int, hdr *tar.Header) {
	attributes(fd, hdr, func(name string) bool { return name == "security.capability" || strings.HasPrefix(name, "user.") })
}

// attributes notes the extended attributes that are wanted.
func attributes(fd int, hdr *tar.Header, wanted func(name string) bool) {
	if hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeDir {
		return
	}
	file := self(fd)
	size, err := unix.Listxattr(file, nil)
	if err != nil || size == 0 {
		return
	}
	b := make([]byte, size)
	if size, err = unix.Listxattr(file, b); err != nil {
		return
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:size]), "\x00"), "\x00") {
		if !wanted(name) {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Getxattr(file, name, v)
		if err != nil {
			continue
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[paxXattr+name] = string(v[:n])
	}
}

// made are the file systems whose files the kernel makes up: they have no
// content that a copy could hold, and some block their readers.
var made = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, 0x19800202, // mqueue
}

func kernelMade(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && slices.Contains(made, int64(st.Type))
}

// crosses tells whether two handles lie on different mounts.
func crosses(a, b int) bool {
	x, errX := mountOf(a)
	y, errY := mountOf(b)
	return errX == nil && errY == nil && x != y
}

func mountOf(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, err
}
