package logs

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// logFile is one file of a log: the current one, or a predecessor, perhaps compressed.
type logFile struct {
	f    *os.File
	info fs.FileInfo  // when it was opened
	gz   *gzip.Reader // nil: plain
	off  int64        // of what was read so far, unpacked

	lines   int64 // taken from it
	skipped int64 // bytes at its beginning that were passed over

	entered bool  // something of it was read, and base is final
	base    int64 // lines of the log before it, once entered; negative: not known
	left    bool  // the reader has added its lines to those it knows of
	head    int64 // time of its first line, once asked for
	named   bool  // head was asked for

	unlinked bool      // seen to have no name any more
	last     time.Time // of its last change; set when it was let go of for that
}

// openLog opens one file, or its .gz; nil when neither is there.
func openLog(path string, mayBeZipped bool) (*logFile, error) {
	f, err := os.Open(path)
	zipped := false
	if errors.Is(err, fs.ErrNotExist) && mayBeZipped {
		f, err = os.Open(path + ".gz")
		zipped = true
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	l := &logFile{f: f}
	if l.info, err = f.Stat(); err == nil && !l.info.Mode().IsRegular() {
		err = fmt.Errorf("log %s: not a regular file", path)
	}
	if err == nil && zipped {
		err = l.rewind()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// rewind begins a compressed file, or begins it again. A damaged one reads as empty.
func (l *logFile) rewind() error {
	if _, err := l.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	l.off = 0
	gz, err := gzip.NewReader(l.f)
	if err != nil {
		gz = new(gzip.Reader)
		_ = gz.Reset(eofReader{}) // reads as empty
	}
	l.gz = gz
	return nil
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

// read takes what follows; 0 bytes: the end, for now. A damaged compressed file ends
// where the damage begins.
func (l *logFile) read(p []byte) (int, error) {
	if !l.last.IsZero() {
		return 0, nil
	}
	if l.gz != nil {
		n, err := l.gz.Read(p)
		for n == 0 && err == nil {
			n, err = l.gz.Read(p)
		}
		l.off += int64(n)
		return n, nil
	}
	n, err := l.f.ReadAt(p, l.off)
	l.off += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// gone reports whether an open file has no name any more.
func (l *logFile) gone() bool {
	st, err := l.f.Stat()
	if err != nil {
		return false // let go of before
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}

// is reports whether info is of this file. The number of a file that was let go of may
// belong to another one by now.
func (l *logFile) is(info fs.FileInfo) bool {
	return l.last.IsZero() && os.SameFile(l.info, info)
}

// behind is the number of the line after the last of a file that was read to its end,
// where before is that of the files before it. Negative: not known.
func (l *logFile) behind(before int64) int64 {
	if !l.entered { // it is empty
		if before < 0 {
			return baseOf(l)
		}
		return before
	}
	if l.base >= 0 {
		before = l.base
	} // else it is taken to go on where the one before ended; the next number corrects that
	if before < 0 {
		return -1
	}
	n, err := l.linesUntil(l.skipped)
	if err != nil {
		return -1
	}
	return before + n + l.lines
}

// linesUntil counts the lines of a plain file before an offset.
func (l *logFile) linesUntil(end int64) (lines int64, err error) {
	buf := make([]byte, min(end, 64<<10))
	for pos := int64(0); pos < end; {
		n, err := l.f.ReadAt(buf[:min(int64(len(buf)), end-pos)], pos)
		if n == 0 && err != nil {
			return 0, err
		}
		lines += int64(bytes.Count(buf[:n], []byte{'\n'}))
		pos += int64(n)
	}
	return lines, nil
}

func (l *logFile) close() { _ = l.f.Close() } // only read from

func closeAll(files []*logFile) {
	for _, l := range files {
		l.close()
	}
}

// openAttempts bounds how often a rotation may come between while a set is opened.
const openAttempts = 50

// opener is openLog, or what a test puts before it.
type opener func(path string, mayBeZipped bool) (*logFile, error)

// openSet opens all files of a log as they stand at one moment, oldest first. The
// current one may be missing: then the last is a predecessor, or there is none.
func openSet(open opener, path string, maxFiles int) ([]*logFile, error) {
	for attempt := 1; ; attempt++ {
		set, whole, err := tryOpenSet(open, path, maxFiles)
		if err != nil {
			return nil, err
		}
		if whole {
			return set, nil
		}
		if attempt == openAttempts {
			return inOrder(set), nil
		}
		closeAll(set)
	}
}

// inOrder makes a set of one that files were renamed under: each file once, the
// oldest first. Some may be missing.
func inOrder(set []*logFile) []*logFile {
	var out []*logFile
	known := true
	for _, l := range set {
		if slices.ContainsFunc(out, func(o *logFile) bool { return os.SameFile(o.info, l.info) }) {
			l.close()
			continue
		}
		known = known && number(l) >= 0
		out = append(out, l)
	}
	slices.SortStableFunc(out, func(a, b *logFile) int {
		if known {
			return cmp.Compare(number(a), number(b))
		}
		return a.info.ModTime().Compare(b.info.ModTime())
	})
	return out
}

// number is what a file has before it, to tell which of two is older; of one that was
// made this moment and has no number yet, the highest there is.
func number(l *logFile) int64 {
	base := baseOf(l)
	if base < 0 && l.gz == nil && l.info.Size() == 0 {
		return math.MaxInt64
	}
	return base
}

// tryOpenSet opens from the newest to the oldest, against the direction in which
// files are renamed: a rotation in between shows as a file met twice or as
// another current file afterwards. whole is then false.
func tryOpenSet(open opener, path string, maxFiles int) (set []*logFile, whole bool, err error) {
	whole = true
	current := false // path was there
	missing := 0     // in a row; the one that a rotation under way has just moved may be
	for n := 0; n < max(1, maxFiles) && missing < 2; n++ {
		name := path
		if n > 0 {
			name += "." + strconv.Itoa(n)
		}
		l, err := open(name, n > 0)
		if err != nil {
			closeAll(set)
			return nil, false, err
		}
		if l == nil {
			if n > 0 {
				missing++
			}
			continue
		}
		missing = 0
		current = current || n == 0
		if slices.ContainsFunc(set, func(o *logFile) bool { return os.SameFile(o.info, l.info) }) {
			whole = false
		}
		set = append(set, l)
	}
	if len(set) > 0 && whole {
		now, err := os.Stat(path)
		if err == nil && !os.SameFile(now, set[0].info) || err != nil && current {
			whole = false
		}
	}
	slices.Reverse(set)
	// Without a current file several rotations may have passed unseen but for this.
	for i := 1; i < len(set); i++ {
		if a, b := number(set[i-1]), number(set[i]); a >= 0 && b >= 0 && a > b {
			whole = false
		}
	}
	return set, whole, nil
}

// newerThan keeps, of a set, the files that came after l, and closes the others.
// When l is no longer among them (removed, or compressed by somebody) the numbers of
// their lines decide; where there are none, the time of the last change.
func newerThan(l *logFile, set []*logFile) []*logFile {
	if l == nil {
		return set
	}
	i := slices.IndexFunc(set, func(o *logFile) bool { return l.is(o.info) })
	if i < 0 {
		last, base := l.last, l.base
		if st, err := l.f.Stat(); err == nil {
			last = st.ModTime()
		}
		if !l.entered {
			base = baseOf(l)
		}
		older := func(o *logFile) bool {
			if n := number(o); n >= 0 && base >= 0 {
				return n < base
			}
			return o.info.ModTime().Before(last)
		}
		for i+1 < len(set) && older(set[i+1]) {
			i++
		}
	}
	closeAll(set[:i+1])
	return set[i+1:]
}
