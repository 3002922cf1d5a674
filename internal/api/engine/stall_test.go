package engine

import (
	"bufio"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
)

// pipes is a listener whose connections hold nothing: a write waits for its reader.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// A client that does not even read the head of its stream holds up no other
// client, and not the server's end.
func TestClientThatReadsNoHead(t *testing.T) {
	r := newRig(t)
	asked := make(chan struct{}, 2)
	r.con.attach = func(_ context.Context, _ container.Attach, open opened) error {
		asked <- struct{}{}
		conn, err := open(true)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "bye")
		return err
	}
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(t.Context(), p) }()
	ours, theirs := net.Pipe()
	defer ours.Close()
	p.conns <- theirs
	attachTo(t, ours, "/containers/web/attach?stream=1&stdout=1", upgrade, "")
	<-asked
	time.Sleep(20 * time.Millisecond) // it comes to the head

	c := r.dial()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	attachTo(t, c, "/containers/web/attach?stream=1&stdout=1", upgrade, "")
	in := bufio.NewReader(c)
	head(t, in)
	if all, err := io.ReadAll(in); string(all) != "bye" || err != nil {
		t.Errorf("%q %v", all, err)
	}

	closed := make(chan struct{})
	go func() { r.server.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the server waits for a client that does not read")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
