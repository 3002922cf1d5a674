package engine

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"github.com/coder/websocket"
)

// A page in a browser can neither attach to a container of an engine that listens on TCP nor
// change anything there, whatever it calls the engine; programs, and pages of the engine's own
// address, can.
func TestPagesOfOthers(t *testing.T) {
	r := newRig(t)
	stdinOpen(r)
	var attached atomic.Int32
	r.con.attach = func(_ context.Context, _ container.Attach, open opened) error {
		conn, err := open(true)
		if err != nil {
			return err
		}
		attached.Add(1)
		return conn.Close()
	}
	srv := httptest.NewServer(r.server.Handler())
	defer srv.Close()
	address := strings.TrimPrefix(srv.URL, "http://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, host string, header ...string) int {
		t.Helper()
		req, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	shake := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
	const ws = "/containers/web/attach/ws?stream=1&stdin=1&stdout=1"
	for _, c := range []struct {
		name, method, path, host string
		header                   []string
		want                     int
	}{
		{"a program attaches", "GET", ws, address, shake, 101},
		{"a program by a name", "GET", ws, "docker:" + port, shake, 101},
		{"a page of our own attaches", "GET", ws, address, append(shake, "Origin", srv.URL), 101},
		{"a page attaches", "GET", ws, address, append(shake, "Origin", "http://evil.example"), 403},
		{"a file attaches", "GET", ws, address, append(shake, "Origin", "null"), 403},
		{"a page attaches, its name leads here", "GET", ws, "evil.example:" + port, append(shake, "Origin", "http://evil.example:"+port), 403},
		{"a program kills", "POST", "/containers/web/kill", address, nil, 204},
		{"a page kills", "POST", "/containers/web/kill", address, []string{"Origin", "http://evil.example"}, 403},
		{"a file kills", "POST", "/containers/web/kill", address, []string{"Origin", "null"}, 403},
		{"a page kills, says its browser", "POST", "/containers/web/kill", address, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"a page kills, its name leads here", "POST", "/containers/web/kill", "evil.example:" + port, []string{"Origin", "http://evil.example:" + port}, 403},
		{"a page of our own kills", "POST", "/containers/web/kill", "localhost:" + port, []string{"Origin", "http://localhost:" + port}, 204},
		{"a link is followed", "GET", "/_ping", address, []string{"Sec-Fetch-Site", "cross-site"}, 200},
	} {
		if got := ask(c.method, c.path, c.host, c.header...); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if n := attached.Load(); n != 3 {
		t.Errorf("%d attached, want 3", n)
	}
}

// wsFrame is a frame as a client sends it (RFC 6455, 5.2); masked or not.
func wsFrame(op byte, mask bool, length uint64, payload string) []byte {
	b := []byte{op, 127}
	b = binary.BigEndian.AppendUint64(b, length)
	if mask {
		b[1] |= 0x80
		b = append(b, 0, 0, 0, 0) // such a mask changes nothing
	}
	return append(b, payload...)
}

// Frames that break the rules end the connection, not the engine; those that keep them, in
// however many pieces, arrive. Nothing is made for a length that is only promised.
func TestWebsocketFrames(t *testing.T) {
	const text, binaryFin, more, last, ping = 0x01, 0x82, 0x00, 0x80, 0x89
	for _, c := range []struct {
		name   string
		frames [][]byte
		want   string
		ends   bool
	}{
		{"whole", [][]byte{wsFrame(binaryFin, true, 5, "hello")}, "hello", false},
		{"in pieces, a ping between", [][]byte{wsFrame(text, true, 2, "he"), wsFrame(ping, true, 1, "x"), wsFrame(more, true, 2, "ll"), wsFrame(last, true, 1, "o")}, "hello", false},
		{"without a mask", [][]byte{wsFrame(binaryFin, false, 5, "hello")}, "", true},
		{"more of nothing", [][]byte{wsFrame(last, true, 5, "hello")}, "", true},
		{"a message within a message", [][]byte{wsFrame(text, true, 2, "he"), wsFrame(text, true, 2, "he")}, "he", true},
		{"an operation that is none", [][]byte{wsFrame(0x83, true, 5, "hello")}, "", true},
		{"reserved bits", [][]byte{wsFrame(0xf2, true, 5, "hello")}, "", true},
		{"a ping too long", [][]byte{wsFrame(ping, true, 126, strings.Repeat("x", 126))}, "", true},
		{"a length beyond all", [][]byte{wsFrame(binaryFin, true, 1<<63, "x")}, "", true},
		{"a promise of 8 EB", [][]byte{wsFrame(binaryFin, true, 1<<62, "hello")}, "hello", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			stdinOpen(r)
			got, ended := make(chan string, 1), make(chan struct{})
			r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
				defer close(ended)
				conn, err := open(true)
				if err != nil {
					return err
				}
				b := make([]byte, 5)
				n, _ := io.ReadFull(conn, b)
				got <- string(b[:n])
				_, err = io.Copy(io.Discard, conn)
				return err
			}
			srv := httptest.NewServer(r.server.Handler())
			defer srv.Close()
			nc, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(nc, "GET /containers/web/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
			in := bufio.NewReader(nc)
			if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "101") {
				t.Fatal(line, err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for _, f := range c.frames {
				for _, b := range f { // each byte by itself
					if _, err := nc.Write([]byte{b}); err != nil {
						break
					}
				}
			}
			select {
			case s := <-got:
				if s != c.want {
					t.Errorf("the container got %q, want %q", s, c.want)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("nothing came")
			}
			if !c.ends {
				select {
				case <-ended:
					t.Error("the attachment has ended")
				default:
				}
				nc.Close()
			}
			select {
			case <-ended:
			case <-time.After(8 * time.Second):
				t.Error("the attachment goes on")
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
				t.Errorf("it took %d MB", grown>>20)
			}
		})
	}
}

// A client that closes while output comes ends the attachment, though it is being written to.
func TestWebsocketCloseDuringOutput(t *testing.T) {
	for _, goodbye := range []bool{true, false} {
		r := newRig(t)
		stdinOpen(r)
		ended := make(chan struct{})
		r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
			defer close(ended)
			conn, err := open(true)
			if err != nil {
				return err
			}
			block := make([]byte, 64<<10)
			for {
				if _, err := conn.Write(block); err != nil {
					return err
				}
			}
		}
		ws := dialWebsocket(t, r, "/containers/web/attach/ws?stream=1&stdout=1")
		ws.SetReadLimit(-1)
		if _, _, err := ws.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if goodbye {
			go ws.Close(websocket.StatusNormalClosure, "")
		} else {
			ws.CloseNow()
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("goodbye %v: output goes on", goodbye)
		}
	}
}

// Every route that takes a body refuses one that does not end, and reads but its beginning.
func TestEndlessBodies(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{
		"/auth", "/containers/create", "/containers/web/exec", "/exec/x/start", "/containers/web/update", "/containers/web/start", "/containers/web/kill",
		"/containers/web/stop", "/commit?container=web", "/volumes/create", "/containers/web/attach", "/containers/web/wait", "/containers/prune", "/networks/create",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		sent, status := postEndlessly(t, r, path)
		runtime.ReadMemStats(&after)
		if sent > 64<<20 {
			t.Errorf("%s: %d MB were taken", path, sent>>20)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 200<<20 {
			t.Errorf("%s: it took %d MB", path, grown>>20)
		}
		if strings.Contains(path, "create") && !strings.Contains(status, " 4") {
			t.Errorf("%s: answered %q", path, status)
		}
	}
}

// postEndlessly posts a string of JSON without an end until the server has had enough.
func postEndlessly(t *testing.T, r *rig, path string) (sent int64, status string) {
	t.Helper()
	c := r.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"Image\":\"", path, 1<<30)
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(c).ReadString('\n') // what came is judged
		answered <- line
	}()
	block := []byte(strings.Repeat("a", 1<<16))
	_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for sent < 1<<30 {
		n, err := c.Write(block)
		sent += int64(n)
		if err != nil {
			break
		}
	}
	select {
	case status = <-answered:
	case <-time.After(5 * time.Second):
	}
	return sent, status
}

// A client that sends its body byte by byte, without an end, is given up.
func TestSlowBody(t *testing.T) {
	before := bodyTimeout
	bodyTimeout = 200 * time.Millisecond
	t.Cleanup(func() { bodyTimeout = before })
	r := newRig(t)
	c := r.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = io.WriteString(c, " ") // it may have hung up
			}
		}
	}()
	begin := time.Now()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, " 4") || time.Since(begin) > 5*time.Second {
		t.Errorf("after %v: %q, %v", time.Since(begin), line, err)
	}
}

// Of parameters that come twice the first counts, as in Docker; what is no query is refused.
func TestAmbiguousQueries(t *testing.T) {
	for raw, want := range map[string]string{
		"force=1&force=0": "1", "force=&force=1": "", "FORCE=1": "", "force=%31": "1", "force=1;x=2": "!", "force=%zz": "!", "force%3D1": "", "&&force=1&&": "1",
		"force=a%00b": "a\x00b", "force=1#force=2": "1#force=2", strings.Repeat("x=1&", 1000) + "force=1": "1", strings.Repeat("x=1&", 100_000): "!",
	} {
		p, err := parseParams(raw)
		if (err != nil) != (want == "!") || err == nil && p.get("force") != want {
			t.Errorf("%.40q: %q, %v", raw, p.get("force"), err)
		}
	}
}
