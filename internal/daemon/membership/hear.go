package membership

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// ear leads those who call this node where they belong.
type ear struct{ *Membership }

// hear answers other nodes. Those that speak HTTP/2 want this node; the others are stores of
// other managers, and are led to ours: who they are is known here, as the certificates are now.
func (m ear) hear(ctx context.Context) error {
	m.mu.Lock()
	r, keeper := m.rec, m.keeper
	m.mu.Unlock()
	l, err := net.Listen("tcp", r.peers())
	if err != nil {
		return fmt.Errorf("where nodes call each other: %w", err)
	}
	nodes := &passed{addr: l.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	return all(ctx, map[string]func(context.Context) error{
		"peers": func(ctx context.Context) error { return m.cfg.Parts.Peers(ctx, keeper, nodes) },
		"listener": func(ctx context.Context) error {
			defer l.Close()
			var calls sync.WaitGroup
			defer calls.Wait()
			for {
				c, err := l.Accept()
				if err != nil {
					return err
				}
				calls.Go(func() { m.guide(ctx, c, nodes) })
			}
		},
	})
}

// greets is how long a caller has to begin.
const greets = 5 * time.Second

// guide leads one connection where it belongs, and blocks until it has ended there.
func (m ear) guide(ctx context.Context, c net.Conn, nodes *passed) {
	_ = c.SetReadDeadline(time.Now().Add(greets)) // a connection that cannot have one has ended
	said, h2, err := greeting(c)
	_ = c.SetReadDeadline(time.Time{})
	whole := &read{Conn: c, first: said}
	switch {
	case err != nil:
		_ = c.Close()
	case h2:
		select {
		case nodes.conns <- whole:
		case <-nodes.done:
			_ = c.Close()
		case <-ctx.Done():
			_ = c.Close()
		}
	default:
		m.splice(ctx, whole)
	}
}

// splice joins a connection with the store's server, if another manager is at its end.
func (m ear) splice(ctx context.Context, c net.Conn) {
	m.mu.Lock()
	keeper := m.keeper
	m.mu.Unlock()
	conn := tls.Server(c, keeper.Server(m.fellow))
	shaking, cancel := context.WithTimeout(ctx, greets)
	err := conn.HandshakeContext(shaking)
	cancel()
	if err == nil {
		_, err = keeper.PeerOf(conn.ConnectionState()) // who shows no certificate has passed until here
	}
	var s net.Conn
	if err == nil {
		s, err = net.Dial("unix", m.peerSocket())
	}
	if err != nil {
		m.log.Debug("a call for the store", "from", c.RemoteAddr(), "error", err)
		_ = c.Close() // a stranger, or the server does not run
		return
	}
	closed := sync.OnceFunc(func() { _, _ = c.Close(), s.Close() })
	defer closed()
	defer context.AfterFunc(ctx, closed)()
	var ways sync.WaitGroup
	ways.Go(func() { defer closed(); _, _ = io.Copy(s, conn) })
	ways.Go(func() { defer closed(); _, _ = io.Copy(conn, s) })
	ways.Wait()
}

// fellow tells why a caller is no manager of the cluster. One whose store is not open yet has
// but the certificate to go by, and what it was told last.
func (m ear) fellow(p ca.Peer) error {
	if p.Role != ca.Manager {
		return fmt.Errorf("node %s is no manager: %w", p.Node, errdefs.ErrPermissionDenied)
	}
	m.mu.Lock()
	s := m.server
	m.mu.Unlock()
	if s == nil || !s.open() {
		if m.Barred(p.Node) {
			return fmt.Errorf("node %s was removed: %w", p.Node, errdefs.ErrPermissionDenied)
		}
		return nil
	}
	n, err := store.Find[*cluster.Node](s.store.Load().View(), p.Node)
	if err != nil || !n.Spec.Manager && n.Status.Manager == nil {
		return fmt.Errorf("node %s is no manager any more: %w", p.Node, errdefs.ErrPermissionDenied)
	}
	return nil
}

// maxGreeting is the most that is read of a caller before it is known what it wants.
const maxGreeting = 64 << 10

// errHeard ends a handshake that was begun to listen only.
var errHeard = errors.New("heard enough")

// greeting reads the first message of TLS, and tells whether its sender speaks HTTP/2. What
// was read has to be read again by who answers.
func greeting(c io.Reader) (said []byte, h2 bool, err error) {
	var heard bytes.Buffer
	var hello *tls.ClientHelloInfo
	ear := tls.Server(listening{io.TeeReader(io.LimitReader(c, maxGreeting), &heard)}, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, errHeard
		},
	})
	if err := ear.Handshake(); hello == nil {
		return nil, false, fmt.Errorf("no greeting of TLS: %w", err)
	}
	return heard.Bytes(), slices.Contains(hello.SupportedProtos, "h2"), nil
}

// listening is a connection on which nothing can be said.
type listening struct{ io.Reader }

func (listening) Write(b []byte) (int, error)      { return len(b), nil }
func (listening) Close() error                     { return nil }
func (listening) LocalAddr() net.Addr              { return nil }
func (listening) RemoteAddr() net.Addr             { return nil }
func (listening) SetDeadline(time.Time) error      { return nil }
func (listening) SetReadDeadline(time.Time) error  { return nil }
func (listening) SetWriteDeadline(time.Time) error { return nil }

// read is a connection of which some was read already.
type read struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (r *read) Read(b []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(b, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// passed is a net.Listener of connections that somebody else has accepted.
type passed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// Accept implements net.Listener.
func (p *passed) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *passed) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *passed) Addr() net.Addr { return p.addr }

func joinHost(host, port string) string { return net.JoinHostPort(host, port) }
