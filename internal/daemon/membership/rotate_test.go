package membership

import (
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store"
)

// change changes the cluster, as it is at that moment.
func (h *host) change(f func(*cluster.Cluster)) {
	h.Helper()
	h.till("changed", func() bool {
		list := store.List[*cluster.Cluster](h.m.Objects().View())
		if len(list) == 0 {
			return false
		}
		c := store.Copy(list[0])
		f(c)
		_, err := h.m.Objects().Commit(h.Context(), store.Update(c))
		return err == nil
	})
}

// rotate begins to exchange the root, and gives what names the next one's key.
func (h *host) rotate() (issuer string) {
	h.Helper()
	next, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		h.Fatal(err)
	}
	h.change(func(c *cluster.Cluster) {
		root, err := ca.LoadRoot(c.Status.RootCA, c.Status.Key)
		if err != nil {
			h.Fatal(err)
		}
		a, err := ca.NewAuthority(root, nil)
		if err != nil {
			h.Fatal(err)
		}
		r, err := a.Rotate(next)
		if err != nil {
			h.Fatal(err)
		}
		c.Status.RootRotation = &cluster.RootRotation{Cert: r.Cert, Key: r.Key, Cross: r.Cross, Issuer: next.Issuer()}
	})
	return next.Issuer()
}

// rotated ends the exchange.
func (h *host) rotated() {
	h.Helper()
	h.change(func(c *cluster.Cluster) {
		if r := c.Status.RootRotation; r != nil {
			c.Status.RootCA, c.Status.Key, c.Status.RootRotation = r.Cert, r.Key, nil
		}
	})
}

// of tells whether the cluster knows the node with a certificate of an issuer.
func (h *host) of(issuer string, nodes ...*host) func() bool {
	return func() bool {
		for _, o := range nodes {
			n, err := store.Find[*cluster.Node](h.m.Objects().View(), o.m.Node())
			if err != nil || n.Status.CertIssuer != issuer {
				return false
			}
		}
		return true
	}
}

// A manager that was off while the root was being exchanged, twice, comes back by itself; so does a worker.
func TestRotationWhileOff(t *testing.T) {
	t.Parallel()
	a, b, c, w := newHost(t, "a"), newHost(t, "b"), newHost(t, "c"), newHost(t, "w")
	workers, managers := a.found()
	for _, h := range []*host{b, c} {
		if err := h.join(a, managers); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.join(a, workers); err != nil {
		t.Fatal(err)
	}
	c.till("ready", c.ready)
	c.stop()
	w.stop()
	for range 2 {
		issuer := a.rotate()
		a.till("certified anew", a.of(issuer, a, b))
		a.again()
		a.till("ready", a.ready)
		b.again()
		b.till("ready", b.ready)
	}
	issuer := a.m.keeper.Identity().Issuer
	c.start()
	w.start()
	c.till("ready", c.ready)
	a.till("all certified anew", a.of(issuer, a, b, c, w))
	a.rotated()
	for _, h := range []*host{a, b, c} {
		h.till("of the new root", func() bool {
			h.m.mu.Lock()
			k := h.m.keeper
			h.m.mu.Unlock()
			return string(k.Identity().Roots) == string(store.List[*cluster.Cluster](h.m.Objects().View())[0].Status.RootCA)
		})
		h.again()
		h.till("ready", h.ready)
	}
	w.till("ready", w.ready)
}
