package membership

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/bolt"
	storeserver "escale.dev/escale/internal/cluster/store/etcd/server"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// serverWord makes the test binary the store's server.
const serverWord = "store-server"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == serverWord {
		os.Exit(storeserver.Main(os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// soon is how long things may take that come by themselves.
const soon = 40 * time.Second

// host is one with an address of its own on loopback, and an engine that is made up.
type host struct {
	*testing.T
	name    string
	addr    string
	cfg     Config
	m       *Membership
	stop    func()
	mu      sync.Mutex
	busy    bool            // tasks have left something
	leads   bool            // it does what one does for all
	nodes   map[string]bool // for whom it does a node's work, that are under way
	visible store.Store     // that the node's work is told by
}

func newHost(t *testing.T, name string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "membership") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{T: t, name: name, addr: fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250)), nodes: map[string]bool{}}
	path := filepath.Join(dir, "state.db")
	h.cfg = Config{
		Dir: filepath.Join(dir, "cluster"), RunDir: filepath.Join(dir, "run"), Program: []string{os.Args[0], serverWord}, Parts: h,
		Alone: func() (store.Store, error) { return bolt.Open(path) }, Forget: func() error {
			if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("host", name),
	}
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

// start begins, as an engine does.
func (h *host) start() {
	h.Helper()
	m, err := Open(h.cfg)
	if err != nil {
		h.Fatal(err)
	}
	if _, err := m.Enter(context.Background()); err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Run(ctx)
	}()
	h.m = m
	h.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		if err := m.Close(); err != nil {
			h.Error(err)
		}
	})
}

// again stops and starts.
func (h *host) again() {
	h.Helper()
	h.stop()
	h.start()
}

func (h *host) Enter(ctx context.Context, s store.Store) (string, error) {
	n := &cluster.Node{Meta: cluster.Meta{ID: cluster.NewID(), Name: h.name}, Spec: cluster.NodeSpec{Manager: true, Availability: cluster.Active}, Status: cluster.NodeStatus{Ready: true}}
	if list := store.List[*cluster.Node](s.View()); len(list) > 0 {
		return list[0].ID, nil
	}
	_, err := s.Commit(ctx, store.Create(n))
	return n.ID, err
}
func (h *host) Describe() (string, cluster.NodeStatus) {
	return h.name, cluster.NodeStatus{Version: "1"}
}
func (h *host) Node(ctx context.Context, node string, s store.Store) error {
	h.mu.Lock()
	h.nodes[node], h.visible = true, s
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, node)
	return nil
}
func (h *host) Manage(ctx context.Context, _ store.Store) error { <-ctx.Done(); return nil }
func (h *host) Lead(ctx context.Context, _ store.Store, _ func(string) bool) error {
	h.mu.Lock()
	h.leads = true
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leads = false
	return nil
}
func (h *host) Peers(ctx context.Context, _ *ca.Keeper, l net.Listener) error {
	<-ctx.Done()
	return l.Close()
}
func (h *host) Idle(context.Context) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.busy, nil
}

// does tells whether it does what one does for all, and whose node's work.
func (h *host) does() (leads bool, nodes []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := range h.nodes {
		nodes = append(nodes, n)
	}
	return h.leads, nodes
}

// till waits for something.
func (h *host) till(what string, is func() bool) {
	h.Helper()
	for end := time.Now().Add(soon); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatalf("%s: not %s; %+v", h.name, what, h.m.State())
		}
	}
}

// found makes a cluster of the host, and gives the tokens of workers and managers.
func (h *host) found(f ...func(*cluster.Cluster)) (workers, managers string) {
	h.Helper()
	c, n := h.asked(f...)
	if err := h.m.Found(h.Context(), c, n); err != nil {
		h.Fatal(err)
	}
	root, err := ca.LoadRoot(c.Status.RootCA, c.Status.Key)
	if err != nil {
		h.Fatal(err)
	}
	return ca.Token(root.Digest(), c.Status.WorkerSecret), ca.Token(root.Digest(), c.Status.ManagerSecret)
}

