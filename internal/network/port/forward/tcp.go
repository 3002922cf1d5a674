package forward

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// backlog is how many connections wait while the engine is away.
	backlog = 1024
	// maxConns bounds the connections through one port: each takes two sockets and
	// two pipes. More wait in the backlog.
	maxConns = 1024
	// patience is how long a container on this host may take to accept.
	patience = 10 * time.Second
)

// tcp serves one listening socket.
type tcp struct {
	l       *net.TCPListener
	targets *targets
	log     *slog.Logger
	room    chan struct{} // a place for each connection
	ended   chan struct{}
	once    sync.Once
}

// serveTCP makes the bound socket listen and serves it until stop is called.
func serveTCP(held *os.File, to *targets, log *slog.Logger) (stop func(), err error) {
	if err := control(held, listen); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(held)
	if err != nil {
		return nil, err
	}
	s := &tcp{l: l.(*net.TCPListener), targets: to, log: log, room: make(chan struct{}, maxConns), ended: make(chan struct{})}
	go s.accept()
	return s.stop, nil
}

// listen makes a bound socket listen. The kernel checks its port again, and
// connections in TIME_WAIT, which did not keep it from being bound, are in the way
// unless it may share the port for this moment.
func listen(fd int) error {
	err := unix.Listen(fd, backlog)
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	err = unix.Listen(fd, backlog)
	return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0))
}

// stop ends the service. Unless the next engine takes the socket, it stops to
// listen, so that clients are refused as long as somebody holds it.
func (s *tcp) stop() {
	s.once.Do(func() {
		close(s.ended)
		if !s.targets.leaving() {
			_ = control(s.l, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
		}
		s.l.Close()
		s.targets.endAll()
	})
}

func (s *tcp) accept() {
	for {
		select {
		case s.room <- struct{}{}:
		case <-s.ended:
			return
		}
		c, err := s.l.AcceptTCP()
		if err != nil {
			select {
			case <-s.ended:
				return
			case <-time.After(50 * time.Millisecond): // no descriptors, or the like
				s.log.Debug("forwarder accepts nothing", "address", s.l.Addr(), "error", err)
				<-s.room
				continue
			}
		}
		go func() {
			defer func() { <-s.room }()
			s.pass(c)
		}()
	}
}

// pass connects a client to a container. One that cannot be reached refuses, as
// the kernel would.
func (s *tcp) pass(client *net.TCPConn) {
	// What is left of the connection must not keep the port from whoever binds it
	// after us.
	_ = control(client, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	reset := func() {
		_ = client.SetLinger(0)
		client.Close()
	}
	to, ok := s.targets.next()
	if !ok {
		reset()
		return
	}
	c, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		reset()
		return
	}
	server := c.(*net.TCPConn)
	end := func() { reset(); server.Close() }
	l := s.targets.begin(to, end)
	if l == nil {
		end()
		return
	}
	defer s.targets.done(to, l)
	join(client, server)
}

// join passes on bytes both ways until both ends have said all; the kernel moves
// them between the sockets (splice). The end of one direction is passed on by
// itself, and an error of one ends both.
func join(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	half := func(to, from *net.TCPConn) {
		if _, err := io.Copy(to, from); err != nil {
			a.Close()
			b.Close()
			return
		}
		_ = to.CloseWrite()
		_ = from.CloseRead()
	}
	wg.Go(func() { half(b, a) })
	half(a, b)
	wg.Wait()
	a.Close()
	b.Close()
}
