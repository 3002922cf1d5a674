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
	size := trimTorn(fd, st.Size)
	if l.fd >= 0 {
		_ = unix.Close(l.fd) // everything was written
	}
	l.fd, l.size = fd, size
	l.number()
	return nil
}

// number finds out, or notes, how many lines the log has before the open file.
// rotate has left their number in base when the file is a new one.
func (l *logFile) number() {
	l.found, l.lines = l.size, 0
	var buf [24]byte
	if n, err := unix.Fgetxattr(l.fd, format.LinesBefore, buf[:]); err == nil {
		var ok bool
		if l.base, ok = atoi(buf[:n]); !ok {
			l.base = -1
		}
		return
	}
	if l.size > 0 {
		l.base = -1
	}
	if l.base >= 0 && unix.Fsetxattr(l.fd, format.LinesBefore, []byte(itoa(l.base)), 0) != nil {
		l.base = -1 // this file system keeps none
	}
}

// count adds the lines of the open file to base: it is about to be left.
func (l *logFile) count() {
	if l.base < 0 {
		return
	}
	var buf [16 << 10]byte
	for at := int64(0); at < l.found; {
		n, err := unix.Pread(l.fd, buf[:min(int64(len(buf)), l.found-at)], at)
		if err != nil || n <= 0 {
			l.base = -1
			return
		}
		l.lines += int64(bytes.Count(buf[:n], newline))
		at += int64(n)
	}
	l.base, l.found, l.lines = l.base+l.lines, 0, 0
}

// trimTorn removes the beginning of a line that a crash left at the file's end.
func trimTorn(fd int, size int64) int64 {
	var buf [4096]byte
	for end := size; end > 0; {
		from := max(0, end-int64(len(buf)))
		n, err := unix.Pread(fd, buf[:end-from], from)
		if err != nil || n != int(end-from) {
			return size
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

// rotate moves the file to .1, .1 to .2 and so on, and begins a new one. When
// that cannot be, the file in use goes on.
func (l *logFile) rotate() {
	if l.files == 1 {
		if unix.Unlink(l.path) == nil {
			l.count()
			_ = l.open() // else the unlinked file goes on
		}
		return
	}
	for i := l.files - 1; i > 1; i-- {
		_ = syscall.Rename(l.numbered(i-1), l.numbered(i)) // it need not be there
	}
	if syscall.Rename(l.path, l.numbered(1)) != nil {
		return
	}
	l.count()
	if l.open() != nil {
		_ = syscall.Rename(l.numbered(1), l.path) // else readers find it under .1
	}
}

func (l *logFile) numbered(n int) string { return l.path + "." + itoa(int64(n)) }

func (l *logFile) close() {
	l.flush()
	_ = unix.Close(l.fd) // everything was written
	l.fd = -1
}
