package shiptest

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

func setLinesBefore(t testing.TB, f *os.File, n int64) {
	if err := unix.Fsetxattr(int(f.Fd()), format.LinesBefore, []byte(strconv.FormatInt(n, 10)), 0); err != nil {
		t.Logf("this file system keeps no attributes: %v", err)
	}
}

// texts is what a server received.
type texts struct {
	mu    sync.Mutex
	lines []string
}

// Texts implements Server.
func (s *texts) Texts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines[:len(s.lines):len(s.lines)]
}

func (s *texts) add(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, lines...)
}

// Stream is a server of connections. Serve reads one until it ends and gives the
// lines to add.
type Stream struct {
	texts
	Network, Address string      // Address of TCP is set by the first Start
	TLS              *tls.Config // nil: none
	Serve            func(c net.Conn, add func(lines ...string)) error

	l     net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
	done  sync.WaitGroup
}

// Reserve chooses the address before the server is there.
func (s *Stream) Reserve(t testing.TB) {
	if s.Network == "unix" {
		s.Address = filepath.Join(t.TempDir(), "sock")
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	l.Close()
}

// Start implements Server.
func (s *Stream) Start(t testing.TB) {
	l, err := net.Listen(s.Network, s.Address)
	if err != nil {
		t.Fatal(err)
	}
	s.l, s.conns = l, map[net.Conn]bool{}
	s.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.done.Go(func() {
				raw := c
				if s.TLS != nil {
					c = tls.Server(c, s.TLS)
				}
				if err := s.Serve(c, s.add); err != nil && err != io.EOF {
					t.Logf("server: %v", err)
				}
				raw.Close()
			})
		}
	})
	t.Cleanup(s.Stop)
}

// Stop implements Server.
func (s *Stream) Stop() {
	if s.l == nil {
		return
	}
	s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // as the kernel does for a killed process with unread bytes
		}
		c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
	s.l = nil
}

// Packets is a server of datagrams. Read gives the lines of one.
type Packets struct {
	texts
	Network, Address string
	Read             func(p []byte, files []*os.File) []string

	c    net.PacketConn
	done sync.WaitGroup
}

// Reserve chooses the address before the server is there.
func (s *Packets) Reserve(t testing.TB) {
	if s.Network == "unixgram" {
		s.Address = filepath.Join(t.TempDir(), "sock")
		return
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = c.LocalAddr().String()
	c.Close()
}

// Start implements Server.
func (s *Packets) Start(t testing.TB) {
	c, err := net.ListenPacket(s.Network, s.Address)
	if err != nil {
		t.Fatal(err)
	}
	s.c = c
	if udp, ok := c.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(4 << 20) // what the kernel allows
	}
	s.done.Go(func() {
		buf, oob := make([]byte, 256<<10), make([]byte, 128)
		for {
			var n, m int
			var err error
			if sock, ok := c.(*net.UnixConn); ok {
				n, m, _, _, err = sock.ReadMsgUnix(buf, oob)
			} else {
				n, _, err = c.ReadFrom(buf)
			}
			if err != nil {
				return
			}
			s.add(s.Read(buf[:n], received(oob[:m]))...)
		}
	})
	t.Cleanup(s.Stop)
}

// received are the files that came with a packet.
func received(oob []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m) // none is none
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

// Stop implements Server.
func (s *Packets) Stop() {
	if s.c == nil {
		return
	}
	s.c.Close()
	if s.Network == "unixgram" {
		os.Remove(s.Address)
	}
	s.done.Wait()
	s.c = nil
}
