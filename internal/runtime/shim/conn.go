package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// What requests end with whose connection ends: by the monitor, and by Close.
var (
	errLost   = errors.New("connection to the monitor lost")
	errClosed = fmt.Errorf("connection to the monitor: %w", net.ErrClosed)
)

// conn is a connection that speaks the protocol, with any number of requests
// under way.
type conn struct {
	nc *net.UnixConn

	mu      sync.Mutex
	w       wire.Writer
	next    uint64
	waiting map[uint64]func(wire.Message, error)
	err     error // why no more requests can be made
}

func newConn(nc *net.UnixConn) *conn {
	return &conn{nc: nc, waiting: map[uint64]func(wire.Message, error){}}
}

// hello opens the conversation; it is answered among the rest.
func (c *conn) hello() {
	var w wire.Writer
	hello(&w)
	_, _ = c.nc.Write(w.Data()) // reading tells of an error
}

func hello(w *wire.Writer) {
	w.Begin(wire.Hello)
	w.Uint(wire.TagVersion, wire.Version)
	w.End()
}

// read takes answers until the connection ends, then ends all requests.
func (c *conn) read() {
	buf := make([]byte, 0, 512)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := c.nc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for {
			m, n, bad := wire.Next(buf)
			if bad != nil {
				err = bad
				break
			}
			if n == 0 {
				break
			}
			c.answer(m)
			buf = buf[:copy(buf, buf[n:])]
		}
		if err != nil {
			c.close(errLost)
			return
		}
	}
}

func (c *conn) answer(m wire.Message) {
	if m.Type != wire.OK && m.Type != wire.Error {
		return // the monitor's hello, or of a later version
	}
	c.mu.Lock()
	id := m.Uint(wire.TagRequest)
	f := c.waiting[id]
	delete(c.waiting, id)
	c.mu.Unlock()
	if f != nil {
		f(m, answerError(m))
	}
}

// close ends the connection; requests under way end with err.
func (c *conn) close(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	_ = c.nc.Close() // nothing is left to be written
	for _, f := range waiting {
		f(wire.Message{}, err)
	}
}

// send makes a request; f gets the answer, or an error, once, and may not block.
// The message's memory is the connection's: f copies what it keeps.
func (c *conn) send(t wire.Type, fill func(*wire.Writer), f func(wire.Message, error)) (id uint64) {
	return c.sendWith(nil, t, fill, f)
}

// sendWith is send with descriptors, rights at most, along with the request.
func (c *conn) sendWith(fds []int, t wire.Type, fill func(*wire.Writer), f func(wire.Message, error)) (id uint64) {
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		f(wire.Message{}, err)
		return 0
	}
	c.next++
	id = c.next
	c.waiting[id] = f
	c.w.Reset()
	c.w.Begin(t)
	c.w.Uint(wire.TagRequest, id)
	if fill != nil {
		fill(&c.w)
	}
	c.w.End()
	var err error
	if len(fds) > 0 {
		_, _, err = c.nc.WriteMsgUnix(c.w.Data(), unix.UnixRights(fds...), nil)
	} else {
		_, err = c.nc.Write(c.w.Data())
	}
	c.mu.Unlock()
	if err != nil {
		c.close(errLost)
	}
	return id
}

// give hands over descriptors, ahead of whatever is sent next, which says how many
// they are. The caller keeps its own, and closes the connection after an error.
func (c *conn) give(files []*os.File) error {
	fds, err := numbers(files)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(files)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	for part := range slices.Chunk(fds, rights) {
		c.next++ // nobody waits for the answer
		c.w.Reset()
		c.w.Begin(wire.Hold)
		c.w.Uint(wire.TagRequest, c.next)
		c.w.End()
		if _, _, err := c.nc.WriteMsgUnix(c.w.Data(), unix.UnixRights(part...), nil); err != nil {
			return errLost
		}
	}
	return nil
}

