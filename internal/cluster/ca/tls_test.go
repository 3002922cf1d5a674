package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// talk connects a client to a server and gives whom the server has seen. It is an error when
// either of them does not want the other.
func talk(server *Keeper, check func(Peer) error, client *tls.Config) (Peer, error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if check == nil {
		check = func(Peer) error { return nil }
	}
	type seen struct {
		p   Peer
		err error
	}
	done := make(chan seen, 1)
	go func() {
		defer a.Close()
		s := tls.Server(a, server.Server(check))
		if err := s.Handshake(); err != nil {
			done <- seen{err: err}
			return
		}
		p, err := server.PeerOf(s.ConnectionState())
		_, werr := s.Write([]byte("x"))
		if err == nil {
			err = werr
		}
		done <- seen{p, err}
	}()
	c := tls.Client(b, client)
	_, err := io.ReadFull(c, make([]byte, 1)) // with TLS 1.3 a client hears of a refusal when it reads
	_ = b.Close()
	got := <-done
	if got.err != nil {
		return Peer{}, got.err
	}
	return got.p, err
}

// Only nodes of the cluster talk to each other, and only those of the role that is called
// are believed to be it.
func TestTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := root(t)
		a := authority(t, r, nil)
		manager, worker := node(t, a, "m", Manager, "c1", 0), node(t, a, "w", Worker, "c1", 0)
		p, err := talk(manager, nil, worker.Client(Manager))
		if err != nil || p.Node != "w" || p.Role != Worker {
			t.Fatalf("%+v, %v", p, err)
		}
		joining, err := Joining(r.PEM())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := talk(manager, nil, joining); !errdefs.IsUnauthorized(err) {
			t.Errorf("a caller without a certificate is %v", err)
		}
		foreign := authority(t, root(t), nil)
		stranger, imposter := node(t, foreign, "w", Manager, "c1", 0), node(t, a, "o", Worker, "c2", 0)
		unasked := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // it calls whoever answers
		for what, c := range map[string]struct {
			server *Keeper
			client *tls.Config
			check  func(Peer) error
		}{
			"a worker in a manager's place": {worker, node(t, a, "w2", Worker, "c1", 0).Client(Manager), nil},
			"a manager of a foreign root":   {stranger, worker.Client(Manager), nil},
			"a caller of a foreign root":    {manager, with(unasked, stranger), nil},
			"a caller of another cluster":   {manager, with(unasked, imposter), nil},
			"one who is not wanted any more": {manager, worker.Client(Manager), func(p Peer) error {
				return fmt.Errorf("node %s was removed: %w", p.Node, errdefs.ErrPermissionDenied)
			}},
			"a joiner and a foreign root": {stranger, joining, nil},
			"TLS 1.2":                     {manager, &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}, nil},
		} {
			if p, err := talk(c.server, c.check, c.client); err == nil {
				t.Errorf("%s: connected, as %+v", what, p)
			}
		}
	})
}

// Who keeps one configuration for long has always the identity of the moment, and is as careful
// as others.
func TestLasting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authority(t, root(t), nil)
		manager, worker := node(t, a, "m", Manager, "c1", 0), node(t, a, "w", Worker, "c1", time.Hour)
		lasting, taken := worker.Lasting(Manager), worker.Client(Manager)
		if p, err := talk(manager, nil, lasting); err != nil || p.Node != "w" {
			t.Fatalf("%+v, %v", p, err)
		}
		if len(lasting.NextProtos) > 0 {
			t.Errorf("it names %v", lasting.NextProtos)
		}
		for what, server := range map[string]*Keeper{
			"a worker in a manager's place": node(t, a, "w2", Worker, "c1", 0),
			"a manager of a foreign root":   node(t, authority(t, root(t), nil), "m", Manager, "c1", 0),
			"a manager of another cluster":  node(t, a, "m", Manager, "c2", 0),
		} {
			if p, err := talk(server, nil, lasting); err == nil {
				t.Errorf("%s: connected, as %+v", what, p)
			}
		}
		// Another root, other certificates; the first ones have expired.
		time.Sleep(2 * time.Hour)
		b := authority(t, root(t), nil)
		manager = node(t, b, "m", Manager, "c1", 0)
		if _, err := talk(manager, nil, lasting); err == nil {
			t.Error("the next root is trusted before its time")
		}
		key, csr, err := NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := b.Issue(csr, Worker, "w", "c1", 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := worker.Set(key, chain, b.Trusted()); err != nil {
			t.Fatal(err)
		}
		if p, err := talk(manager, nil, lasting); err != nil || p.Node != "w" {
			t.Errorf("%+v, %v", p, err)
		}
		if _, err := talk(manager, nil, taken); err == nil {
			t.Error("what was taken once lasts, too: this test says nothing")
		}
	})
}

