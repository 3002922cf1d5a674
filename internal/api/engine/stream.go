package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/sys/errtext"
)

const (
	// hangupGrace is how long input that a departed client left behind may
	// take to reach the process.
	hangupGrace = 5 * time.Second
	// lingerTime is how long a finished stream waits for its client to close,
	// so that unread input does not cut off the last output.
	lingerTime  = time.Second
	maxBodySkip = 64 << 10
)

// errHungUp is why the context of a stream ended: its client is gone.
var errHungUp = errors.New("client hung up")

// stream is the client's side of an attach or an exec: a connection taken over
// from HTTP. The engine reads standard input from it and writes output to it.
type stream struct {
	conn   net.Conn
	in     io.Reader // what came with the request, then the connection
	cancel context.CancelCauseFunc
	stdin  bool // the engine reads until the end
	raw    bool // no frames

	readMu sync.Mutex // held by a Read under way
	mu     sync.Mutex
	shut   bool // the engine has closed its side
	eof    bool // input has ended
	gone   bool // the client has closed both directions
	grace  *time.Timer

	stopWatch func()
	stopAbort func() bool
}

// streamRoute is what a route that hijacks does: run calls open once an error
// can no longer be answered with a status.
type streamRoute struct {
	stdin bool
	run   func(ctx context.Context, open func(terminal bool) (io.ReadWriteCloser, error)) error
	// tell is for errors after open: the client sees them on its stream.
	tell bool
}

// hijack runs a streamRoute.
func (s *Server) hijack(w *response, r *request, rt streamRoute) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	var st *stream
	defer func() { // also when run panics
		if st != nil {
			st.finish()
			s.forget(st)
		}
	}()
	err := rt.run(ctx, func(terminal bool) (io.ReadWriteCloser, error) {
		if st != nil {
			return nil, errors.New("stream is open already")
		}
		var err error
		if st, err = s.takeOver(w, r, cancel, rt.stdin, terminal); err != nil {
			return nil, err
		}
		return st, nil
	})
	if st == nil {
		return err
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("stream ended", "path", r.URL.Path, "error", err)
		if rt.tell {
			st.tell(err)
		}
	}
	return nil
}

// takeOver answers the request and takes its connection over.
func (s *Server) takeOver(w *response, r *request, cancel context.CancelCauseFunc, stdin, terminal bool) (*stream, error) {
	if r.ContentLength > 0 {
		if _, err := io.CopyN(io.Discard, r.Body, maxBodySkip); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	st, err := s.register(w, r, cancel, stdin, terminal)
	if err != nil {
		return nil, err
	}
	w.status = http.StatusOK
	if _, upgrade := r.Header["Upgrade"]; upgrade {
		w.status = http.StatusSwitchingProtocols
	}
	// Outside the lock: a client that has left earlier answers on this
	// connection unread makes this wait, until it reads or the server closes.
	if _, err := st.conn.Write(preface(w, mediaType(r.version, terminal))); err != nil {
		cancel(errHungUp)
	}
	return st, nil
}

// register takes the connection from HTTP and counts it among those that Close
// ends and waits for.
func (s *Server) register(w *response, r *request, cancel context.CancelCauseFunc, stdin, terminal bool) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, &kindError{kind: errdefs.ErrUnavailable, msg: "the engine is shutting down"}
	}
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, err
	}
	// Not through buf: its end would end the request's context, and half a
	// connection's end is not its client's.
	early, _ := buf.Reader.Peek(buf.Reader.Buffered())
	in := io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)
	st := &stream{conn: conn, in: in, cancel: cancel, stdin: stdin, raw: terminal}
	st.stopWatch = watchHangup(conn, st.hangup)
	st.stopAbort = context.AfterFunc(r.Context(), st.abort)
	s.hijacked[st] = struct{}{}
	s.streams.Add(1)
	return st, nil
}

func (s *Server) forget(st aborter) {
	s.mu.Lock()
	delete(s.hijacked, st)
	s.mu.Unlock()
	s.streams.Done()
}

// mediaType names what a stream carries; before 1.42 it had one name for both.
func mediaType(ver version, terminal bool) string {
	if terminal || ver.before(42) {
		return types.MediaTypeRawStream
	}
	return types.MediaTypeMultiplexedStream
}

