package logs

import (
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

	lines  int64 // taken from it
	seeked bool  // not from its beginning

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

// letGo closes a file that has no name any more, in two calls, between which it is to be
// read to its end: it may have grown before it was removed. An open file keeps the
// kernel from telling that its directory was removed. more: read on.
func (l *logFile) letGo() (more bool) {
	st, err := l.f.Stat()
	if err != nil {
		return false // let go of before
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Nlink > 0 {
		return false
	}
	if !l.unlinked {
		l.unlinked = true
		return true
	}
	l.last = st.ModTime()
	l.close()
	return false
}

func (l *logFile) close() { _ = l.f.Close() } // only read from

func closeAll(files []*logFile) {
	for _, l := range files {
		l.close()
	}
}

// openAttempts bounds how often a rotation may come between while a set is opened.
const openAttempts = 50

// openSet opens all files of a log as they stand at one moment, oldest first. The
// current one may be missing: then the last is a predecessor, or there is none.
func openSet(path string, maxFiles int) ([]*logFile, error) {
	for attempt := 1; ; attempt++ {
		set, whole, err := tryOpenSet(path, maxFiles)
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
		known = known && baseOf(l) >= 0
		out = append(out, l)
	}
	slices.SortStableFunc(out, func(a, b *logFile) int {
		if known {
			return cmp.Compare(baseOf(a), baseOf(b))
		}
		return a.info.ModTime().Compare(b.info.ModTime())
	})
	return out
}

// tryOpenSet opens from the newest to the oldest, against the direction in which
// files are renamed: a rotation in between shows as a file met twice or as
// another current file afterwards. whole is then false.
func tryOpenSet(path string, maxFiles int) (set []*logFile, whole bool, err error) {
	whole = true
	missing := 0 // in a row; the one that a rotation under way has just moved may be
	for n := 0; n < max(1, maxFiles) && missing < 2; n++ {
		name := path
		if n > 0 {
			name += "." + strconv.Itoa(n)
		}
		l, err := openLog(name, n > 0)
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
		if slices.ContainsFunc(set, func(o *logFile) bool { return os.SameFile(o.info, l.info) }) {
			whole = false
		}
		set = append(set, l)
	}
	if len(set) > 0 {
		now, err := os.Stat(path)
		if err == nil && !os.SameFile(now, set[0].info) {
			whole = false
		}
	}
	slices.Reverse(set)
	return set, whole, nil
}

// newerThan keeps, of a set, the files that came after l, and closes the others.
// When l is no longer among them (removed, or compressed by somebody), the
// time of its last change decides.
func newerThan(l *logFile, set []*logFile) []*logFile {
	if l == nil {
		return set
	}
	i := slices.IndexFunc(set, func(o *logFile) bool { return os.SameFile(o.info, l.info) })
	if i < 0 {
		last := l.last
		if st, err := l.f.Stat(); err == nil {
			last = st.ModTime()
		}
		for i+1 < len(set) && set[i+1].info.ModTime().Before(last) {
			i++
		}
	}
	closeAll(set[:i+1])
	return set[i+1:]
}
