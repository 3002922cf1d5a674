package logs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// A reader's buffer grows from the first to the second while there is much to read,
	// so that a thousand idle followers cost little.
	firstBlock, readBlock = 8 << 10, 256 << 10
	// maxLine bounds a line, and so a reader's memory. An entry holds 16 kB of
	// output, which escapes make sixfold at most, and the attributes.
	maxLine = 4 << 20
)

// reader gives the lines of a set of files and, following, of those that come after.
type reader struct {
	path     string
	maxFiles int
	o        ReadOptions

	mu     sync.Mutex // held by Next; Close waits for it
	closed chan struct{}
	once   sync.Once

	files []*logFile // the one being read first, newer ones after it
	dec   decoder
	buf   []byte
	start int // of what was read and not yet given, in buf
	end   int
	// dropping: within a line longer than maxLine
	dropping bool
	rest     bool // the unended last line has been given
	hungry   bool // the last read filled the buffer

	count count

	openFile opener

	watch  *watch      // nil: not following
	until  *time.Timer // nil: no end
	ending bool        // what can be read now is all that there will be
}

// Open reads the log at path, whose rotated predecessors are path.1 (the newest) to
// path.(maxFiles-1), each of which may be gzipped with the suffix .gz. A log that is
// not there is an empty one. What is no entry (garbage, halves of lines that a power
// cut left) is skipped. Tail counts lines of the wanted streams within Since
// and Until. Following needs the directory of path to exist and blocks in Next until the
// log grows, Until has come, or o.Ended is closed; across rotations no line is lost or
// given twice as long as the reader is less than maxFiles behind. A reader that was slower is
// told by a line of the engine's own how many it missed, before the first line it has again. Next and Close
// of the Reader may be called from two goroutines; Next after Close gives io.EOF.
// ErrInvalidArgument when no stream is wanted.
func Open(path string, maxFiles int, o ReadOptions) (Reader, error) {
	if !o.Stdout && !o.Stderr {
		return nil, fmt.Errorf("log %s: you must choose at least one stream: %w", path, errdefs.ErrInvalidArgument)
	}
	r := &reader{path: path, maxFiles: maxFiles, o: o, closed: make(chan struct{}), dec: decoder{details: o.Details}, openFile: openLog}
	if err := r.open(); err != nil {
		r.Close()
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	return r, nil
}

func (r *reader) open() (err error) {
	if r.o.Follow {
		if !r.o.Until.IsZero() {
			r.until = time.NewTimer(max(0, time.Until(r.o.Until)))
		}
		// Watch first: what happens while the files are opened is then told.
		if r.watch, err = watchDir(filepath.Dir(r.path)); err != nil {
			return err
		}
	}
	if r.files, err = openSet(r.openFile, r.path, r.maxFiles); err != nil {
		return err
	}
	if r.count.next = -1; len(r.files) == 0 {
		r.count.next = 0 // a log that is not there has had no line
	}
	r.dropOld()
	if r.o.Tail >= 0 {
		return r.tail(r.o.Tail)
	}
	return r.skipBefore()
}

// dropOld leaves out files that were last written before anything wanted.
func (r *reader) dropOld() {
	if r.o.Since.IsZero() {
		return
	}
	// A file's time is the kernel's, which may lag behind the stamps by a tick.
	since := r.o.Since.Add(-time.Second)
	for len(r.files) > 1 && r.files[0].info.ModTime().Before(since) {
		r.files[0].close()
		r.files = r.files[1:]
	}
}

func (r *reader) wants(stream string) bool {
	return stream == "stdout" && r.o.Stdout || stream == "stderr" && r.o.Stderr
}

// Close ends the reader; a Next that waits returns io.EOF.
func (r *reader) Close() error {
	r.once.Do(func() {
		close(r.closed)
		r.mu.Lock()
		defer r.mu.Unlock()
		closeAll(r.files)
		r.files = nil
		if r.watch != nil {
			r.watch.close()
		}
		if r.until != nil {
			r.until.Stop()
		}
	})
	return nil
}

// Hold opens all files that came after those the reader knows.
func (r *reader) Hold() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.closed:
		return nil
	default:
	}
	set, err := openSet(r.openFile, r.path, r.maxFiles)
	if err != nil {
		return fmt.Errorf("log %s: %w", r.path, err)
	}
	var last *logFile
	if n := len(r.files); n > 0 {
		last = r.files[n-1]
	}
	r.files = append(r.files, newerThan(last, set)...)
	return nil
}

// Next gives the next wanted line.
func (r *reader) Next() (Line, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		select {
		case <-r.closed:
			return Line{}, io.EOF
		default:
		}
		l, ok, idle, err := r.step()
		if err != nil && err != io.EOF {
			err = fmt.Errorf("log %s: %w", r.path, err)
		}
		if err != nil || ok {
			return l, err
		}
		if idle {
			r.wait()
		}
	}
}

// step gives a line (ok), or comes nearer to one, or finds that there is nothing to do
// before something changes (idle).
func (r *reader) step() (l Line, ok, idle bool, err error) {
	if !r.count.quiet && r.count.missed != (Gap{}) {
		return r.missedLine(), true, false, nil
	}
	for {
		raw, ok := r.rawLine()
		if !ok {
			break
		}
		if l, ok := r.pick(raw); ok {
			if !r.o.Until.IsZero() && l.Time.After(r.o.Until) {
				return Line{}, false, false, io.EOF
			}
			return l, true, false, nil
		}
	}
	n, err := r.fill()
	if err != nil || n > 0 {
		return Line{}, false, false, err
	}
	return r.atEnd()
}

