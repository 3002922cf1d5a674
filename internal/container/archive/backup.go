package archive

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Backup writes all of a tree as a tar archive from which Stage makes it again: owners,
// modes, times to the nanosecond, extended attributes, hard links, devices, and the
// holes of files; the first entry is the tree's own directory. What a restoration
// has in hand is left out. What changes meanwhile may go in half changed. It blocks for the
// disk and w, and ends at the next file when ctx ends.
func Backup(ctx context.Context, root *os.File, w io.Writer) error {
	p := newPacker(ctx, w)
	p.attrs, p.exact, p.out = everyAttribute, true, w
	fd := int(root.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	hdr := p.header(&st, "./")
	p.attrs(fd, hdr)
	if err := p.tw.WriteHeader(hdr); err != nil {
		return err
	}
	names, err := list(fd)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, isStaging)
	if err := p.each(fd, "", names); err != nil {
		return err
	}
	return p.tw.Close()
}

// everyAttribute notes all extended attributes but those that are the file system's
// own books.
func everyAttribute(fd int, hdr *tar.Header) {
	attributes(fd, hdr, func(name string) bool {
		return strings.HasPrefix(name, "user.") || name == "security.capability" || strings.HasPrefix(name, "system.posix_acl_") ||
			strings.HasPrefix(name, "trusted.") && !strings.HasPrefix(name, "trusted.overlay.")
	})
}

// span is a part of a file that holds data.
type span struct{ at, n int64 }

// minHoles is how much of a file must be holes for an archive to tell of them.
const minHoles = 64 << 10

// spans finds where a file has data; nil: everywhere, or as good as.
func spans(f *os.File, st *unix.Stat_t) []span {
	if st.Size-st.Blocks*512 < minHoles {
		return nil
	}
	out := []span{}
	var data int64
	for at := int64(0); at < st.Size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole to the end
		}
		end := st.Size
		if err == nil {
			end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		}
		if err != nil || begin < at || end <= begin {
			return nil // the file system does not tell
		}
		end = min(end, st.Size)
		if begin < end {
			out = append(out, span{begin, end - begin})
			data += end - begin
		}
		at = end
	}
	if st.Size-data < minHoles {
		return nil
	}
	return out
}

// sparse writes a file with holes, in the form that GNU tar calls PAX 1.0
// (https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html): the data
// begins with a list of where it belongs. The library reads that but cannot write it.
func (p *packer) sparse(f *os.File, hdr *tar.Header, parts []span) error {
	if err := p.tw.Flush(); err != nil {
		return err
	}
	var plan strings.Builder
	fmt.Fprintf(&plan, "%d\n", len(parts)+1)
	size := int64(0)
	for _, s := range append(slices.Clone(parts), span{at: hdr.Size}) { // the last one tells where the file ends
		fmt.Fprintf(&plan, "%d\n%d\n", s.at, s.n)
		size += s.n
	}
	list := padded(plan.String())
	size += int64(len(list))
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": hdr.Name, "GNU.sparse.realsize": strconv.FormatInt(hdr.Size, 10),
		"size": strconv.FormatInt(size, 10), "uid": strconv.Itoa(hdr.Uid), "gid": strconv.Itoa(hdr.Gid),
		"mtime": fmt.Sprintf("%d.%09d", hdr.ModTime.Unix(), hdr.ModTime.Nanosecond()),
	}
	for k, v := range hdr.PAXRecords {
		records[k] = v
	}
	var pax strings.Builder
	for _, k := range sorted(records) {
		pax.WriteString(paxRecord(k, records[k]))
	}
	for _, b := range []string{block('x', 0o644, int64(pax.Len())), padded(pax.String()), block('0', hdr.Mode, size), list} {
		if _, err := io.WriteString(p.out, b); err != nil {
			return err
		}
	}
	for _, s := range parts {
		if _, err := f.Seek(s.at, io.SeekStart); err != nil {
			return err
		}
		if err := p.content(f, s.n, p.out); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
	}
	_, err := p.out.Write(make([]byte, -size&511))
	return err
}

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// padded fills s up to whole blocks.
func padded(s string) string { return s + strings.Repeat("\x00", -len(s)&511) }

// paxRecord is one of an extended header; its length counts itself.
func paxRecord(k, v string) string {
	n := len(k) + len(v) + 3
	size := n + len(strconv.Itoa(n))
	size = n + len(strconv.Itoa(size))
	return strconv.Itoa(size) + " " + k + "=" + v + "\n"
}

// block is the header of an entry whose name, size, owner and time stand in an
// extended header. A size that does not fit is left to that, too.
func block(kind byte, mode, size int64) string {
	b := make([]byte, 512)
	copy(b, "GNUSparseFile.0/file")
	copy(b[100:], fmt.Sprintf("%07o\x00", mode&0o7777))
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	if size > 0o77777777777 {
		size = 0
	}
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	copy(b[148:], "        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(b)
}

// hasHoles tells whether an entry was archived as a file with holes.
func hasHoles(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// holeBlock is the least that is left out of a file as a hole.
const holeBlock = 4 << 10

// copyWithHoles writes the content of the present entry, without what is zero.
func (u *unpacker) copyWithHoles(f *os.File, size int64) error {
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(u.tr, u.buf)
		for at := 0; at < n; {
			end, zero := run(u.buf[at:n])
			end += at
			if zero {
				_, werr := f.Seek(int64(end-at), io.SeekCurrent)
				if werr != nil {
					return werr
				}
			} else if _, werr := f.Write(u.buf[at:end]); werr != nil {
				return werr
			}
			at = end
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF && u.whole(f, size) {
			return f.Truncate(size)
		}
		if err != nil {
			return badArchive(err)
		}
	}
}

// whole tells whether all of an entry's content has been taken: then the short read
// was its end, and not that of a stream that was cut off.
func (u *unpacker) whole(f *os.File, size int64) bool {
	at, err := f.Seek(0, io.SeekCurrent)
	return err == nil && at == size
}

// run is how far b goes on as it begins: zeros in whole blocks, or not.
func run(b []byte) (n int, zero bool) {
	zero = isZero(b[:min(len(b), holeBlock)])
	for n < len(b) {
		end := min(n+holeBlock, len(b))
		if isZero(b[n:end]) != zero {
			break
		}
		n = end
	}
	return n, zero
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// modTime is a file's time, whole seconds unless it has to be exact.
func modTime(st *unix.Stat_t, exact bool) time.Time {
	if exact {
		return time.Unix(st.Mtim.Unix())
	}
	return time.Unix(st.Mtim.Sec, 0)
}

// isStaging tells the names under which restorations keep what they have in hand.
func isStaging(name string) bool { return strings.HasPrefix(name, stagingName) }
