// Package conn holds the connections of log drivers: streams that notice when the
// other side goes, and datagrams that ask whether anybody is there.
package conn

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"escale.dev/escale/internal/logs/ship"
)

// DialTime bounds how long connecting takes.
const DialTime = 10 * time.Second

// Stream is a connection of bytes that is made when something is to be written, and
// made anew after it broke. For one goroutine.
type Stream struct {
	// Dial connects.
	Dial func(ctx context.Context) (net.Conn, error)
	// Timeout bounds one Write; 0: none.
	Timeout time.Duration
	// Answers: the other side answers, and Conn is read by the driver. Otherwise
	// whatever it says is thrown away and only its going is noticed.
	Answers bool

	c     net.Conn
	since time.Time // of c
	gone  chan struct{}

	mu  sync.Mutex
	at  time.Time // when it broke
	why error
}

// Connect makes the connection if there is none. A connection that broke meanwhile is
// dropped, with a *ship.BrokenError.
func (s *Stream) Connect(ctx context.Context) error {
	if err := s.broken(); err != nil {
		s.Drop()
		return err
	}
	if s.c != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, DialTime)
	defer cancel()
	c, err := s.Dial(ctx)
	if err != nil {
		return err
	}
	s.c, s.since = c, time.Now()
	if !s.Answers {
		s.gone = make(chan struct{})
		go s.listen(c, s.gone)
	}
	return nil
}

// listen waits for the end of a connection.
func (s *Stream) listen(c net.Conn, gone chan struct{}) {
	_, err := io.Copy(io.Discard, c)
	if err == nil {
		err = io.EOF
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.why = time.Now(), err
	close(gone)
}

func (s *Stream) broken() error {
	if s.gone == nil {
		return nil
	}
	select {
	case <-s.gone:
		s.mu.Lock()
		defer s.mu.Unlock()
		return &ship.BrokenError{At: s.at, Err: s.why}
	default:
		return nil
	}
}

// Write connects if need be and writes all of p. Once there was a connection, an error
// is a *ship.BrokenError and the connection is dropped. It blocks while the other
// side is slow, until ctx ends or for Timeout.
func (s *Stream) Write(ctx context.Context, p []byte) error {
	if err := s.Connect(ctx); err != nil {
		return err
	}
	var deadline time.Time
	if s.Timeout > 0 {
		deadline = time.Now().Add(s.Timeout)
	}
	return s.During(ctx, deadline, func(c net.Conn) error {
		_, err := c.Write(p)
		return err
	})
}

// During does something with the connection until ctx ends or the deadline, if it is
// set, has come; after an error the connection is dropped, and the error is a
// *ship.BrokenError.
func (s *Stream) During(ctx context.Context, deadline time.Time, do func(net.Conn) error) error {
	c := s.c
	err := c.SetDeadline(deadline)
	if err != nil {
		s.Drop()
		return &ship.BrokenError{At: time.Now(), Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // a dead connection fails anyway
	err = do(c)
	if stop() && err == nil {
		return nil
	}
	s.Drop()
	if err == nil {
		return ctx.Err() // all was done, but the deadline has been spoilt
	}
	return &ship.BrokenError{At: time.Now(), Err: err}
}

// Gone is closed when the connection breaks; nil when there is none.
func (s *Stream) Gone() <-chan struct{} { return s.gone }

// Age is how long the connection has been there; 0 when there is none.
func (s *Stream) Age() time.Duration {
	if s.c == nil {
		return 0
	}
	return time.Since(s.since)
}

// Drop closes the connection. Idempotent.
func (s *Stream) Drop() {
	if s.c == nil {
		return
	}
	_ = s.c.Close() // what matters was told by Write
	s.c = nil
	if s.gone != nil {
		<-s.gone
		s.gone = nil
	}
}

// probeTime is how long the answer of a machine that nobody listens on may take.
const probeTime = 100 * time.Millisecond

// Datagram sends packets. After connecting, and after a refusal, it waits a moment
// whether the first packet is refused, so that a server that is away costs as
// little as can be. For one goroutine.
type Datagram struct {
	Dial func(ctx context.Context) (net.Conn, error)

	c     net.Conn
	known bool // the last packets were not refused
}

// Connect makes the socket if there is none.
func (d *Datagram) Connect(ctx context.Context) error {
	if d.c != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, DialTime)
	defer cancel()
	c, err := d.Dial(ctx)
	if err != nil {
		return err
	}
	d.c, d.known = c, false
	return nil
}

// Write sends one packet. A refusal after packets that went well is a
// *ship.BrokenError: some of those may have been refused. It blocks while
// the queue of a unix socket is full, until ctx ends.
func (d *Datagram) Write(ctx context.Context, p []byte) error {
	return d.Do(ctx, func(c net.Conn) error {
		_, err := c.Write(p)
		return err
	})
}

// Do is Write for packets that take more than bytes.
func (d *Datagram) Do(ctx context.Context, send func(net.Conn) error) error {
	if err := d.Connect(ctx); err != nil {
		return err
	}
	c := d.c
	if err := c.SetDeadline(time.Time{}); err != nil {
		d.Drop()
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // a dead socket fails anyway
	defer stop()
	err := send(c)
	if err == nil && !d.known {
		err = d.probe(c)
	}
	if err == nil {
		d.known = true
		return nil
	}
	if TooLarge(err) {
		return err
	}
	known := d.known
	d.Drop()
	if known {
		return &ship.BrokenError{At: time.Now(), Err: err}
	}
	return err
}

// probe waits for a refusal of what was just sent. Unix sockets refuse at once.
func (d *Datagram) probe(c net.Conn) error {
	if c.RemoteAddr().Network() != "udp" {
		return nil
	}
	if err := c.SetReadDeadline(time.Now().Add(probeTime)); err != nil {
		return err
	}
	var b [1]byte
	if _, err := c.Read(b[:]); err != nil {
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			return err
		}
	}
	return nil
}

// Drop closes the socket. Idempotent.
func (d *Datagram) Drop() {
	if d.c != nil {
		_ = d.c.Close() // nothing is buffered
		d.c = nil
	}
}

// Link is how a driver reaches a server that takes a stream or datagrams: one of
// the two is set.
type Link struct {
	Stream *Stream
	Packet *Datagram
}

// Gone implements ship.Driver: only the end of a stream can be told.
func (l *Link) Gone() <-chan struct{} {
	if l.Stream == nil {
		return nil
	}
	return l.Stream.Gone()
}

// Close implements ship.Driver. A Link that was never used may be closed.
func (l *Link) Close() error {
	if l.Stream != nil {
		l.Stream.Drop()
		return nil
	}
	l.Packet.Drop()
	return nil
}
