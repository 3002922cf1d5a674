package monitor

import (
	"bytes"
	"syscall"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

// flushAt is how many bytes of formatted lines are gathered for one write.
const flushAt = 32 << 10

// logFile writes the container's log. Whatever becomes of the disk, the
// container goes on: lines that cannot be written are counted and dropped, and
// the count is written once writing works again.
type logFile struct {
	path  string
	attrs string
	max   int64 // bytes; 0: unbounded
	files int

	fd    int
	size  int64
	out   []byte
	clock format.Clock
	lost  int64
	why   error // the first error of the lines lost

	base  int64 // lines of the log before this file; negative: not known
	found int64 // bytes of this file whose lines were not counted
	lines int64 // written to this file behind them
}

// openLog opens the file that cfg names, or makes it.
func openLog(path, attrs string, size int64, files int) (*logFile, error) {
	l := &logFile{path: path, attrs: attrs, max: max(size, 0), files: max(files, 1), fd: -1,
		out: make([]byte, 0, flushAt+format.Bound(format.MaxText, len(attrs)))} // only what is used costs memory
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	fd, err := open(l.path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT, 0o640)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd) // the first error is the one to tell
		return err
	}
	l.fd, l.size = fd, mendTorn(fd, st.Size)
	l.number()
	return nil
}

// number finds out how many lines the log has before the file in use, which an earlier
// monitor may have left, or an earlier one that was killed amid a rotation not even made.
func (l *logFile) number() {
	l.found, l.lines = l.size, 0
	n, ok := numberOf(l.fd)
	if ok || l.size > 0 {
		l.base = n
		return
	}
	if l.base = l.behindFirst(); !setNumber(l.fd, l.base) {
		l.base = -1
	}
}

