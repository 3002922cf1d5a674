package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"github.com/coder/websocket"
)

// dialWebsocket attaches to path over a connection of its own.
func dialWebsocket(t *testing.T, r *rig, path string) *websocket.Conn {
	t.Helper()
	srv := httptest.NewServer(r.server.Handler())
	t.Cleanup(srv.Close)
	ws, _, err := websocket.Dial(t.Context(), srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	return ws
}

func TestWebsocketAttach(t *testing.T) {
	for _, tt := range []struct {
		prefix   string
		terminal bool
		kind     websocket.MessageType
	}{
		{"", true, websocket.MessageBinary}, {"/v1.44", false, websocket.MessageBinary}, {"/v1.27", true, websocket.MessageText},
	} {
		r := newRig(t)
		stdinOpen(r)
		r.con.attach = func(_ context.Context, a container.Attach, open opened) error {
			conn, err := open(tt.terminal)
			if err != nil {
				return err
			}
			if !a.Stdin || !a.Stdout || a.DetachKeys != "ctrl-x" {
				t.Errorf("asked for %+v", a)
			}
			b := make([]byte, 5)
			if _, err := io.ReadFull(conn, b); err != nil {
				return err
			}
			out := append(b, " back"...)
			if !tt.terminal {
				frame := append([]byte{2, 0, 0, 0, 0, 0, 0, byte(len(out))}, out...)
				if _, err := conn.Write(frame[:5]); err != nil { // headers come in pieces, too
					return err
				}
				out = frame[5:]
			}
			_, err = conn.Write(out)
			return err
		}
		ws := dialWebsocket(t, r, tt.prefix+"/containers/web/attach/ws?stream=1&stdin=1&stdout=1&detachKeys=ctrl-x")
		for _, part := range []string{"he", "llo"} {
			if err := ws.Write(t.Context(), websocket.MessageText, []byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		kind, got, err := ws.Read(t.Context())
		if err != nil || kind != tt.kind || string(got) != "hello back" {
			t.Errorf("%s: %v %q %v, want %v hello back", tt.prefix, kind, got, err, tt.kind)
		}
		if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("the end: %v, want a normal closure", err)
		}
	}
}

// A client that leaves ends its attachment, with standard input or without.
func TestWebsocketHangup(t *testing.T) {
	for _, query := range []string{"?stream=1&stdin=1&stdout=1", "?stream=1&stdout=1"} {
		r := newRig(t)
		stdinOpen(r)
		ended := make(chan error, 1)
		r.con.attach = func(ctx context.Context, a container.Attach, open opened) error {
			conn, err := open(true)
			if err != nil {
				return err
			}
			if a.Stdin {
				go io.Copy(io.Discard, conn)
			}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return ctx.Err()
		}
		ws := dialWebsocket(t, r, "/containers/web/attach/ws"+query)
		if err := ws.Write(t.Context(), websocket.MessageBinary, []byte("input")); err != nil {
			t.Fatal(err)
		}
		ws.CloseNow()
		select {
		case err := <-ended:
			if !errors.Is(err, errHungUp) {
				t.Errorf("%s: ended with %v", query, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: goes on without its client", query)
		}
	}
}

func TestWebsocketRefused(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		path   string
		header http.Header
		status int
		words  string
	}{
		{"/containers/web/attach/ws?stream=1", nil, 400, "handshake"},
		{"/containers/nosuch/attach/ws?stream=1", http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}, 404, "No such container: nosuch"},
	} {
		req := httptest.NewRequest("GET", c.path, nil)
		req.Header = c.header
		w := httptest.NewRecorder()
		r.server.Handler().ServeHTTP(w, req)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.words) {
			t.Errorf("%s: %d %s", c.path, w.Code, w.Body)
		}
	}
}

func FuzzDeframe(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x03abc\x02\x00\x00\x00\x00\x00\x00\x01d"), 3)
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 'x'}, 1)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0}, 8)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		if piece < 1 {
			piece = 1
		}
		collect := func(step int) []byte {
			var d deframer
			var out bytes.Buffer
			for p := b; len(p) > 0; {
				n := min(step, len(p))
				if err := d.each(p[:n], func(c []byte) error { out.Write(c); return nil }); err != nil {
					t.Fatal(err)
				}
				p = p[n:]
			}
			return out.Bytes()
		}
		whole, pieces := collect(len(b)+1), collect(piece)
		if !bytes.Equal(whole, pieces) {
			t.Errorf("%q in one piece, %q in pieces of %d", whole, pieces, piece)
		}
		if len(whole) > len(b) {
			t.Errorf("%d bytes out of %d", len(whole), len(b))
		}
	})
}
