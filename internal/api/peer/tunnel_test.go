package peer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/ca"
)

// hijacked answers "/echo" on a connection taken over, until the caller closes its half, and
// anything else with its path.
type hijacked struct{ gone chan error }

func (h hijacked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/echo" && r.URL.Path != "/wait" {
		fmt.Fprint(w, r.URL.Path)
		return
	}
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		h.gone <- err
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\n\r\n")
	if r.URL.Path == "/wait" { // it only looks whether somebody is there
		_, err := c.Read(make([]byte, 1))
		h.gone <- err
		return
	}
	_, _ = io.Copy(c, buf)
	_, _ = io.WriteString(c, "bye")
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
	_, err = io.Copy(io.Discard, c)
	h.gone <- err
}

func ask(t *testing.T, c net.Conn, path string) *bufio.Reader {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "\r\n" {
			return in
		}
	}
}

// A connection with a node's engine has two halves, and ends with either end of it.
func TestTunnel(t *testing.T) {
	s := newSite(t)
	h := hijacked{make(chan error, 1)}
	w := s.node("w1", ca.Worker, Config{Tasks: h})
	d := s.dialer(s.keeper("m1", "c1", ca.Manager))
	dial := func() net.Conn {
		t.Helper()
		c, err := d.Engine(t.Context(), "w1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	if b, err := io.ReadAll(ask(t, c, "/a/path")); err != nil || string(b) != "/a/path" {
		t.Errorf("%q, %v", b, err)
	}
	c = dial()
	in := ask(t, c, "/echo")
	word := strings.Repeat("there and back ", 100_000)
	go func() {
		_, _ = io.WriteString(c, word)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if b, err := io.ReadAll(in); err != nil || string(b) != word+"bye" {
		t.Errorf("%d bytes, want %d; %v", len(b), len(word)+3, err)
	}
	if err := <-h.gone; err != nil {
		t.Errorf("the node: %v", err)
	}
	c = dial()
	ask(t, c, "/wait")
	c.Close()
	select {
	case <-h.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the node has not heard that the caller is gone")
	}
	c = dial()
	in = ask(t, c, "/wait")
	w.stop()
	if _, err := in.ReadByte(); err == nil {
		t.Error("the node is gone, and goes on")
	}
	<-h.gone
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Engine(ctx, "w1"); err == nil {
		t.Error("connected for one who does not wait")
	}
}