// behindFirst is the number of the line after the last of .1; negative: not known.
func (l *logFile) behindFirst() int64 {
	fd, err := open(l.numbered(1), unix.O_RDONLY, 0)
	if err == unix.ENOENT {
		return 0
	} else if err != nil {
		return -1
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	base, ok := numberOf(fd)
	if !ok || unix.Fstat(fd, &st) != nil {
		return -1
	}
	lines, ok := countLines(fd, st.Size)
	if !ok {
		return -1
	}
	return base + lines
}

// numberOf is how many lines the log had before a file; -1 and false: it does not say.
func numberOf(fd int) (int64, bool) {
	var buf [24]byte
	if n, err := unix.Fgetxattr(fd, format.LinesBefore, buf[:]); err == nil {
		if base, ok := atoi(buf[:n]); ok {
			return base, true
		}
	}
	return -1, false
}

// setNumber notes the number in a file; false: there is none, or the file system keeps none.
func setNumber(fd int, base int64) bool {
	return base >= 0 && unix.Fsetxattr(fd, format.LinesBefore, []byte(itoa(base)), 0) == nil
}

// behind is the number of the line after the last of the file in use; negative: not known.
func (l *logFile) behind() int64 {
	if l.base < 0 {
		return -1
	}
	before, ok := countLines(l.fd, l.found)
	if !ok {
		return -1
	}
	return l.base + before + l.lines
}

// countLines counts the lines in the first bytes of a file.
func countLines(fd int, end int64) (lines int64, ok bool) {
	var buf [16 << 10]byte
	for at := int64(0); at < end; {
		n, err := unix.Pread(fd, buf[:min(int64(len(buf)), end-at)], at)
		if err != nil || n <= 0 {
			return 0, false
		}
		lines += int64(bytes.Count(buf[:n], newline))
		at += int64(n)
	}
	return lines, true
}

// mendTorn removes the beginning of a line that a crash left at the file's end, and ends
// one that lacks nothing else: readers have shown it.
func mendTorn(fd int, size int64) int64 {
	var buf [4096]byte
	for end := size; end > 0; {
		from := max(0, end-int64(len(buf)))
		n, err := unix.Pread(fd, buf[:end-from], from)
		if err != nil || n != int(end-from) {
			return size
		}
		if end == size && lacksNewline(buf[:n]) {
			if n, err := unix.Write(fd, newline); n == 1 && err == nil {
				return size + 1
			}
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 || from == 0 {
			if whole := from + int64(i) + 1; whole < size && unix.Ftruncate(fd, whole) == nil {
				return whole
			}
			return size
		}
		end = from
	}
	return size
}

// lacksNewline reports whether text ends as an entry does, but for the newline. Within an
// entry's strings quotes are escaped.
func lacksNewline(text []byte) bool {
	text, ok := bytes.CutSuffix(text, []byte(`Z"}`))
	return ok && bytes.HasSuffix(text[:bytes.LastIndexByte(text, '"')+1], []byte(`,"time":"`))
}

// write takes what a stream of the container carried.
func (l *logFile) write(split *format.Splitter, stream string, data []byte) {
	l.setClock()
	for {
		entry, left, ok := split.Next(data)
		if !ok {
			break
		}
		l.add(entry, stream)
		data = left
	}
	l.flush()
}

// end takes the text of a stream's last line, which no newline ended.
func (l *logFile) end(split *format.Splitter, stream string) {
	if rest := split.Rest(); len(rest) > 0 {
		l.setClock()
		l.add(rest, stream)
	}
	l.flush()
}

// setClock reads the time once for a batch. Lines never go back in time unless
// someone set the clock back by more than a second.
func (l *logFile) setClock() {
	ts := now()
	if l.clock.Before(ts.Sec, int32(ts.Nsec)) || l.clock.Seconds() > ts.Sec+1 {
		l.clock.Set(ts.Sec, int32(ts.Nsec))
	}
}

func (l *logFile) add(entry []byte, stream string) {
	if l.max > 0 && l.size+int64(len(l.out)) >= l.max {
		l.flush()
		if l.size >= l.max { // not when the lines were lost
			l.rotate()
		}
	} else if len(l.out) >= flushAt {
		l.flush()
	}
	l.clock.Tick()
	l.out = format.Append(l.out, entry, stream, l.attrs, &l.clock)
}

func (l *logFile) flush() {
	if len(l.out) == 0 && l.lost == 0 {
		return
	}
	if l.lost > 0 {
		note := "escale: " + itoa(l.lost) + " log lines lost: " + l.why.Error() + "\n"
		if l.put(format.Append(nil, []byte(note), "stderr", l.attrs, &l.clock)) == nil {
			l.lost, l.why = 0, nil
		}
	}
	if l.lost > 0 {
		l.lost += int64(bytes.Count(l.out, newline))
	} else if err := l.put(l.out); err != nil {
		l.why = err
	}
	l.out = l.out[:0]
}

var newline = []byte{'\n'}

// put writes whole lines. What an error leaves of them is counted as lost, and
// a line half written is taken back.
func (l *logFile) put(lines []byte) error {
	n, err := writeAll(l.fd, lines)
	if err == nil {
		l.size += int64(n)
		l.lines += int64(bytes.Count(lines, newline))
		return nil
	}
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	l.size += int64(whole)
	l.lines += int64(bytes.Count(lines[:whole], newline))
	if whole < n {
		_ = unix.Ftruncate(l.fd, l.size) // readers skip a torn line
	}
	if l.lost == 0 { // the note about lost lines is none of them
		l.lost += int64(bytes.Count(lines[whole:], newline))
	}
	return err
}

// rotate makes the next file, with its number, before it moves the one in use to .1, .1 to
// .2 and so on, and puts the next in its place. When that cannot be, the file in use goes on.
func (l *logFile) rotate() {
	next := l.path + ".next"
	fd, err := open(next, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_TRUNC, 0o640)
	if err != nil {
		return
	}
	base := l.behind()
	if !setNumber(fd, base) {
		base = -1
		_ = unix.Fremovexattr(fd, format.LinesBefore) // of a file that a killed monitor left
	}
	for i := l.files - 1; i > 1; i-- {
		_ = syscall.Rename(l.numbered(i-1), l.numbered(i)) // it need not be there
	}
	moved := false
	if l.files > 1 {
		err = syscall.Rename(l.path, l.numbered(1))
		if moved = err == nil; err == syscall.ENOENT {
			err = nil // somebody removed it
		}
	}
	if err == nil {
		if err = syscall.Rename(next, l.path); err != nil && moved {
			_ = syscall.Rename(l.numbered(1), l.path) // else readers find it under .1
		}
	}
	if err != nil {
		_ = unix.Unlink(next) // else the next rotation takes it
		_ = unix.Close(fd)
		return
	}
	_ = unix.Close(l.fd) // everything was written
	l.fd, l.size, l.base, l.found, l.lines = fd, 0, base, 0, 0
}

func (l *logFile) numbered(n int) string { return l.path + "." + itoa(int64(n)) }

func (l *logFile) close() {
	l.flush()
	_ = unix.Close(l.fd) // everything was written
	l.fd = -1
}
