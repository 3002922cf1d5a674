package layer

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

const (
	chunkSize = 256 << 10
	backlog   = 16 // chunks that the quickest reader may be ahead of the slowest
)

// chunk is a piece of the stream, shared by its readers.
type chunk struct {
	buf  []byte
	n    int
	refs atomic.Int32
}

var chunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, chunkSize)} }}

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		chunks.Put(c)
	}
}

// Broadcast reads r to its end, once, and gives every byte to each of readers,
// which run at the same time, each in a goroutine of its own. A reader that
// returns nil early misses nothing of importance: r is read on for the others.
// The first error of a reader or of r ends all; Broadcast returns when every
// reader has.
//
// A reader is passed an io.Reader that is valid until it returns.
func Broadcast(ctx context.Context, r io.Reader, readers ...func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	feeds := make([]*feed, len(readers))
	for i, read := range readers {
		f := &feed{ctx: ctx, in: make(chan *chunk, backlog), done: make(chan struct{})}
		feeds[i] = f
		wg.Go(func() {
			defer close(f.done)
			if err := read(f); err != nil && !errors.Is(err, errStopped) {
				cancel(err)
			}
		})
	}
	err := pump(ctx, r, feeds)
	if err != nil {
		cancel(err)
	}
	for _, f := range feeds {
		close(f.in)
	}
	wg.Wait()
	for _, f := range feeds {
		f.drop()
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return nil
}

// pump moves r into the feeds until its end, an error, or the end of ctx.
func pump(ctx context.Context, r io.Reader, feeds []*feed) error {
	for {
		c := chunks.Get().(*chunk)
		var err error
		if c.n, err = fill(r, c.buf); c.n > 0 {
			c.refs.Store(int32(len(feeds)) + 1)
			for _, f := range feeds {
				select {
				case f.in <- c:
				case <-f.done:
					c.release()
				case <-ctx.Done():
					c.release()
				}
			}
			c.release()
		} else {
			chunks.Put(c)
		}
		switch {
		case err == io.EOF || ctx.Err() != nil:
			return nil // of the latter the cause is known
		case err != nil:
			return err
		}
	}
}

// fill reads until half of buf is full: enough to make few chunks, and what
// comes slowly goes on early.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for idle := 0; n < len(buf)/2 && err == nil; {
		var m int
		if m, err = r.Read(buf[n:]); m > 0 {
			n, idle = n+m, 0
		} else if idle++; idle > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// feed is one reader's end.
type feed struct {
	ctx  context.Context
	in   chan *chunk
	done chan struct{}
	cur  *chunk
	off  int
}

// next makes cur the chunk to read from.
func (f *feed) next() error {
	if f.cur != nil && f.off < f.cur.n {
		return nil
	}
	if f.cur != nil {
		f.cur.release()
		f.cur = nil
	}
	if f.ctx.Err() != nil {
		return errStopped
	}
	select {
	case c, ok := <-f.in:
		if !ok {
			if f.ctx.Err() != nil {
				return errStopped
			}
			return io.EOF
		}
		f.cur, f.off = c, 0
		return nil
	case <-f.ctx.Done():
		return errStopped
	}
}

func (f *feed) Read(p []byte) (int, error) {
	if err := f.next(); err != nil {
		return 0, err
	}
	n := copy(p, f.cur.buf[f.off:f.cur.n])
	f.off += n
	return n, nil
}

// WriteTo saves io.Copy a copy.
func (f *feed) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		err := f.next()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(f.cur.buf[f.off:f.cur.n])
		total += int64(n)
		f.off += n
		if err != nil {
			return total, err
		}
	}
}

// drop gives back what was not read.
func (f *feed) drop() {
	if f.cur != nil {
		f.cur.release()
		f.cur = nil
	}
	for c := range f.in {
		c.release()
	}
}
