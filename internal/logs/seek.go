package logs

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// nearEnough is how many bytes are read rather than searched further.
const nearEnough = 128 << 10

// around searches a plain file for a time, by halves: every line before lo was written
// before t, every line from hi on at t or later; both are beginnings of lines or
// the file's end. Lines are in the order of their times, since a monitor never
// goes back unless somebody sets the clock back by more than a second; what was
// written twice over that span may then be passed by.
func (l *logFile) around(t time.Time, dec *decoder) (lo, hi int64, err error) {
	st, err := l.f.Stat()
	if err != nil {
		return 0, 0, err
	}
	hi = st.Size()
	buf := make([]byte, 64<<10)
	for end := hi; end-lo > nearEnough; {
		mid := lo + (end-lo)/2
		at, start, next, err := l.stampAfter(mid, end, buf, dec)
		switch {
		case errors.Is(err, io.EOF): // no line that tells begins there
			end = mid
		case err != nil:
			return 0, 0, err
		case at.Before(t):
			lo = next
		default:
			end, hi = mid, start
		}
	}
	return lo, hi, nil
}

// stampAfter finds the first line with a time that begins after from and before limit,
// and the beginning of the line after it. io.EOF: there is none.
func (l *logFile) stampAfter(from, limit int64, buf []byte, dec *decoder) (at time.Time, start, next int64, err error) {
	begun := false // start is the beginning of a line
	var line []byte
	for pos := from; pos < limit || begun && len(line) <= maxLine; {
		n, err := l.f.ReadAt(buf, pos)
		if n == 0 && err != nil {
			return at, 0, 0, err
		}
		for p := buf[:n]; len(p) > 0; {
			i := bytes.IndexByte(p, '\n')
			part := p[:max(i, 0)]
			if i < 0 {
				part = p
			}
			if begun {
				line = append(line, part...)
			}
			if i < 0 {
				break
			}
			p = p[i+1:]
			next = pos + int64(n-len(p))
			var entry Line
			if t, ok := dec.stamp(line); begun && ok {
				return t, start, next, nil
			}
			if begun && dec.decode(line, &entry) {
				return entry.Time, start, next, nil
			}
			begun, start, line = true, next, line[:0]
			if start >= limit {
				return at, 0, 0, io.EOF
			}
		}
		pos += int64(n)
	}
	return at, 0, 0, io.EOF
}

// skipBefore leaves out what of the first file was written before Since.
func (r *reader) skipBefore() error {
	if r.o.Since.IsZero() || len(r.files) == 0 || r.files[0].gz != nil {
		return nil
	}
	lo, _, err := r.files[0].around(r.o.Since, &r.dec)
	r.files[0].off, r.files[0].skipped = lo, lo
	return err
}

// endFor is where reading backwards begins: the end of the file, or of what was
// written until the time wanted.
func (l *logFile) endFor(o *ReadOptions, dec *decoder) (int64, error) {
	if o.Until.IsZero() {
		st, err := l.f.Stat()
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	_, hi, err := l.around(o.Until.Add(1), dec)
	return hi, err
}