// asked is a cluster to be, with this node.
func (h *host) asked(f ...func(*cluster.Cluster)) (*cluster.Cluster, *cluster.Node) {
	h.Helper()
	root, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		h.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		h.Fatal(err)
	}
	c := &cluster.Cluster{Meta: cluster.Meta{ID: "c1", Name: cluster.DefaultCluster}, Status: cluster.ClusterStatus{
		RootCA: root.PEM(), Key: key, WorkerSecret: ca.NewSecret(), ManagerSecret: ca.NewSecret(),
	}}
	for _, f := range f {
		f(c)
	}
	var n *cluster.Node
	h.till("entered", func() bool {
		n, err = store.Find[*cluster.Node](h.m.Objects().View(), h.m.Node())
		return err == nil
	})
	n = store.Copy(n)
	n.Status.ListenAddr = h.addr + ":2377"
	n.Status.Manager = &cluster.ManagerStatus{Addr: h.addr + ":2377", Leader: true, Reachable: true}
	return c, n
}

func (h *host) join(to *host, token string) error {
	return h.m.Join(h.Context(), Joining{Managers: []string{to.addr + ":2377"}, Token: token, Listen: h.addr + ":2377", Addr: h.addr + ":2377"})
}

func (h *host) phase(p phase) func() bool {
	return func() bool { return h.m.State().Phase == string(p) }
}

func (h *host) ready() bool { return h.m.State().Ready }

// apps are the names of those that the host's objects have, in order.
func (h *host) apps() string {
	var out []string
	for _, a := range store.List[*cluster.App](h.m.Objects().View()) {
		out = append(out, a.Name)
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// empty tells whether nothing of a cluster is on disk.
func (h *host) empty() bool {
	list, err := os.ReadDir(h.cfg.Dir)
	_, err2 := os.Stat(filepath.Join(h.cfg.RunDir, "store.sock"))
	return (err == nil || errors.Is(err, os.ErrNotExist)) && len(list) == 0 && errors.Is(err2, os.ErrNotExist)
}

// A host that becomes a cluster has all that it had; it is what it was after a start of the
// engine, and at its end its apps are its own again.
func TestFound(t *testing.T) {
	h := newHost(t, "a")
	id := h.m.Node()
	if _, err := h.m.Objects().Commit(t.Context(), store.Create(&cluster.App{Meta: cluster.Meta{ID: "app1", Name: "shop"}}), store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "s", Owner: "app1"}})); err != nil {
		t.Fatal(err)
	}
	h.found()
	if s := h.m.State(); s.Phase != Manager || s.Node != id || s.Addr != h.addr {
		t.Errorf("%+v", s)
	}
	if err := h.m.Found(t.Context(), &cluster.Cluster{}, &cluster.Node{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("again: %v", err)
	}
	for range 2 {
		h.till("ready", h.ready)
		h.till("leading", func() bool { leads, nodes := h.does(); return leads && len(nodes) == 1 && nodes[0] == id })
		if h.apps() != "shop" {
			t.Errorf("apps: %s", h.apps())
		}
		h.again()
	}
	h.till("ready", h.ready)
	if err := h.m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.till("alone", func() bool { leads, _ := h.does(); return leads && h.m.Alone() })
	if h.apps() != "shop" || h.m.Node() != id || !h.empty() || len(store.List[*cluster.Secret](h.m.Objects().View())) != 1 || len(store.List[*cluster.Cluster](h.m.Objects().View())) != 0 {
		t.Errorf("alone: %q, node %s, empty %v", h.apps(), h.m.Node(), h.empty())
	}
	h.again()
	if h.apps() != "shop" {
		t.Error("it is gone after a start")
	}
	h.found() // and once more
	h.till("ready", h.ready)
}

// What cannot be made a cluster is as it was.
func TestFoundFails(t *testing.T) {
	for name, spoil := range map[string]func(h *host){
		"no program": func(h *host) { h.cfg.Program = []string{"/no/such/program"}; h.again() },
		"a port in use": func(h *host) {
			l, err := net.Listen("tcp", h.addr+":7946")
			if err != nil {
				h.Fatal(err)
			}
			h.Cleanup(func() { _ = l.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, "a")
			spoil(h)
			c, n := h.asked()
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			if err := h.m.Found(ctx, c, n); err == nil {
				t.Fatal("it is a cluster")
			}
			if !h.m.Alone() || !h.empty() || len(store.List[*cluster.Cluster](h.m.Objects().View())) != 0 {
				t.Errorf("%+v, empty %v", h.m.State(), h.empty())
			}
			n2, err := store.Find[*cluster.Node](h.m.Objects().View(), n.ID)
			if err != nil || n2.Status.Manager != nil {
				t.Errorf("the node: %+v, %v", n2, err)
			}
			if _, err := h.m.Objects().Commit(t.Context(), store.Create(&cluster.App{Meta: cluster.Meta{Name: "x"}})); err != nil {
				t.Error(err)
			}
		})
	}
}

