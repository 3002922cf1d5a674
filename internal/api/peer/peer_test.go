package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// site is a cluster on loopback.
type site struct {
	*testing.T
	a       *ca.Authority
	mu      sync.Mutex
	addrs   map[string]string
	removed map[string]bool
}

func newSite(t *testing.T) *site {
	t.Helper()
	root, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.NewAuthority(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &site{T: t, a: a, addrs: map[string]string{}, removed: map[string]bool{}}
}

func (s *site) keeper(node, cluster string, role ca.Role) *ca.Keeper {
	s.Helper()
	key, csr, err := ca.NewRequest()
	if err != nil {
		s.Fatal(err)
	}
	chain, err := s.a.Issue(csr, role, node, cluster, 0)
	if err != nil {
		s.Fatal(err)
	}
	k, err := ca.Keep(filepath.Join(s.TempDir(), "identity.json"), key, chain, s.a.Trusted())
	if err != nil {
		s.Fatal(err)
	}
	return k
}

func (s *site) addrOf(node string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.addrs[node]
	return a, ok
}

func (s *site) check(p ca.Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed[p.Node] {
		return fmt.Errorf("node %s was removed: %w", p.Node, errdefs.ErrPermissionDenied)
	}
	return nil
}

// here is a node that is served, and calls others.
type here struct {
	*Dialer
	k    *ca.Keeper
	stop func()
}

// node starts one. What cfg leaves out has nothing.
func (s *site) node(name string, role ca.Role, cfg Config) *here {
	s.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	n := &here{k: s.keeper(name, "c1", role)}
	cfg.Keeper, cfg.Check, cfg.Log = n.k, s.check, slog.New(slog.DiscardHandler)
	if cfg.Images == nil {
		cfg.Images = nothing{}
	}
	if cfg.Logs == nil {
		cfg.Logs = nothing{}
	}
	if cfg.Tasks == nil {
		cfg.Tasks = http.NotFoundHandler()
	}
	s.mu.Lock()
	s.addrs[name] = l.Addr().String()
	s.mu.Unlock()
	n.Dialer = s.dialer(n.k)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- New(cfg).Serve(ctx, l) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.Error(err)
		}
	})
	s.Cleanup(n.stop)
	return n
}

func (s *site) dialer(k *ca.Keeper) *Dialer {
	d := NewDialer(k, s.addrOf)
	s.Cleanup(d.Close)
	return d
}

// nothing has neither images nor logs.
type nothing struct{}

func (nothing) Find(_ context.Context, w image.Wanted) (image.Held, error) {
	return image.Held{}, fmt.Errorf("image: %w", errdefs.ErrNotFound)
}

func (nothing) Part(context.Context, digest.Digest, digest.Digest) (content.ReaderAt, error) {
	return nil, fmt.Errorf("part: %w", errdefs.ErrNotFound)
}

func (nothing) Open(_ context.Context, id string, _ logs.ReadOptions) (logs.Reader, error) {
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

// someID is that of an image nobody has.
var someID = digest.FromString("some image")

// Nodes are heard by nodes of their cluster only, and managers alone reach tasks.
func TestWhoMay(t *testing.T) {
	s := newSite(t)
	s.node("m1", ca.Manager, Config{})
	s.node("w1", ca.Worker, Config{})
	manager, worker := s.dialer(s.keeper("m2", "c1", ca.Manager)), s.dialer(s.keeper("w2", "c1", ca.Worker))
	foreign := newSite(t)
	foreign.addrs = s.addrs
	s.removed["w9"] = true
	want := image.Wanted{ID: someID}
	for what, c := range map[string]struct {
		d    *Dialer
		to   string
		is   func(error) bool // of a question about images
		task func(error) bool // of one about tasks
	}{
		"a manager":                      {manager, "w1", errdefs.IsNotFound, errdefs.IsNotFound},
		"a manager of another":           {manager, "m1", errdefs.IsNotFound, errdefs.IsNotFound},
		"a worker":                       {worker, "m1", errdefs.IsNotFound, errdefs.IsPermissionDenied},
		"a worker of another":            {worker, "w1", errdefs.IsNotFound, errdefs.IsPermissionDenied},
		"one of a foreign root":          {foreign.dialer(foreign.keeper("m3", "c1", ca.Manager)), "w1", errdefs.IsUnavailable, errdefs.IsUnavailable},
		"one of another cluster":         {s.dialer(s.keeper("m4", "c2", ca.Manager)), "w1", errdefs.IsUnavailable, errdefs.IsUnavailable},
		"one who was removed":            {s.dialer(s.keeper("w9", "c1", ca.Worker)), "w1", errdefs.IsUnavailable, errdefs.IsUnavailable},
		"a node that is not there":       {manager, "w7", errdefs.IsUnavailable, errdefs.IsUnavailable},
		"a name that is no node's":       {manager, "w1/../x", errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
		"another node in a node's place": {NewDialer(s.keeper("m5", "c1", ca.Manager), func(string) (string, bool) { return s.addrs["w1"], true }), "m1", errdefs.IsUnavailable, errdefs.IsUnavailable},
	} {
		if _, err := c.d.Has(t.Context(), c.to, want); !c.is(err) {
			t.Errorf("%s: images: %v", what, err)
		}
		if _, err := c.d.Logs(t.Context(), c.to, "c", logs.ReadOptions{Stdout: true, Tail: -1}); !c.task(err) {
			t.Errorf("%s: logs: %v", what, err)
		}
		conn, err := c.d.Engine(t.Context(), c.to)
		if err == nil {
			conn.Close()
			err = errdefs.ErrNotFound // as managers have it: they are connected
		}
		if !c.task(err) {
			t.Errorf("%s: the engine: %v", what, err)
		}
	}
	for what, conf := range map[string]*tls.Config{
		"no certificate": {NextProtos: []string{"h2"}, InsecureSkipVerify: true},
		"no HTTP/2":      with(s, "w2"),
	} {
		c, err := tls.Dial("tcp", s.addrs["w1"], conf)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = c.Write([]byte("GET " + pathImage + "?id=" + someID.String() + " HTTP/1.1\r\nHost: x\r\n\r\n"))
			b := make([]byte, 100)
			n, rerr := c.Read(b)
			c.Close()
			if strings.Contains(string(b[:n]), "HTTP/1.1") || errors.Is(rerr, context.DeadlineExceeded) {
				t.Errorf("%s: answered %q, %v", what, b[:n], rerr)
			}
		}
	}
}

// with is the TLS of a node that does not say it speaks HTTP/2.
func with(s *site, node string) *tls.Config {
	c := s.keeper(node, "c1", ca.Manager).ClientOfNode("w1")
	c.NextProtos = nil
	return c
}

// A certificate that was renewed is used from then on.
func TestRenewed(t *testing.T) {
	s := newSite(t)
	s.node("m1", ca.Manager, Config{})
	k := s.keeper("n2", "c1", ca.Worker)
	d := s.dialer(k)
	o := logs.ReadOptions{Stdout: true}
	if _, err := d.Logs(t.Context(), "m1", "c", o); !errdefs.IsPermissionDenied(err) {
		t.Fatal(err)
	}
	key, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.a.Issue(csr, ca.Manager, "n2", "c1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Set(key, chain, s.a.Trusted()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Logs(t.Context(), "m1", "c", o); !errdefs.IsNotFound(err) {
		t.Errorf("promoted: %v", err)
	}
}
