package engine

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"escale.dev/escale/internal/container"
	"github.com/coder/websocket"
	"github.com/containerd/errdefs"
)

// attachWebsocket is attach for browsers: output goes out as it is, both streams
// in one, and what comes in is standard input. Closing the socket detaches.
func (c containerRoutes) attachWebsocket(w *response, r *request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return invalidf("attaching over a websocket needs the handshake of one")
	}
	view, err := c.cfg.Containers.Get(r.name)
	if err != nil {
		return err
	}
	q := r.query
	a := container.Attach{
		Stdin: true, Stdout: true, Stderr: true,
		Stream: q.bool("stream"), Logs: q.bool("logs"), DetachKeys: q.get("detachKeys"),
	}
	if !r.version.before(42) {
		a.Stdin, a.Stdout, a.Stderr = q.bool("stdin"), q.bool("stdout"), q.bool("stderr")
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	ws := &wsStream{cancel: cancel, kind: websocket.MessageBinary}
	if r.version.before(28) {
		ws.kind = websocket.MessageText
	}
	defer func() {
		if ws.conn != nil {
			ws.finish(ctx)
			c.forget(ws)
		}
	}()
	err = c.cfg.Containers.Attach(ctx, r.name, a, func(terminal bool) (io.ReadWriteCloser, error) {
		ws.raw = terminal
		ws.ctx = ctx
		return ws, c.takeWebsocket(w, r, ws, a.Stdin && a.Stream && view.Config.OpenStdin)
	})
	if ws.conn == nil {
		return err
	}
	if err != nil && ctx.Err() == nil {
		c.log.Debug("websocket ended", "path", r.URL.Path, "error", err)
	}
	return nil
}

// takeWebsocket answers the handshake. stdin: the engine reads what the client
// sends; else it is thrown away, but for the word that it leaves.
func (s *Server) takeWebsocket(w *response, r *request, ws *wsStream, stdin bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return &kindError{kind: errdefs.ErrUnavailable, msg: "the engine is shutting down"}
	}
	conn, err := websocket.Accept(w, r.Request, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return invalidf("%s", err)
	}
	conn.SetReadLimit(-1) // it is a stream: what came is passed on, not kept
	ws.conn = conn
	s.hijacked[ws] = struct{}{}
	s.streams.Add(1)
	if !stdin {
		ws.discarding.Go(func() { _, _ = io.Copy(io.Discard, ws) }) // ends with the connection
	}
	return nil
}

// wsStream is a client attached over a websocket. One goroutine reads, one writes.
type wsStream struct {
	conn   *websocket.Conn
	ctx    context.Context // of the attachment
	cancel context.CancelCauseFunc
	kind   websocket.MessageType
	raw    bool // output comes without frames

	message    io.Reader // the one that is being read; nil: between two
	frames     deframer
	discarding sync.WaitGroup
}

// Read gives what the client sends, whatever messages it comes in. With the end
// of the connection the attachment ends: nobody is there for output either.
func (ws *wsStream) Read(p []byte) (int, error) {
	for {
		if ws.message == nil {
			_, m, err := ws.conn.Reader(ws.ctx)
			if err != nil {
				ws.cancel(errHungUp)
				return 0, io.EOF
			}
			ws.message = m
		}
		n, err := ws.message.Read(p)
		if errors.Is(err, io.EOF) {
			ws.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends output in a message of its own; it blocks while the client does
// not read.
func (ws *wsStream) Write(p []byte) (int, error) {
	if ws.raw {
		return len(p), ws.send(p)
	}
	return len(p), ws.frames.each(p, ws.send)
}

func (ws *wsStream) send(p []byte) error {
	err := ws.conn.Write(ws.ctx, ws.kind, p)
	if err != nil {
		ws.cancel(errHungUp)
	}
	return err
}

// Close is the engine's end of the stream; finish closes the connection.
func (ws *wsStream) Close() error { return nil }

// abort ends the stream from the server's side.
func (ws *wsStream) abort() { ws.cancel(http.ErrServerClosed) }

// finish says goodbye and waits until nobody uses the connection.
func (ws *wsStream) finish(ctx context.Context) {
	if ctx.Err() == nil {
		_ = ws.conn.Close(websocket.StatusNormalClosure, "") // a client that has gone does not answer
	}
	_ = ws.conn.CloseNow() // nothing is left to say
	ws.discarding.Wait()
}

// deframer takes Docker's frames apart: eight bytes of header, the last four the
// length, then so many bytes. A frame may come in pieces.
type deframer struct {
	header [8]byte
	have   int    // of the header
	left   uint32 // of what follows it
}

// each calls send for what the frames in p carry, which is p's own memory.
func (d *deframer) each(p []byte, send func([]byte) error) error {
	for len(p) > 0 {
		if d.left == 0 {
			n := copy(d.header[d.have:], p)
			d.have, p = d.have+n, p[n:]
			if d.have == len(d.header) {
				h := d.header
				d.have, d.left = 0, uint32(h[4])<<24|uint32(h[5])<<16|uint32(h[6])<<8|uint32(h[7])
			}
			continue
		}
		n := min(int(d.left), len(p))
		if err := send(p[:n]); err != nil {
			return err
		}
		d.left, p = d.left-uint32(n), p[n:]
	}
	return nil
}
