package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// How an image layer marks what it deletes, see
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts.
const (
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"
)

// Diff writes the upper layer of an overlay as the tar archive of an image layer
// on top of the layers below it, the topmost first: with whiteouts and marks of
// opaque directories. Names that are placed are left out as long as they are
// empty: they were made for mounts. It tells how many entries it wrote; none
// means that nothing differs. The upper layer may be in use, but what changes
// meanwhile may be found half changed. Kind: what the kernel left that no layer
// can hold is told with fs.ErrInvalid.
func Diff(ctx context.Context, upper string, lowers []string, placed func(name string) bool, w io.Writer) (entries int, err error) {
	d := &difference{packer: newPacker(ctx, w), placed: placed}
	d.attrs = ownAttributes
	var open []int
	defer func() { closeAll(open) }()
	for _, dir := range append([]string{upper}, lowers...) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		open = append(open, fd)
	}
	if err := d.root(open[0], open[1:]); err != nil {
		return d.entries, err
	}
	return d.entries, d.tw.Close()
}

// difference writes an upper layer.
type difference struct {
	*packer
	placed  func(name string) bool
	pending []*tar.Header // directories that go in with the first entry in them
	entries int
}

// put writes an entry, ahead of it the directories that lead there.
func (d *difference) put(hdr *tar.Header) error {
	d.pending = append(d.pending, hdr)
	return d.flush()
}

// flush writes the directories that wait for an entry in them.
func (d *difference) flush() error {
	for _, hdr := range d.pending {
		if err := d.tw.WriteHeader(hdr); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
		d.entries++
	}
	d.pending = d.pending[:0]
	return nil
}

// root begins at the top, which is an entry only if it differs from that below.
func (d *difference) root(fd int, below []int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if len(below) > 0 {
		var old unix.Stat_t
		if err := unix.Fstat(below[0], &old); err != nil {
			return err
		}
		if same(&st, &old, false) && sameAttributes(fd, below[0]) {
			_, err := d.inside(fd, "", below)
			return err
		}
	}
	hdr := header(&st, "./")
	ownAttributes(fd, hdr)
	if err := d.put(hdr); err != nil {
		return err
	}
	_, err := d.inside(fd, "", below)
	return err
}

// inside writes what is in a directory of the upper layer. stub: something was
// made in it for a mount.
func (d *difference) inside(dir int, prefix string, below []int) (stub bool, err error) {
	names, err := list(dir)
	if err != nil {
		return false, fmt.Errorf("/%s: %w", prefix, err)
	}
	for _, base := range names {
		if err := d.ctx.Err(); err != nil {
			return stub, err
		}
		fd, err := handle(dir, base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return stub, err
		}
		made, err := d.entry(fd, base, prefix+base, below)
		unix.Close(fd)
		if err != nil {
			return stub, err
		}
		stub = stub || made
	}
	return stub, nil
}

// entry writes one entry of the upper layer. stub: it was made for a mount.
func (d *difference) entry(fd int, base, name string, below []int) (stub bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	_, was := lookup(below, base)
	switch {
	case isWhiteout(&st):
		if was {
			return false, d.put(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteoutPrefix+base), Format: tar.FormatPAX})
		}
		return false, nil
	case strings.HasPrefix(base, whiteoutPrefix):
		return false, fmt.Errorf("/%s: a layer cannot hold a file of that name: %w", name, fs.ErrInvalid)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return d.subdirectory(fd, &st, base, name, below)
	case !was && st.Size == 0 && d.placed("/"+name):
		return true, nil
	}
	hdr := header(&st, name)
	switch hdr.Typeflag {
	case 0: // a socket means nothing elsewhere
		return false, nil
	case tar.TypeSymlink:
		target, err := readlink(fd)
		if err != nil {
			return false, &os.PathError{Op: "readlink", Path: name, Err: err}
		}
		if !was && target == mtabTarget && d.placed("/"+name) {
			return true, nil // /etc/mtab
		}
		hdr.Linkname = target
	case tar.TypeReg:
		if overlayNote(fd, "metacopy") {
			return false, fmt.Errorf("/%s: overlayfs has not copied its content (metacopy=on): %w", name, fs.ErrInvalid)
		}
		// The headers of the directories above, then the file with its content.
		if err := d.flush(); err != nil {
			return false, err
		}
		d.entries++
		return false, d.file(fd, &st, hdr)
	}
	return false, d.put(hdr)
}

// mtabTarget is where the link leads that a start makes.
const mtabTarget = "/proc/mounts"

// subdirectory writes a directory if it differs from what is below, or
// something in it does.
func (d *difference) subdirectory(fd int, st *unix.Stat_t, base, name string, below []int) (stub bool, err error) {
	if overlayNote(fd, "redirect") {
		return false, fmt.Errorf("/%s: overlayfs has renamed the directory without what is in it (redirect_dir=on): %w", name, fs.ErrInvalid)
	}
	old, was := lookup(below, base)
	var merged []int
	if was && old.Mode&unix.S_IFMT == unix.S_IFDIR {
		merged = descend(below, base)
		defer closeAll(merged)
	}
	hdr := header(st, name)
	ownAttributes(fd, hdr)
	if isOpaque(fd) && len(merged) > 0 {
		merged = nil
		if err := d.put(hdr); err != nil {
			return false, err
		}
		if err := d.put(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, opaqueMark), Format: tar.FormatPAX}); err != nil {
			return false, err
		}
		_, err := d.inside(fd, hdr.Name, nil)
		return false, err
	}
	wasEntries, wasPending := d.entries, len(d.pending)
	d.pending = append(d.pending, hdr)
	made, err := d.inside(fd, hdr.Name, merged)
	if err != nil || d.entries > wasEntries {
		return false, err
	}
	d.pending = d.pending[:wasPending]
	switch {
	case !was && d.placed("/"+name):
		return true, nil
	case len(merged) > 0 && same(st, &old, !made) && sameAttributes(fd, merged[0]):
		return false, nil // it is here for something that changed nothing
	}
	return false, d.put(hdr)
}

// ownAttributes notes extended attributes, without overlayfs's books.
func ownAttributes(fd int, hdr *tar.Header) {
	xattrs(fd, hdr)
	for name := range hdr.PAXRecords {
		if strings.HasPrefix(name, paxXattr+"user.overlay.") {
			delete(hdr.PAXRecords, name)
		}
	}
}

// sameAttributes compares the extended attributes of two directories.
func sameAttributes(a, b int) bool {
	x, y := tar.Header{Typeflag: tar.TypeDir}, tar.Header{Typeflag: tar.TypeDir}
	ownAttributes(a, &x)
	ownAttributes(b, &y)
	return maps.Equal(x.PAXRecords, y.PAXRecords)
}

// overlayNote tells whether overlayfs has put a note of this kind on a file.
func overlayNote(fd int, kind string) bool {
	for _, space := range []string{"trusted.overlay.", "user.overlay."} {
		if _, err := unix.Getxattr(self(fd), space+kind, nil); err == nil {
			return true
		}
	}
	return false
}