// An engine that ends while it makes a cluster of its host finds it as it was.
func TestFoundKilled(t *testing.T) {
	h := newHost(t, "a")
	c, n := h.asked()
	if _, err := h.m.Objects().Commit(t.Context(), store.Create(c), store.Update(n)); err != nil {
		t.Fatal(err)
	}
	h.stop()
	if err := (record{Phase: founding, Node: n.ID, Listen: n.Status.ListenAddr}).write(h.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	h.start()
	if !h.m.Alone() || !h.empty() || len(store.List[*cluster.Cluster](h.m.Objects().View())) != 0 {
		t.Errorf("%+v", h.m.State())
	}
}

// A worker joins, does what it is told, also after a start of its engine, and leaves with
// nothing of it left.
func TestWorker(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	token, _ := a.found()
	if err := b.join(a, strings.Replace(token, "SWMTKN-1-", "SWMTKN-1-0", 1)); err == nil || !b.m.Alone() || !b.empty() {
		t.Fatalf("with a token that is none: %v", err)
	}
	if _, err := b.m.Objects().Commit(t.Context(), store.Create(&cluster.App{Meta: cluster.Meta{ID: "x", Name: "shop"}})); err != nil {
		t.Fatal(err)
	}
	if err := b.join(a, token); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "shop") {
		t.Fatalf("with an app: %v", err)
	}
	if _, err := b.m.Objects().Commit(t.Context(), store.Delete(store.List[*cluster.App](b.m.Objects().View())[0])); err != nil {
		t.Fatal(err)
	}
	if err := b.join(a, token); err != nil {
		t.Fatal(err)
	}
	id := b.m.Node()
	for range 2 {
		b.till("a node", func() bool { leads, nodes := b.does(); return !leads && len(nodes) == 1 && nodes[0] == id })
		a.till("told", func() bool {
			n, err := store.Find[*cluster.Node](a.m.Objects().View(), id)
			return err == nil && n.Status.Ready && n.Name == "b" && n.Status.Addr == b.addr
		})
		if _, err := b.m.Objects().Commit(t.Context(), store.Create(&cluster.App{Meta: cluster.Meta{Name: "y"}})); !errdefs.IsUnavailable(err) {
			t.Errorf("a worker writes: %v", err)
		}
		b.again()
	}
	b.mu.Lock()
	b.busy = true
	b.mu.Unlock()
	left := make(chan error, 1)
	go func() { left <- b.m.Leave(context.Background()) }()
	b.till("leaving", b.phase(leaving))
	b.till("told of nothing", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.visible == b.m.Part() || len(store.List[*cluster.Node](b.visible.View())) == 0
	})
	b.mu.Lock()
	b.busy = false
	b.mu.Unlock()
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	if !b.m.Alone() || !b.empty() {
		t.Errorf("%+v, empty %v", b.m.State(), b.empty())
	}
	a.till("told that it is gone", func() bool {
		n, err := store.Find[*cluster.Node](a.m.Objects().View(), id)
		return err == nil && !n.Status.Ready
	})
}

// Nodes are told who was removed, also when they start anew, and while no manager answers.
func TestBarred(t *testing.T) {
	t.Parallel()
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	token, _ := a.found()
	for _, h := range []*host{b, c} {
		if err := h.join(a, token); err != nil {
			t.Fatal(err)
		}
	}
	gone := c.m.Node()
	if b.m.Barred(gone) {
		t.Error("barred before it is removed")
	}
	a.till("removed", func() bool {
		v := a.m.Objects().View()
		n, err := store.Find[*cluster.Node](v, gone)
		if err != nil {
			return true
		}
		one := store.Copy(store.List[*cluster.Cluster](v)[0])
		one.Bar(gone, time.Now())
		_, err = a.m.Objects().Commit(t.Context(), store.Delete(n), store.Update(one))
		return err == nil
	})
	b.till("told", func() bool { return b.m.Barred(gone) && !b.m.Barred(b.m.Node()) })
	if err := (ear{a.m}).fellow(ca.Peer{Node: gone, Role: ca.Manager}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("its store is led to ours: %v", err)
	}
	a.stop()
	b.again()
	if !b.m.Barred(gone) {
		t.Error("it was forgotten")
	}
}

