package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A connection with a node's engine is a stream of HTTP/2, in which HTTP/1.1 is spoken: the
// request's body is what is sent, the answer's what is received, and each end may close its
// half. The called node joins it to a socket, so that its engine has what it has of every
// client: halves, deadlines, and a hang-up that can be waited for.

// handed are sockets on their way to the server of the engine's API.
type handed struct{ ch chan net.Conn }

func newHanded() *handed { return &handed{make(chan net.Conn)} }

// listener gives what is handed over, until ctx ends.
func (h *handed) listener(ctx context.Context) net.Listener { return &handedListener{h, ctx} }

type handedListener struct {
	*handed
	ctx context.Context
}

// Accept implements net.Listener.
func (l *handedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *handedListener) Close() error { return nil }

// Addr implements net.Listener.
func (l *handedListener) Addr() net.Addr { return &net.UnixAddr{Name: "peer", Net: "unix"} }

// pair are the two ends of a socket.
func pair() (ours, theirs *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "peer")
		c, err1 := net.FileConn(f) // it has a descriptor of its own
		f.Close()
		if ends[i], _ = c.(*net.UnixConn); err1 != nil && err == nil {
			err = err1
		}
	}
	if err != nil {
		for _, e := range ends {
			if e != nil {
				e.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}

// tasks joins a stream to the engine.
func (s *Server) tasks(w http.ResponseWriter, r *http.Request) error {
	ours, theirs, err := pair()
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer ours.Close()
	defer context.AfterFunc(r.Context(), func() { ours.Close() })()
	select {
	case s.engine.ch <- theirs:
	case <-r.Context().Done():
		return errors.Join(context.Cause(r.Context()), theirs.Close())
	}
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return nil // who called has gone
	}
	// What the caller sends ends with the handler at the latest.
	go func() {
		if _, err := io.Copy(ours, r.Body); err != nil {
			ours.Close()
			return
		}
		_ = ours.CloseWrite() // it is closed already when the engine has gone
	}()
	if _, err := io.Copy(flushing{w, out}, ours); err != nil || r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // an answer that was cut off must not look whole
	}
	return nil
}

// flushing sends what is written at once.
type flushing struct {
	w   io.Writer
	out *http.ResponseController
}

// Write implements io.Writer.
func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.out.Flush()
	}
	return n, err
}

// Engine connects with the API of a node's engine for containers of tasks. ctx ends only
// the connecting; it blocks for as long as a node may take to be reached. Unavailable,
// PermissionDenied.
func (d *Dialer) Engine(ctx context.Context, node string) (net.Conn, error) {
	// detached: the connection outlives the call
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	in, feed := io.Pipe()
	timer := time.AfterFunc(answerWait, cancel)
	res, err := d.do(live, http.MethodPost, node, pathTasks, nil, in)
	timer.Stop()
	if !stop() && err == nil {
		res.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		feed.Close()
		return nil, err
	}
	return &conn{Reader: res.Body, body: res.Body, feed: feed, cancel: cancel, node: node}, nil
}

// conn is the caller's end. It has no deadlines: Close ends what blocks.
type conn struct {
	io.Reader
	body   io.Closer
	feed   *io.PipeWriter
	cancel context.CancelFunc
	node   string
	once   sync.Once
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) { return c.feed.Write(p) }

// CloseWrite ends what is sent; what comes can still be read.
func (c *conn) CloseWrite() error { return c.feed.Close() }

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.cancel()
		_ = c.feed.CloseWithError(net.ErrClosed) // never fails
		_ = c.body.Close()                       // the stream is reset already
	})
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: c.node, Net: "unix"} }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