// Programs that read files find key and certificate that fit together, and the roots.
func TestWriteFiles(t *testing.T) {
	r := root(t)
	a := authority(t, r, nil)
	k := node(t, a, "n", Manager, "c1", 0)
	dir := filepath.Join(t.TempDir(), "tls")
	pair, roots, err := k.WriteFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	check := func() (files []os.FileInfo) {
		t.Helper()
		c, err := tls.LoadX509KeyPair(pair, pair)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(c.Certificate, k.Identity().cert.Certificate, bytes.Equal) {
			t.Error("it is another certificate")
		}
		if is, err := os.ReadFile(roots); err != nil || !bytes.Equal(is, k.Identity().Roots) {
			t.Errorf("%s, %v", is, err)
		}
		for _, f := range []string{pair, roots} {
			st, err := os.Stat(f)
			if err != nil || st.Mode().Perm() != 0o600 {
				t.Fatalf("%v, %v", st, err)
			}
			files = append(files, st)
		}
		return files
	}
	before := check()
	write := func() {
		t.Helper()
		if _, _, err := k.WriteFiles(dir); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if same := check(); !os.SameFile(before[0], same[0]) || !os.SameFile(before[1], same[1]) {
		t.Error("what has not changed is written anew")
	}
	rotation, err := a.Rotate(root(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Trust(authority(t, r, rotation).Trusted()); err != nil {
		t.Fatal(err)
	}
	write()
	if after := check(); !os.SameFile(before[0], after[0]) || os.SameFile(before[1], after[1]) {
		t.Error("only the roots have changed")
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if _, _, err := k.WriteFiles(pair); err == nil {
		t.Error("files were written to a file")
	}
}

func with(c *tls.Config, k *Keeper) *tls.Config {
	c = c.Clone()
	c.Certificates = []tls.Certificate{k.Identity().cert}
	return c
}

// An expired certificate is worth nothing, on either side.
func TestExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authority(t, root(t), nil)
		short, long := node(t, a, "s", Manager, "c1", time.Hour), node(t, a, "l", Manager, "c1", 0)
		time.Sleep(time.Hour + time.Second)
		if _, err := talk(long, nil, short.Client(Manager)); err == nil {
			t.Error("a caller whose certificate has expired is connected")
		}
		if _, err := talk(short, nil, long.Client(Manager)); err == nil {
			t.Error("a manager whose certificate has expired is believed")
		}
	})
}

// The root is exchanged with nobody cut off on the way: at each step nodes of every kind
// reach managers of every kind. Once it is done the old root is worth nothing.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := root(t), root(t)
		before := authority(t, old, nil)
		rotation, err := before.Rotate(next)
		if err != nil {
			t.Fatal(err)
		}
		amid := authority(t, old, rotation)
		if !amid.Root().Same(old) || !amid.Next().Same(next) || amid.Issuer() == before.Issuer() || amid.CheckSigner() != nil {
			t.Error("the rotation is not what it was asked to be")
		}
		// Of each kind a manager and a worker: not renewed yet, told whom to trust, renewed.
		var managers, workers []*Keeper
		for _, role := range []Role{Manager, Worker} {
			told := node(t, before, "told", role, "c1", 0)
			if err := told.Trust(amid.Trusted()); err != nil {
				t.Fatal(err)
			}
			for _, k := range []*Keeper{node(t, before, "before", role, "c1", 0), told, node(t, amid, "amid", role, "c1", 0)} {
				if role == Manager {
					managers = append(managers, k)
				} else {
					workers = append(workers, k)
				}
			}
		}
		for i, m := range managers {
			for j, w := range workers {
				if _, err := talk(m, nil, w.Client(Manager)); err != nil {
					t.Errorf("manager %d, worker %d: %v", i, j, err)
				}
			}
			joining, err := Joining(old.PEM()) // which the tokens still name
			if err != nil {
				t.Fatal(err)
			}
			if _, err := talk(m, nil, joining); !errdefs.IsUnauthorized(err) {
				t.Errorf("manager %d, one who joins: %v", i, err)
			}
		}
		after := authority(t, next, nil)
		m, w := managers[2], workers[2]
		if m.Identity().Issuer != after.Issuer() || managers[0].Identity().Issuer == after.Issuer() {
			t.Error("who has renewed cannot be told from who has not")
		}
		for _, k := range []*Keeper{m, w} {
			if err := k.Trust(after.Trusted()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := talk(m, nil, w.Client(Manager)); err != nil {
			t.Errorf("when it is done: %v", err)
		}
		if _, err := talk(m, nil, workers[0].Client(Manager)); err == nil {
			t.Error("a certificate of the old root is good for something")
		}
		pool := x509.NewCertPool()
		pool.AddCert(next.cert)
		if _, err := talk(managers[0], nil, ClientOf(pool, Manager)); err == nil {
			t.Error("a manager of the old root is believed")
		}
	})
}

// A rotation fits its root or is refused.
func TestRotationOfAnother(t *testing.T) {
	old, next := root(t), root(t)
	a := authority(t, old, nil)
	rotation, err := a.Rotate(next)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewAuthority(root(t), rotation); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of another root: %v", err)
	}
	if _, err := NewAuthority(old, &Rotation{Cert: root(t).PEM(), Key: nil, Cross: rotation.Cross}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("for another root: %v", err)
	}
	if _, err := a.Rotate(old); !errdefs.IsInvalidArgument(err) {
		t.Errorf("to the same: %v", err)
	}
	trusted, err := LoadRoot(next.PEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rotate(trusted); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("to one without a key: %v", err)
	}
	// Given up for a third: who has a certificate of the second is still believed.
	second := node(t, authority(t, old, rotation), "n", Worker, "c1", 0)
	third, err := a.Rotate(root(t))
	if err != nil {
		t.Fatal(err)
	}
	m := node(t, authority(t, old, third), "m", Manager, "c1", 0)
	if _, err := talk(m, nil, second.Client(Manager)); err != nil {
		t.Error(err)
	}
}