// Three managers: one that ends is followed by another, one that is demoted keeps no store
// and is promoted again, one that leaves is missed by nobody.
func TestManagers(t *testing.T) {
	a, b, c := newHost(t, "a"), newHost(t, "b"), newHost(t, "c")
	ofWorkers, token := a.found()
	if err := b.join(a, token); err != nil {
		t.Fatal(err)
	}
	if err := c.join(a, ofWorkers); err != nil {
		t.Fatal(err)
	}
	if s := b.m.State(); s.Phase != Manager || !s.Ready {
		t.Errorf("a manager joins: %+v", s)
	}
	want := func(h *host, be bool) {
		t.Helper()
		h.till("written", func() bool {
			n, err := store.Find[*cluster.Node](b.m.Objects().View(), h.m.Node())
			if err != nil {
				return false
			}
			n = store.Copy(n)
			n.Spec.Manager = be
			_, err = b.m.Objects().Commit(t.Context(), store.Update(n))
			return err == nil
		})
	}
	want(c, true)
	c.till("manager", func() bool { return c.phase(manager)() && c.ready() })
	if len(store.List[*cluster.Node](c.m.Objects().View())) != 3 {
		t.Error("the third manager has not learnt all")
	}
	reachable := func(h *host, want int) func() bool {
		return func() bool {
			n, leaders := 0, 0
			for _, o := range store.List[*cluster.Node](h.m.Objects().View()) {
				if s := o.Status.Manager; s != nil && s.Reachable {
					n++
					if s.Leader {
						leaders++
					}
				}
			}
			return n == want && leaders == 1
		}
	}
	b.till("three", reachable(b, 3))
	a.stop()
	b.till("two", func() bool {
		x, _ := b.does()
		y, _ := c.does()
		return x != y && reachable(b, 2)()
	})
	if _, err := c.m.Objects().Commit(t.Context(), store.Create(&cluster.App{Meta: cluster.Meta{Name: "y"}})); err != nil {
		t.Error(err)
	}
	a.start()
	b.till("three again", reachable(b, 3))
	a.till("ready", func() bool { return a.ready() && a.apps() == "y" })
	want(a, false)
	a.till("worker", a.phase(worker))
	if _, err := os.Stat(filepath.Join(a.cfg.Dir, serverDir)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a worker keeps the store")
	}
	want(a, true)
	a.till("manager again", func() bool { return a.phase(manager)() && a.ready() && a.apps() == "y" })
	if err := a.m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !a.m.Alone() || !a.empty() || a.apps() != "" {
		t.Errorf("it has left: %+v %q", a.m.State(), a.apps())
	}
	b.till("two again", reachable(b, 2))
}

