package logs

import (
	"bytes"
	"errors"
	"io"
	"math"
)

// tail places the reader before the last n lines that it is to give, reading
// backwards. Files before that place are closed.
func (r *reader) tail(n int) error {
	if n == 0 {
		return r.toEnd()
	}
	c := tailCount{r: r, left: n, open: map[string]bool{}}
	for i := len(r.files) - 1; i >= 0; i-- {
		at, err := r.files[i].tail(&c, i == len(r.files)-1)
		if err != nil {
			return err
		}
		if c.done {
			closeAll(r.files[:i])
			r.files = r.files[i:]
			return r.files[0].skipTo(at)
		}
	}
	for _, l := range r.files {
		if err := l.skipTo(0); err != nil {
			return err
		}
	}
	return nil
}

// toEnd places the reader after the last whole line.
func (r *reader) toEnd() error {
	if len(r.files) == 0 {
		return nil
	}
	last := r.files[len(r.files)-1]
	closeAll(r.files[:len(r.files)-1])
	r.files = []*logFile{last}
	if last.gz != nil {
		return last.skipTo(math.MaxInt64)
	}
	st, err := last.f.Stat()
	if err != nil {
		return err
	}
	b := backward{r: last.f, pos: st.Size()}
	line, end, err := b.line()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if last.off = end; !bytes.HasSuffix(line, []byte{'\n'}) {
		last.off -= int64(len(line))
	}
	last.skipped = last.off
	return err
}

// tailCount counts lines from the end. A line may be written as several entries, of
// which only the last ends with a newline.
type tailCount struct {
	r    *reader
	left int
	open map[string]bool // streams of which the line being met backwards has begun
	done bool
}

// before looks at the entry before those counted and reports whether it is
// beyond the tail.
func (c *tailCount) before(raw []byte) bool {
	var l Line
	if !c.r.dec.decode(raw, &l) || !c.r.wants(l.Stream) {
		return false
	}
	if !c.r.o.Until.IsZero() && l.Time.After(c.r.o.Until) {
		return false
	}
	if !c.r.o.Since.IsZero() && l.Time.Before(c.r.o.Since) {
		c.done = true
		return true
	}
	if bytes.HasSuffix(l.Data, []byte{'\n'}) || !c.open[l.Stream] {
		if c.left == 0 {
			c.done = true
			return true
		}
		c.left--
		c.open[l.Stream] = true
	}
	return false
}

// tail returns the offset after which the tail begins, if it does so in this file.
// newest: an unfinished last line is still being written and counts for nothing.
func (l *logFile) tail(c *tailCount, newest bool) (int64, error) {
	if l.gz != nil {
		return l.tailZipped(c)
	}
	end, err := l.endFor(&c.r.o, &c.r.dec)
	if err != nil {
		return 0, err
	}
	b := backward{r: l.f, pos: end}
	for first := true; ; first = false {
		line, end, err := b.line()
		if errors.Is(err, io.EOF) {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		if first && newest && !bytes.HasSuffix(line, []byte{'\n'}) {
			continue
		}
		if c.before(line) {
			return end, nil
		}
	}
}

// tailZipped finds the same by unpacking: a compressed stream cannot be read backwards.
func (l *logFile) tailZipped(c *tailCount) (int64, error) {
	plain, err := io.ReadAll(io.LimitReader(readerFunc(l.readEOF), maxUnpacked))
	if err != nil {
		return 0, err
	}
	b := backward{r: bytes.NewReader(plain), pos: int64(len(plain))}
	for {
		line, end, err := b.line()
		if err != nil {
			return 0, nil
		}
		if c.before(line) {
			return end, nil
		}
	}
}

// maxUnpacked bounds the memory that the tail of one compressed file may take.
const maxUnpacked = 256 << 20

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (l *logFile) readEOF(p []byte) (int, error) {
	n, err := l.read(p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// skipTo makes the next read begin at an offset of the unpacked file.
func (l *logFile) skipTo(off int64) error {
	if l.gz == nil {
		l.off, l.skipped = off, off
		return nil
	}
	if err := l.rewind(); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, readerFunc(l.readEOF), off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// backward reads lines from the last to the first, in blocks.
type backward struct {
	r   io.ReaderAt
	pos int64  // of buf in the file
	buf []byte // read and not yet given
}

const backBlock = 64 << 10

// line returns the line before those returned, and the offset of its end. io.EOF at
// the beginning of the file. A line longer than maxLine is given as its last part.
func (b *backward) line() (line []byte, end int64, err error) {
	end = b.pos + int64(len(b.buf))
	for searched := 0; ; {
		// The newline at the very end is this line's own.
		if n := len(b.buf) - 1 - searched; n > 0 {
			if i := bytes.LastIndexByte(b.buf[:n], '\n'); i >= 0 {
				line = b.buf[i+1:]
				b.buf = b.buf[:i+1]
				return line, end, nil
			}
			searched = len(b.buf) - 1
		}
		if b.pos == 0 {
			if len(b.buf) == 0 {
				return nil, 0, io.EOF
			}
			line, b.buf = b.buf, nil
			return line, end, nil
		}
		if len(b.buf) > maxLine {
			// No line of ours: keep its end only, lest garbage fill the memory.
			b.buf = b.buf[len(b.buf)-1:]
			searched = 0
		}
		// Blocks grow with the line, so that a long one is not copied again and again.
		size := min(b.pos, int64(max(backBlock, len(b.buf))))
		block := make([]byte, size+int64(len(b.buf)))
		if _, err := b.r.ReadAt(block[:size], b.pos-size); err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		copy(block[size:], b.buf)
		b.buf, b.pos = block, b.pos-size
	}
}