// numbers are the files' descriptors. They are good as long as the files are open.
func numbers(files []*os.File) ([]int, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		// Fd would make a socket blocking for all who have it.
		rc, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := rc.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// ended is why no more requests can be made; nil while they can.
func (c *conn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// call makes a request and waits for the answer.
func (c *conn) call(ctx context.Context, t wire.Type, fill func(*wire.Writer)) (wire.Message, error) {
	if err := ctx.Err(); err != nil {
		return wire.Message{}, err
	}
	return c.begin(t, fill).wait(ctx)
}

// callWith is call with descriptors along with the request. The caller keeps its own.
func (c *conn) callWith(ctx context.Context, files []*os.File, t wire.Type, fill func(*wire.Writer)) (wire.Message, error) {
	if err := ctx.Err(); err != nil {
		return wire.Message{}, err
	}
	fds, err := numbers(files)
	if err != nil {
		return wire.Message{}, err
	}
	defer runtime.KeepAlive(files)
	return c.beginWith(fds, t, fill).wait(ctx)
}

// request is one under way.
type request struct {
	c  *conn
	id uint64
	ch chan answer
}

type answer struct {
	m   wire.Message
	err error
}

// begin makes a request whose answer is waited for later.
func (c *conn) begin(t wire.Type, fill func(*wire.Writer)) *request {
	return c.beginWith(nil, t, fill)
}

func (c *conn) beginWith(fds []int, t wire.Type, fill func(*wire.Writer)) *request {
	r := &request{c: c, ch: make(chan answer, 1)}
	r.id = c.sendWith(fds, t, fill, func(m wire.Message, err error) { r.ch <- answer{m.Clone(), err} })
	return r
}

func (r *request) wait(ctx context.Context) (wire.Message, error) {
	select {
	case a := <-r.ch:
		return a.m, a.err
	case <-ctx.Done():
		r.c.mu.Lock()
		delete(r.c.waiting, r.id)
		r.c.mu.Unlock()
		return wire.Message{}, ctx.Err()
	}
}

// readAnswer reads one answer and not a byte more: what follows is a stream's.
func readAnswer(r io.Reader) (wire.Message, error) {
	for {
		buf := make([]byte, 5, 64)
		if _, err := io.ReadFull(r, buf); err != nil {
			return wire.Message{}, errLost
		}
		size := int(buf[0])<<24 | int(buf[1])<<16 | int(buf[2])<<8 | int(buf[3])
		if size < 1 || size > wire.MaxFrame {
			return wire.Message{}, fmt.Errorf("monitor: %w", wire.ErrTooLong)
		}
		buf = append(buf, make([]byte, size-1)...)
		if _, err := io.ReadFull(r, buf[5:]); err != nil {
			return wire.Message{}, errLost
		}
		m, _, err := wire.Next(buf)
		if err != nil {
			return wire.Message{}, fmt.Errorf("monitor: %w", err)
		}
		if m.Type == wire.OK || m.Type == wire.Error {
			return m, answerError(m)
		}
	}
}

// answerError is the error that an answer tells, nil when it is OK.
func answerError(m wire.Message) error {
	if m.Type == wire.OK {
		return nil
	}
	text := m.Text(wire.TagText)
	switch m.Uint(wire.TagKind) {
	case wire.KindNotFound:
		return fmt.Errorf("%s: %w", text, errdefs.ErrNotFound)
	case wire.KindInvalid:
		return fmt.Errorf("%s: %w", text, errdefs.ErrInvalidArgument)
	case wire.KindConflict:
		return fmt.Errorf("%s: %w", text, errdefs.ErrFailedPrecondition)
	case wire.KindUnsupported:
		return fmt.Errorf("%s: %w", text, errdefs.ErrNotImplemented)
	case wire.KindRuntime:
		return &refusal{text: text, log: m.Text(wire.TagLog), stderr: m.Text(wire.TagStderr)}
	}
	return errors.New(text)
}