// Of managers of which most are lost for good, one goes on alone.
func TestForce(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	_, token := a.found()
	if err := b.join(a, token); err != nil {
		t.Fatal(err)
	}
	if _, err := a.m.Objects().Commit(t.Context(), store.Create(&cluster.App{Meta: cluster.Meta{Name: "y"}})); err != nil {
		t.Fatal(err)
	}
	a.stop()
	b.till("told", func() bool { return b.apps() == "y" })
	if err := b.m.Force(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.till("leading", func() bool { leads, _ := b.does(); return leads })
	if n, err := store.Find[*cluster.Node](b.m.Objects().View(), a.m.Node()); err != nil || n.Spec.Manager || b.apps() != "y" {
		t.Errorf("%+v, %v", n, err)
	}
	b.again()
	b.till("ready", func() bool { return b.ready() && b.apps() == "y" })
}

// A manager that most others have left behind leaves all the same, with nothing of it left.
func TestLeaveWithoutMajority(t *testing.T) {
	t.Parallel()
	a, b := newHost(t, "a"), newHost(t, "b")
	_, token := a.found()
	if err := b.join(a, token); err != nil {
		t.Fatal(err)
	}
	a.stop()
	begin := time.Now()
	if err := b.m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !b.m.Alone() || !b.empty() || time.Since(begin) > steps+soon {
		t.Errorf("%+v, empty %v, after %v", b.m.State(), b.empty(), time.Since(begin))
	}
}

// A node that was let in and has never come is removed after a while; others are waited for.
func TestNeverCome(t *testing.T) {
	t.Parallel()
	a := newHost(t, "a")
	a.found()
	was := func(id string, ago time.Duration, issuer string) store.Change {
		return store.Create(&cluster.Node{Meta: cluster.Meta{ID: id}, Status: cluster.NodeStatus{Since: time.Now().Add(-ago), CertIssuer: issuer}})
	}
	a.write(was("late", neverSet+time.Minute, ""), was("new", time.Minute, ""), was("away", neverSet+time.Minute, "x"))
	gone := func(id string) bool {
		_, err := store.Find[*cluster.Node](a.m.Objects().View(), id)
		return errdefs.IsNotFound(err)
	}
	a.till("removed", func() bool { return gone("late") })
	time.Sleep(3 * tended)
	if gone("new") || gone("away") {
		t.Error("others were removed, too")
	}
	if is := store.List[*cluster.Cluster](a.m.Objects().View())[0].BarredNodes(time.Now()); len(is) != 1 || is[0] != "late" {
		t.Errorf("others are told of %v", is)
	}
}

// The last manager reads its store as it leaves, without a start of another server for that.
func TestLastLeavesAtOnce(t *testing.T) {
	t.Parallel()
	a := newHost(t, "a")
	starts := filepath.Join(t.TempDir(), "starts")
	a.cfg.Program = []string{"/bin/sh", "-c", `echo >>"$0"; exec "$@"`, starts, os.Args[0], serverWord}
	a.again()
	a.found()
	a.write(app("shop"))
	if err := a.m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.till("alone", func() bool { leads, _ := a.does(); return leads && a.m.Alone() })
	if raw, err := os.ReadFile(starts); err != nil || len(raw) != 1 || a.apps() != "shop" || !a.empty() {
		t.Errorf("%d starts, apps %q, empty %v, %v", len(raw), a.apps(), a.empty(), err)
	}
}

// A manager that is locked tells nothing before it is unlocked.
func TestLocked(t *testing.T) {
	h := newHost(t, "a")
	key := seal.NewKey().String()
	h.found(func(c *cluster.Cluster) {
		c.Spec.EncryptionConfig.AutoLockManagers, c.Status.UnlockKey = true, key
	})
	if err := h.m.Unlock(t.Context(), key); !errdefs.IsConflict(err) {
		t.Errorf("not locked: %v", err)
	}
	h.again()
	h.till("locked", func() bool { return h.m.State().Locked })
	if _, err := h.m.Objects().Commit(t.Context(), store.Create(&cluster.App{})); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "needs to be unlocked") {
		t.Errorf("locked: %v", err)
	}
	if err := h.m.Unlock(t.Context(), seal.NewKey().String()); !errdefs.IsPermissionDenied(err) {
		t.Errorf("a wrong key: %v", err)
	}
	if err := h.m.Unlock(t.Context(), "x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no key: %v", err)
	}
	if err := h.m.Unlock(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	h.till("ready", h.ready)
	c := store.Copy(store.List[*cluster.Cluster](h.m.Objects().View())[0])
	c.Spec.EncryptionConfig.AutoLockManagers, c.Status.UnlockKey = false, ""
	if _, err := h.m.Objects().Commit(t.Context(), store.Update(c)); err != nil {
		t.Fatal(err)
	}
	h.till("kept open", func() bool {
		locked, err := seal.Locked(filepath.Join(h.cfg.Dir, keysFile))
		return err == nil && !locked
	})
	h.again()
	h.till("ready", h.ready)
}

