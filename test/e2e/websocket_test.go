package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/coder/websocket"
)

// wsAttach attaches to a container over a websocket.
func wsAttach(t *testing.T, ctx context.Context, e *harness.Engine, path string) *websocket.Conn {
	t.Helper()
	api := e.API()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return api.Dial(ctx) }}
	ws, _, err := websocket.Dial(ctx, "ws://docker"+path, &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	return ws
}

// readUntil collects messages until they hold want, or the socket ends.
func readUntil(t *testing.T, ctx context.Context, ws *websocket.Conn, want string) (string, error) {
	t.Helper()
	var got bytes.Buffer
	for !strings.Contains(got.String(), want) {
		kind, b, err := ws.Read(ctx)
		if err != nil {
			return got.String(), err
		}
		if kind != websocket.MessageBinary {
			t.Errorf("a message of kind %v", kind)
		}
		got.Write(b)
	}
	return got.String(), nil
}

// TestWebsocketAttach has several clients at one container, over websockets and
// otherwise: all see all of its output, each may type, one leaves, one detaches.
func TestWebsocketAttach(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	api := e.API()
	defer api.Close()
	for _, tty := range []bool{false, true} {
		id := create(t, ctx, api, "", map[string]any{
			"Image": image, "Tty": tty, "OpenStdin": true,
			"Cmd": []string{"sh", "-c", "stty -echo 2>/dev/null; echo begun; while read l; do echo out $l; echo err $l >&2; [ $l = end ] && exit 5; done"},
		})
		const query = "?stream=1&stdin=1&stdout=1&stderr=1&logs=1&detachKeys=ctrl-x"
		one := wsAttach(t, ctx, e, "/containers/"+id+"/attach/ws"+query)
		two := wsAttach(t, ctx, e, "/containers/"+id+"/attach/ws"+query)
		s, err := api.Hijack(ctx, "/containers/"+id+"/attach?stream=1&stdin=1&stdout=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
		for i, ws := range []*websocket.Conn{one, two} {
			word := []string{"first", "second"}[i]
			if err := ws.Write(ctx, websocket.MessageText, []byte(word+"\n")); err != nil {
				t.Fatal(err)
			}
			for j, reader := range []*websocket.Conn{one, two} {
				if got, err := readUntil(t, ctx, reader, "err "+word); err != nil || !strings.Contains(got, "out "+word) {
					t.Errorf("tty %v: client %d got %q of client %d, %v", tty, j, got, i, err)
				}
			}
		}
		// One leaves without a word, which is nothing to the container.
		one.CloseNow()
		if tty { // and one by its keys
			if err := two.Write(ctx, websocket.MessageBinary, []byte{'x' - 'a' + 1}); err != nil {
				t.Fatal(err)
			}
			if got, err := readUntil(t, ctx, two, "\x00never"); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("detached: %q, %v", got, err)
			}
		}
		// What was before comes again with logs.
		three := wsAttach(t, ctx, e, "/containers/"+id+"/attach/ws"+query)
		if got, err := readUntil(t, ctx, three, "err second"); err != nil || !strings.Contains(got, "begun") {
			t.Errorf("tty %v: the log gave %q, %v", tty, got, err)
		}
		if _, err := io.WriteString(s, "end\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := readUntil(t, ctx, three, "err end"); err != nil {
			t.Errorf("tty %v: at the end %q, %v", tty, got, err)
		}
		if _, err := readUntil(t, ctx, three, "\x00never"); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("tty %v: the end of the container: %v, want a normal closure", tty, err)
		}
		var code struct{ StatusCode int }
		do(t, ctx, api, "POST", "/containers/"+id+"/wait", nil, &code)
		if code.StatusCode != 5 {
			t.Errorf("tty %v: exit code %d", tty, code.StatusCode)
		}
		do(t, ctx, api, "DELETE", "/containers/"+id, nil, nil)
	}
	if st, body, err := api.Raw(ctx, "GET", "/containers/nosuch/attach/ws", nil); err != nil || st != 400 {
		t.Errorf("no handshake: %d %s %v", st, body, err)
	}
	api.Close()
	noLeaks(t, e)
}
