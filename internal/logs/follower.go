package logs

import (
	"bytes"
	"fmt"
	"strconv"

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

// Number is that of the line at the place; negative: not known.
func (p Position) Number() int64 {
	if p.Base < 0 {
		return -1
	}
	return p.Base + p.Lines
}

// Follower reads a log from a Position on and goes on with what is written. It is for
// those that hand lines on and must know how far they came and what they missed.
type Follower struct{ r *reader }

// Follow opens the log at path behind a Position. Where the place is no longer there the
// oldest line is the next, and Gap tells what lay between. Next blocks until the log grows or
// ended is closed and everything was read; see Open for the rest.
func Follow(path string, maxFiles int, from Position, ended <-chan struct{}) (*Follower, error) {
	o := ReadOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true, Ended: ended}
	r := &reader{path: path, maxFiles: maxFiles, o: o, closed: make(chan struct{}), openFile: openLog}
	r.count.quiet = true
	if err := r.open(); err != nil {
		_ = r.Close() // the first error is the one to tell
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	f := &Follower{r: r}
	f.seek(from)
	return f, nil
}

// seek goes to a place, if it is there. Else it was rotated away, and the number of the
// first line that is read tells how many others were.
func (f *Follower) seek(from Position) {
	for i, l := range f.r.files {
		if from.Head == 0 || headOf(l, &f.r.dec) != from.Head {
			continue
		}
		closeAll(f.r.files[:i])
		f.r.files = f.r.files[i:]
		if st, err := l.f.Stat(); err == nil && st.Size() >= from.Offset {
			l.off, l.lines = from.Offset, from.Lines
		}
		f.r.enter(l) // it has a line
		return
	}
	f.r.count.next, f.r.count.gap = from.Number(), true
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
func (f *Follower) Next() (Line, error) { return f.r.Next() }

// Position is the place behind the line that Next gave last; the zero value when
// that file cannot be told from others.
func (f *Follower) Position() Position {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if len(f.r.files) == 0 || !f.r.files[0].entered {
		return Position{}
	}
	l := f.r.files[0]
	if !l.named {
		l.head, l.named = headOf(l, &f.r.dec), true
	}
	if l.head == 0 {
		return Position{}
	}
	return Position{Head: l.head, Offset: l.off - int64(f.r.end-f.r.start), Lines: l.lines, Base: l.base}
}

// Gap tells, once, what was missed before the line that Next gave last; after Next's
// io.EOF, what was missed at the end of the log.
func (f *Follower) Gap() Gap {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	g := f.r.count.missed
	f.r.count.missed = Gap{}
	return g
}

// Hold opens all files that belong to the log; see Reader.
func (f *Follower) Hold() error { return f.r.Hold() }

// Close ends the follower; a Next that waits returns io.EOF.
func (f *Follower) Close() error { return f.r.Close() }
