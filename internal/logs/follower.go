package logs

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

// Position is a place in a log that survives rotations, restarts of the engine and of
// the machine. A file is known by the time of its first line, because no two
// lines of a log have one. The zero value is the oldest line there is.
type Position struct {
	Head   int64 // time of the file's first line, in nanoseconds of the epoch
	Offset int64 // in that file, in bytes, at the beginning of a line
	Lines  int64 // of that file before Offset
	Base   int64 // lines of all files before it; negative: not known
}

// Follower reads a log from a Position on and goes on with what is written. It is for
// those that hand lines on and must know how far they came and what they missed.
type Follower struct {
	r *reader

	cur  *logFile // the one that head and base belong to
	head int64
	base int64

	mu    sync.Mutex // not r.mu, which is held while Next waits
	lost  int64
	blind bool
}

// Follow opens the log at path behind a Position. Where the place is no longer there the
// oldest line is the next, and Lost tells. Next blocks until the log grows or
// ended is closed and everything was read; see Open for the rest.
func Follow(path string, maxFiles int, from Position, ended <-chan struct{}) (*Follower, error) {
	o := ReadOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true, Ended: ended}
	r := &reader{path: path, maxFiles: maxFiles, o: o, closed: make(chan struct{}), quiet: true}
	if err := r.open(); err != nil {
		_ = r.Close() // the first error is the one to tell
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	f := &Follower{r: r, base: -1}
	if from.Head != 0 {
		f.seek(from)
	}
	return f, nil
}

// seek goes to a place, if it is there.
func (f *Follower) seek(from Position) {
	for i, l := range f.r.files {
		head, base := f.identify(l)
		if head != from.Head {
			continue
		}
		closeAll(f.r.files[:i])
		f.r.files = f.r.files[i:]
		f.cur, f.head, f.base = l, head, base
		if st, err := l.f.Stat(); err == nil && st.Size() >= from.Offset {
			l.off, l.lines = from.Offset, from.Lines
		}
		return
	}
	// Rotated away. What the files still there have before them tells how much went.
	if len(f.r.files) == 0 {
		return
	}
	l := f.r.files[0]
	f.cur = l
	f.head, f.base = f.identify(l)
	f.missed(from.Base, from.Lines, true)
}

// missed counts the lines between what was read to its end and the present file.
func (f *Follower) missed(base, lines int64, gap bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if base < 0 || f.base < 0 {
		f.blind = f.blind || gap
		return
	}
	f.lost += max(0, f.base-base-lines)
}

// identify reads what tells a file from others.
func (f *Follower) identify(l *logFile) (head, base int64) {
	return headOf(l, &f.r.dec), baseOf(l)
}

func headOf(l *logFile, dec *decoder) int64 {
	if l.gz != nil {
		return 0 // somebody else compressed it: nothing goes on in it
	}
	buf := make([]byte, 4<<10)
	for {
		n, _ := l.f.ReadAt(buf, 0) // what is there is enough or not
		if i := bytes.IndexByte(buf[:n], '\n'); i >= 0 {
			var line Line
			if t, ok := dec.stamp(buf[:i]); ok {
				return t.UnixNano()
			}
			if dec.decode(buf[:i], &line) {
				return line.Time.UnixNano()
			}
			return 0
		}
		if n < len(buf) || n >= maxLine {
			return 0
		}
		buf = make([]byte, 4*len(buf))
	}
}

// baseOf is how many lines the log had before this file; negative where the file
// system keeps no attributes, or an older monitor began it.
func baseOf(l *logFile) int64 {
	var buf [24]byte
	n, err := unix.Fgetxattr(int(l.f.Fd()), format.LinesBefore, buf[:])
	if err != nil {
		return -1
	}
	base, err := strconv.ParseInt(string(buf[:n]), 10, 64)
	if err != nil {
		return -1
	}
	return base
}

// Next gives the next line; io.EOF ends the log.
func (f *Follower) Next() (Line, error) {
	line, err := f.r.Next()
	if err != nil {
		return line, err
	}
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if len(f.r.files) > 0 && f.r.files[0] != f.cur {
		before, lines := f.base, int64(0)
		first := f.cur == nil
		if !first {
			lines = f.cur.lines
		}
		f.cur = f.r.files[0]
		f.head, f.base = f.identify(f.cur)
		if !first {
			f.missed(before, lines, f.r.gap)
		}
		f.r.gap = false
	}
	return line, nil
}

// Position is the place behind the line that Next gave last.
func (f *Follower) Position() Position {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.cur == nil || f.head == 0 || len(f.r.files) == 0 || f.r.files[0] != f.cur {
		return Position{}
	}
	off := f.cur.off - int64(f.r.end-f.r.start)
	return Position{Head: f.head, Offset: off, Lines: f.cur.lines, Base: f.base}
}

// Lost tells, once, how many lines were rotated away before they could be read; blind:
// there may be more that cannot be counted.
func (f *Follower) Lost() (lines int64, blind bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines, blind = f.lost, f.blind
	f.lost, f.blind = 0, false
	return lines, blind
}

// Hold opens all files that belong to the log, so that they can be read although they
// are removed. Nothing may write the log any more.
func (f *Follower) Hold() error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	select {
	case <-f.r.closed:
		return nil
	default:
	}
	set, err := openSet(f.r.path, f.r.maxFiles)
	if err != nil {
		return fmt.Errorf("log %s: %w", f.r.path, err)
	}
	var last *logFile
	if n := len(f.r.files); n > 0 {
		last = f.r.files[n-1]
	}
	f.r.files = append(f.r.files, newerThan(last, set)...)
	return nil
}

// Close ends the follower; a Next that waits returns io.EOF.
func (f *Follower) Close() error { return f.r.Close() }