// Where managers are locked, so is what a node proves itself with: one that has started again is
// believed by nobody before it is unlocked. A worker has no such lock.
func TestNodeKeyLocked(t *testing.T) {
	t.Parallel()
	a, b := newHost(t, "a"), newHost(t, "b")
	key := seal.NewKey().String()
	_, token := a.found(func(c *cluster.Cluster) {
		c.Spec.EncryptionConfig.AutoLockManagers, c.Status.UnlockKey = true, key
	})
	if err := b.join(a, token); err != nil {
		t.Fatal(err)
	}
	plain := func(h *host) bool {
		raw, err := os.ReadFile(filepath.Join(h.cfg.Dir, identityFile))
		return err != nil || strings.Contains(string(raw), "PRIVATE KEY")
	}
	for _, h := range []*host{a, b} {
		h.till("sealed", func() bool { return !plain(h) })
	}
	there := func(ready bool) func() bool {
		return func() bool {
			n, err := store.Find[*cluster.Node](a.m.Objects().View(), b.m.Node())
			return err == nil && n.Status.Ready == ready
		}
	}
	a.till("both", there(true))
	b.stop()
	if _, err := os.Stat(filepath.Join(b.cfg.RunDir, "node.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the key lies open where the server read it")
	}
	b.start()
	b.till("locked", func() bool { return b.m.State().Locked && b.m.keeper.Locked() })
	unlock := func(h *host, key string) {
		t.Helper()
		if err := h.m.Unlock(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	unlock(b, key)
	b.till("ready", b.ready)
	a.till("back", there(true))
	// Another unlock key changes nothing of it.
	next := seal.NewKey().String()
	a.change(func(c *cluster.Cluster) { c.Status.UnlockKey = next })
	other, err := seal.ParseKey(next)
	if err != nil {
		t.Fatal(err)
	}
	b.till("locked with another key", func() bool {
		_, err := seal.Load(filepath.Join(b.cfg.Dir, keysFile), &other)
		return err == nil
	})
	b.again()
	b.till("locked", func() bool { return b.m.State().Locked })
	unlock(b, next)
	b.till("ready", b.ready)
	a.till("demoted", func() bool {
		n, err := store.Find[*cluster.Node](a.m.Objects().View(), b.m.Node())
		if err != nil {
			return false
		}
		n = store.Copy(n)
		n.Spec.Manager = false
		_, err = a.m.Objects().Commit(t.Context(), store.Update(n))
		return err == nil
	})
	b.till("a worker", b.phase(worker))
	b.again()
	b.till("ready", func() bool { return b.ready() && plain(b) })
}

// Strangers are not led to the store.
func TestStrangers(t *testing.T) {
	a := newHost(t, "a")
	a.found()
	a.till("ready", a.ready)
	for what, say := range map[string]string{"nothing": "", "something else": "GET / HTTP/1.1\r\n\r\n", "no certificate": "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"} {
		var c net.Conn
		a.till("heard", func() (ok bool) {
			var err error
			c, err = net.Dial("tcp", a.addr+":7946")
			return err == nil
		})
		_, _ = io.WriteString(c, say)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(soon))
		if got, err := io.ReadAll(c); err != nil || len(got) > 64 {
			t.Errorf("%s: %q %v", what, got, err)
		}
		_ = c.Close()
	}
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	r := record{Phase: worker, Node: "n", Listen: "0.0.0.0:2377", Addr: "[2001:db8::1]:2377"}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := readRecord(dir)
	if err != nil || got.Node != "n" || got.host() != "2001:db8::1" || got.peers() != "0.0.0.0:7946" || got.storeURL() != "https://[2001:db8::1]:7946" {
		t.Errorf("%+v, %v", got, err)
	}
	for text, is := range map[string]func(error) bool{
		`{`: errdefs.IsDataLoss, `{}`: errdefs.IsDataLoss, `{"Phase":"worker"}`: errdefs.IsDataLoss, `{"Format":9}`: errdefs.IsFailedPrecondition,
		`{"Format":1,"Phase":"king","Node":"n"}`: errdefs.IsDataLoss,
	} {
		if _, err := parseRecord([]byte(text)); !is(err) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"Format":1,"Phase":"worker","Node":"n","Addr":"1.2.3.4:5"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := parseRecord(raw); err == nil && (r.Node == "" || r.Phase == alone) {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzGreeting(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		said, _, err := greeting(strings.NewReader(string(raw)))
		if err == nil && !strings.HasPrefix(string(raw), string(said)) {
			t.Errorf("%q is not what was said", said)
		}
	})
}