// pick decodes a line if it is wanted. Lines before Since are passed over by their
// stamp alone, which is many times faster.
func (r *reader) pick(raw []byte) (Line, bool) {
	if !r.o.Since.IsZero() {
		if t, ok := r.dec.stamp(raw); ok && t.Before(r.o.Since) {
			return Line{}, false
		}
	}
	var l Line
	if !r.dec.decode(raw, &l) || !r.wants(l.Stream) || l.Time.Before(r.o.Since) {
		return Line{}, false
	}
	return l, true
}

// rawLine takes a line that ends out of the buffer.
func (r *reader) rawLine() ([]byte, bool) {
	for {
		i := bytes.IndexByte(r.buf[r.start:r.end], '\n')
		if i < 0 {
			return nil, false
		}
		line := r.buf[r.start : r.start+i]
		r.start += i + 1
		r.files[0].lines++
		if !r.dropping {
			return line, true
		}
		r.dropping = false
	}
}

// fill reads on into the buffer; 0: nothing more in this file now.
func (r *reader) fill() (int, error) {
	if len(r.files) == 0 {
		return 0, nil
	}
	if r.start > 0 {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	if r.end > maxLine {
		r.end, r.dropping = 0, true
	}
	if len(r.buf) == 0 || r.hungry && len(r.buf) < readBlock || r.end > len(r.buf)/2 {
		grown := make([]byte, max(firstBlock, 2*len(r.buf)))
		copy(grown, r.buf[:r.end])
		r.buf = grown
	}
	n, err := r.files[0].read(r.buf[r.end:])
	r.end += n
	r.hungry = r.end == len(r.buf)
	if n > 0 {
		r.rest = false
		r.enter(r.files[0])
	}
	return n, err
}

// atEnd decides what comes after the end of a file: a line that it ends in (ok), the next
// file or something new (neither ok nor idle), nothing for now (idle), or io.EOF.
func (r *reader) atEnd() (l Line, ok, idle bool, err error) {
	if len(r.files) > 1 {
		if l, ok := r.unended(); ok {
			return l, true, false, nil
		}
		r.leave(r.files[0])
		r.files[0].close()
		r.files = r.files[1:]
		r.start, r.end, r.dropping, r.rest = 0, 0, false, false
		return Line{}, false, false, nil
	}
	if r.watch != nil {
		if more, err := r.successors(); more || err != nil {
			return Line{}, false, false, err
		}
		if !r.ending {
			return Line{}, false, true, nil
		}
	}
	if l, ok := r.unended(); ok {
		return l, true, false, nil
	}
	if r.lastGap() {
		return Line{}, false, false, nil
	}
	return Line{}, false, false, io.EOF
}

// unended gives, once, the entry that a file ends in without a newline: all but the
// newline may have reached the disk before the power went.
func (r *reader) unended() (Line, bool) {
	if r.rest || r.dropping || r.start == r.end {
		return Line{}, false
	}
	r.rest = true
	return r.pick(r.buf[r.start:r.end])
}

// successors looks, at the end of the newest file known, for files that came after it,
// and reports whether there is more to read. The writer goes over to the new file
// when path names it, so the old one is complete once it does; it is read to its
// end once more after that.
func (r *reader) successors() (more bool, err error) {
	st, err := os.Stat(r.path)
	// Not there: between the two steps of a rotation, or never written, or removed.
	missing := os.IsNotExist(err)
	if err != nil && !missing {
		return false, err
	}
	var current *logFile
	if len(r.files) == 1 {
		current = r.files[0]
		if !missing && current.is(st) {
			if st.Size() >= current.off-int64(r.end-r.start) {
				return false, nil
			}
			r.beginAgain(current)
			return st.Size() > 0, nil
		}
	}
	set, err := openSet(r.openFile, r.path, r.maxFiles)
	if err != nil {
		return false, err
	}
	away := current != nil && !slices.ContainsFunc(set, func(o *logFile) bool { return current.is(o.info) })
	newer := newerThan(current, set)
	r.files = append(r.files, newer...)
	if len(newer) > 0 {
		r.count.gap = r.count.gap || away // files between may have come and gone
		return true, nil
	}
	return missing && current != nil && r.letGo(current), nil
}

// beginAgain goes to the beginning of a file that was cut back beyond the line being
// read. The lines that were read of it keep their numbers: the writer counts on.
func (r *reader) beginAgain(l *logFile) {
	if l.skipped > 0 {
		l.base, l.skipped = -1, 0 // what was passed over cannot be counted any more
		r.count.next = -1
	}
	l.off, l.named = 0, false
	r.start, r.end, r.dropping = 0, 0, false
}

// letGo closes a file that has no name any more, in two calls, between which it is to be
// read to its end: it may have grown before it was removed. An open file keeps the
// kernel from telling that its directory was removed. more: read on.
func (r *reader) letGo(l *logFile) (more bool) {
	if !l.gone() {
		return false
	}
	if !l.unlinked {
		l.unlinked = true
		return true
	}
	if st, err := l.f.Stat(); err == nil {
		l.last = st.ModTime()
	}
	r.leave(l)
	l.close()
	return false
}

// wait blocks until something may have changed. A line of which only half is there is
// read anew then: a monitor takes back what a full disk left of it.
func (r *reader) wait() {
	if len(r.files) == 1 && r.files[0].gz == nil && !r.dropping {
		r.files[0].off -= int64(r.end - r.start)
		r.start, r.end = 0, 0
	}
	var until <-chan time.Time
	if r.until != nil {
		until = r.until.C
	}
	select {
	case <-r.watch.wake:
		r.ending = r.watch.gone()
	case <-r.closed:
	case <-r.o.Ended:
		r.ending = true
	case <-until:
		r.ending = true
	}
}
