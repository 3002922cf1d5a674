package daemon

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

func keeperOf(t *testing.T, node string, role ca.Role) *ca.Keeper {
	t.Helper()
	root, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := root.Issue(csr, role, node, "c1", 0)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ca.Keep(filepath.Join(t.TempDir(), "identity.json"), key, chain, root.PEM())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A manager knows all nodes and their roles; a worker knows the managers, and who was removed.
func TestPeersKnown(t *testing.T) {
	s := mem.New(store.NewState())
	t.Cleanup(func() { _ = s.Close() })
	list := []cluster.Object{&cluster.Cluster{Meta: cluster.Meta{ID: "c1", Name: cluster.DefaultCluster}}}
	for id, n := range map[string]cluster.Node{
		"m1": {Spec: cluster.NodeSpec{Manager: true}, Status: cluster.NodeStatus{Ready: true, Addr: "192.0.2.1"}},
		"m2": {Spec: cluster.NodeSpec{Manager: true}, Status: cluster.NodeStatus{Ready: true, Addr: "2001:db8::2"}},
		"w1": {Status: cluster.NodeStatus{Ready: true, Addr: "192.0.2.3"}},
		"w2": {Status: cluster.NodeStatus{Addr: "192.0.2.4"}},
	} {
		n.ID, n.Name = id, id
		list = append(list, &n)
	}
	for _, o := range list {
		if _, err := s.Commit(t.Context(), store.Create(o)); err != nil {
			t.Fatal(err)
		}
	}
	empty := mem.New(store.NewState())
	t.Cleanup(func() { _ = empty.Close() })
	managers := []dispatch.Manager{{Node: "m1", Addr: "192.0.2.1:2377"}, {Node: "m2", Addr: "[2001:db8::2]:2377"}}
	told := func() []dispatch.Manager { return managers }
	barred := func(node string) bool { return node == "removed" }
	m := &peerLinks{peerWorld: peerWorld{Node: "m1", Objects: s, Managers: told, Barred: barred}, keeper: keeperOf(t, "m1", ca.Manager)}
	w := &peerLinks{peerWorld: peerWorld{Node: "w1", Objects: empty, Managers: told, Barred: barred}, keeper: keeperOf(t, "w1", ca.Worker)}
	k := m.known()
	if slices.Sort(k.Workers); !k.All || strings.Join(k.Managers, " ") != "m2" || strings.Join(k.Workers, " ") != "w1" {
		t.Errorf("a manager: %+v", k)
	}
	if k := w.known(); k.All || strings.Join(k.Managers, " ") != "m1 m2" || len(k.Workers) != 0 {
		t.Errorf("a worker: %+v", k)
	}
	for _, c := range []struct {
		l          *peerLinks
		node, addr string
	}{{m, "m2", "[2001:db8::2]:7946"}, {m, "w1", "192.0.2.3:7946"}, {m, "x", ""}, {w, "m1", "192.0.2.1:7946"}, {w, "m2", "[2001:db8::2]:7946"}, {w, "w2", ""}} {
		if got, ok := c.l.addrOf(c.node); ok != (c.addr != "") || ok && got != c.addr {
			t.Errorf("%s asks for %s: %s, %v", c.l.Node, c.node, got, ok)
		}
	}
	for _, c := range []struct {
		l       *peerLinks
		node    string
		role    ca.Role
		refused bool
	}{
		{m, "m2", ca.Manager, false}, {m, "w1", ca.Worker, false}, {m, "w1", ca.Manager, true}, {m, "gone", ca.Worker, true}, {m, "m2", ca.Worker, false},
		{w, "m2", ca.Manager, false}, {w, "w2", ca.Worker, false}, {w, "w2", ca.Manager, true},
		{w, "removed", ca.Worker, true}, {w, "removed", ca.Manager, true}, {m, "removed", ca.Worker, true},
	} {
		if err := c.l.check(ca.Peer{Node: c.node, Role: c.role}); errdefs.IsPermissionDenied(err) != c.refused {
			t.Errorf("%s is called by %s as %s: %v", c.l.Node, c.node, c.role, err)
		}
	}
	managers = []dispatch.Manager{{Addr: "192.0.2.1:2377"}} // it has just joined: whose address that is it was not told
	if err := w.check(ca.Peer{Node: "m2", Role: ca.Manager}); err != nil {
		t.Error(err)
	}
	if _, err := w.holders(t.Context(), nil, image.Wanted{}); !errdefs.IsUnavailable(err) {
		t.Errorf("a worker says who has an image: %v", err)
	}
}

// Without a cluster there are no other nodes, and nobody is asked.
func TestNoPeers(t *testing.T) {
	name, err := reference.ParseDockerRef("x")
	if err != nil {
		t.Fatal(err)
	}
	for what, p := range map[string]*peers{"none": nil, "not served": {log: slog.New(slog.DiscardHandler)}} {
		ctx := context.Background()
		if err := p.Fetch(ctx, name, image.Wanted{}, ""); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := p.Lookup(ctx, name.(reference.NamedTagged)); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := p.Logs(ctx, "n", "c", logs.ReadOptions{}); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", what, err)
		}
		var c net.Conn
		if c, err = p.Dial(ctx, "n"); !errdefs.IsUnavailable(err) || c != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