// preface is the head of the answer that turns the connection into a stream.
func preface(w *response, media string) []byte {
	var b bytes.Buffer
	if w.status == http.StatusSwitchingProtocols {
		b.WriteString("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n")
	} else {
		b.WriteString("HTTP/1.1 200 OK\r\n")
	}
	h := w.Header().Clone()
	h.Set("Content-Type", media)
	_ = h.Write(&b) // a buffer takes everything
	b.WriteString("\r\n")
	return b.Bytes()
}

// Read gives the client's input, io.EOF when it has closed its half.
func (st *stream) Read(p []byte) (int, error) {
	st.readMu.Lock()
	defer st.readMu.Unlock()
	st.mu.Lock()
	shut := st.shut
	st.mu.Unlock()
	if shut {
		return 0, io.ErrClosedPipe
	}
	n, err := st.in.Read(p)
	if err != nil {
		st.mu.Lock()
		st.eof = true
		if st.gone {
			st.cancel(errHungUp)
		}
		st.mu.Unlock()
	}
	return n, err
}

// Write sends output; it blocks while the client does not read.
func (st *stream) Write(p []byte) (int, error) {
	n, err := st.conn.Write(p)
	if err != nil {
		st.cancel(errHungUp)
	}
	return n, err
}

// Close is the engine's end of the stream: reads under way return. The
// connection itself is closed by finish, which may have a last word to send.
func (st *stream) Close() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.shut {
		st.shut = true
		return st.conn.SetReadDeadline(longAgo)
	}
	return nil
}

var longAgo = time.Unix(1, 0)

// hangup notes that the client has closed both directions. What it sent before
// may still be on its way to the process.
func (st *stream) hangup() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.gone = true
	if st.stdin && !st.eof && !st.shut {
		st.grace = time.AfterFunc(hangupGrace, func() { st.cancel(errHungUp) })
		return
	}
	st.cancel(errHungUp)
}

// abort ends the stream from the server's side, also under a Write that blocks.
func (st *stream) abort() {
	st.cancel(http.ErrServerClosed)
	_ = st.conn.SetDeadline(longAgo) // fails only once it is closed
}

// tell writes an error where the client looks for output.
func (st *stream) tell(err error) {
	msg := []byte(errtext.Of(err) + "\r\n")
	if !st.raw {
		msg = append(binary.BigEndian.AppendUint32([]byte{1, 0, 0, 0}, uint32(len(msg))), msg...)
	}
	_ = st.conn.SetWriteDeadline(time.Now().Add(lingerTime))
	_, _ = st.conn.Write(msg) // a client that has gone misses it
}

// finish closes the connection such that the client gets all that was written:
// first the half of output, then, once the client has closed too or after a
// moment, the whole.
func (st *stream) finish() {
	_ = st.Close()
	st.stopWatch()
	aborted := !st.stopAbort()
	st.mu.Lock()
	if st.grace != nil {
		st.grace.Stop()
	}
	linger := !st.gone && !aborted
	st.mu.Unlock()
	st.readMu.Lock() // a Read of the engine's has returned
	defer st.readMu.Unlock()
	if linger {
		_ = st.conn.SetDeadline(time.Now().Add(lingerTime))
		if half, ok := st.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_, _ = io.Copy(io.Discard, st.in)
		}
	}
	_ = st.conn.Close() // nothing is left that could be lost
}

// watchHangup calls gone once the peer of c has closed both directions, which a
// half-closed connection's reader cannot see. It waits in the runtime's poller
// on a second descriptor and costs no thread. stop ends it and waits for that.
func watchHangup(c net.Conn, gone func()) (stop func()) {
	for {
		inner, ok := c.(interface{ NetConn() net.Conn }) // TLS
		if !ok {
			break
		}
		c = inner.NetConn()
	}
	has, ok := c.(interface{ File() (*os.File, error) })
	if !ok {
		return func() {}
	}
	f, err := has.File()
	if err != nil {
		return func() {}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		hung := false
		_ = raw.Read(func(fd uintptr) bool { // an error means stop
			hung = hungUp(int(fd))
			return hung
		})
		if hung {
			gone()
		}
	}()
	return func() {
		f.Close()
		<-done
	}
}

func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}
