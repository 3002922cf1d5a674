package node

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/api/node/wire"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/store/storetest"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

const (
	workers  = "0123456789abcdefghijklmno"
	managers = "a123456789abcdefghijklmno"
)

// site is a cluster on loopback: a store, and managers beside it.
type site struct {
	*testing.T
	s    store.Store
	m    *Members
	root *ca.Root
}

func newSite(t *testing.T) *site {
	t.Helper()
	root, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	s := mem.New(store.NewState())
	t.Cleanup(func() { _ = s.Close() })
	w := &site{T: t, s: s, m: &Members{Store: s}, root: root}
	w.commit(store.Create(&cluster.Cluster{
		Meta: cluster.Meta{ID: "c1", Name: cluster.DefaultCluster}, Status: cluster.ClusterStatus{RootCA: root.PEM(), Key: key, WorkerSecret: workers, ManagerSecret: managers},
	}))
	return w
}

func (w *site) commit(c ...store.Change) {
	w.Helper()
	if _, err := w.s.Commit(context.Background(), c...); err != nil {
		w.Fatal(err)
	}
}

func (w *site) token(secret string) string { return ca.Token(w.root.Digest(), secret) }

// identity makes that of a node, without asking anybody.
func (w *site) identity(a *ca.Authority, node string, role ca.Role, expiry time.Duration) *ca.Keeper {
	w.Helper()
	key, csr, err := ca.NewRequest()
	if err != nil {
		w.Fatal(err)
	}
	chain, err := a.Issue(csr, role, node, "c1", expiry)
	if err != nil {
		w.Fatal(err)
	}
	k, err := ca.Keep(filepath.Join(w.TempDir(), "identity.json"), key, chain, a.Trusted())
	if err != nil {
		w.Fatal(err)
	}
	return k
}

// manager is one that answers nodes.
type manager struct {
	*Server
	addr string
	k    *ca.Keeper
	stop func()
}

// manager starts one; term 0 does not lead.
func (w *site) manager(node string, term uint64) *manager {
	w.Helper()
	a, err := w.m.Authority()
	if err != nil {
		w.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	m := &manager{addr: l.Addr().String(), k: w.identity(a, node, ca.Manager, 0)}
	m.Server = New(m.k, w.m, slog.New(slog.DiscardHandler))
	w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: node}, Spec: cluster.NodeSpec{Manager: true}, Status: cluster.NodeStatus{
		Ready: true, CertIssuer: m.k.Identity().Issuer, Manager: &cluster.ManagerStatus{Addr: m.addr, Leader: term != 0},
	}}))
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	m.stop = sync.OnceFunc(func() { cancel(); parts.Wait() })
	w.Cleanup(m.stop)
	parts.Go(func() {
		if err := m.Serve(ctx, l); err != nil {
			w.Error(err)
		}
	})
	if term != 0 {
		d := dispatch.New(w.s, term, slog.New(slog.DiscardHandler))
		parts.Go(func() {
			if err := d.Run(ctx); err != nil {
				w.Error(err)
			}
		})
		m.Lead(d)
	}
	return m
}

// node runs a node that has joined.
func (w *site) node(k *ca.Keeper, list []dispatch.Manager) *dispatch.Remote {
	w.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	m := NewMember(k, log)
	r, err := dispatch.Open(dispatch.Config{
		Node: k.Identity().Node, Log: log, Managers: list, Dial: m.Dial, Ask: m.Ask, Told: m.Told,
		Describe: func() (string, cluster.NodeStatus) {
			return "host", cluster.NodeStatus{CertIssuer: k.Identity().Issuer}
		},
	})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	w.Cleanup(func() {
		cancel()
		parts.Wait()
		_ = r.Close()
	})
	parts.Go(func() { _ = r.Run(ctx) })
	parts.Go(func() { _ = m.Run(ctx, r) })
	return r
}

// join makes a node of this machine.
func (w *site) join(addr, token string) (*Joined, error) {
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	return Join(ctx, addr, token, "", filepath.Join(w.TempDir(), "identity.json"))
}

// until waits for something to become so.
func (w *site) until(what string, is func() bool) {
	w.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("it does not come to be that %s", what)
		}
	}
}

func (w *site) get(node string) *cluster.Node {
	n, err := store.Find[*cluster.Node](w.s.View(), node)
	if err != nil {
		w.Fatal(err)
	}
	return n
}

// A machine with a token becomes a node of the role that the token is for, and works.
func TestJoin(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	for secret, role := range map[string]ca.Role{workers: ca.Worker, managers: ca.Manager} {
		j, err := w.join(m.addr, w.token(secret))
		if err != nil {
			t.Fatal(err)
		}
		id := j.Keeper.Identity()
		if id.Role != role || id.Cluster != "c1" || w.get(id.Node).Spec.Manager != (role == ca.Manager) || len(j.Managers) != 1 {
			t.Errorf("%+v, %+v", id.Peer, j.Managers)
		}
		r := w.node(j.Keeper, j.Managers)
		w.until("the node is ready", func() bool { return w.get(id.Node).Status.Ready })
		task := id.Node + "-task"
		w.commit(store.Create(&cluster.Task{Meta: cluster.Meta{ID: task}, Node: id.Node, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskAssigned}}))
		w.until("the node has its task", func() bool { _, err := store.Find[*cluster.Task](r.View(), task); return err == nil })
		x, _ := store.Find[*cluster.Task](r.View(), task)
		x = store.Copy(x)
		x.Status.State = cluster.TaskAccepted
		if _, err := r.Commit(t.Context(), store.Update(x)); err != nil {
			t.Error(err)
		}
		if is, _ := store.Find[*cluster.Task](w.s.View(), task); is.Status.State != cluster.TaskAccepted {
			t.Errorf("%+v", is.Status)
		}
	}
}

// Who has not the right token gets nothing, and leaves nothing.
func TestJoinRefused(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	other, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		token, words string
		is           func(error) bool
	}{
		"no token":       {"x", "invalid join token", errdefs.IsInvalidArgument},
		"a wrong digest": {ca.Token(other.Digest(), workers), "remote CA does not match fingerprint", errdefs.IsFailedPrecondition},
		"a wrong secret": {w.token(ca.NewSecret()), "A valid join token is necessary to join this cluster", errdefs.IsInvalidArgument},
	} {
		if _, err := w.join(m.addr, c.token); err == nil || !c.is(err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", what, err)
		}
	}
	old := w.token(workers)
	storetest.Change(w, w.s, "c1", func(c *cluster.Cluster) { c.Status.WorkerSecret = ca.NewSecret() })
	if _, err := w.join(m.addr, old); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a token of before: %v", err)
	}
	// One who does not care whom it talks to, and asks for what cannot be.
	conn, err := dial(m.addr, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, csr, _ := ca.NewRequest()
	for what, r := range map[string]*wire.JoinRequest{
		"no request":      {Token: w.token(managers)},
		"an availability": {Token: w.token(managers), Csr: csr, Availability: "gone"},
		"another digest":  {Token: ca.Token(other.Digest(), managers), Csr: csr},
		"an empty secret": {Token: w.token(""), Csr: csr},
	} {
		if c, err := wire.NewJoinClient(conn).Join(t.Context(), r); err == nil {
			t.Errorf("%s: %+v", what, c)
		}
	}
	if n := store.List[*cluster.Node](w.s.View()); len(n) != 1 {
		t.Errorf("%d nodes", len(n))
	}
}

// calls tries everything that is for nodes.
func calls(t *testing.T, addr string, c *tls.Config) map[string]error {
	t.Helper()
	conn, err := dial(addr, c)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := wire.NewNodeClient(conn)
	_, csr, _ := ca.NewRequest()
	out := map[string]error{}
	_, err = n.Renew(t.Context(), &wire.RenewRequest{Csr: csr})
	out["renew"] = errgrpc.ToNative(err)
	_, err = n.Leader(t.Context(), &wire.LeaderRequest{})
	out["leader"] = errgrpc.ToNative(err)
	s, err := n.Dispatch(t.Context())
	if err == nil {
		_ = s.Send(&wire.Message{Json: []byte(`{"Hello":{"Protocol":1,"Status":{}}}`)}) // Recv says why not
		_, err = s.Recv()
	}
	out["dispatch"] = errgrpc.ToNative(err)
	return out
}

// Every call is for nodes of the cluster only, and as long as they are that.
func TestStrangers(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	a, _ := w.m.Authority()
	w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "n1"}}), store.Create(&cluster.Node{Meta: cluster.Meta{ID: "n2"}}))
	foreign, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := ca.NewAuthority(foreign, nil)
	nobody := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	stranger := w.identity(b, "n1", ca.Manager, 0).Client(ca.Manager)
	stranger.RootCAs, stranger.InsecureSkipVerify = nil, true
	for what, c := range map[string]*tls.Config{
		"no certificate": nobody, "a foreign one": stranger, "one of no node": w.identity(a, "n9", ca.Worker, 0).Client(ca.Manager),
	} {
		for call, err := range calls(t, m.addr, c) {
			if err == nil || errdefs.IsInternal(err) {
				t.Errorf("%s, %s: %v", what, call, err)
			}
		}
	}
	member := w.identity(a, "n1", ca.Worker, 0)
	for call, err := range calls(t, m.addr, member.Client(ca.Manager)) {
		if err != nil {
			t.Errorf("a node, %s: %v", call, err)
		}
	}
	// A node that is removed amid its connection.
	r := w.node(w.identity(a, "n2", ca.Worker, 0), []dispatch.Manager{{Addr: m.addr}})
	w.until("it is connected", r.Connected)
	conn, err := dial(m.addr, member.Client(ca.Manager))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := wire.NewNodeClient(conn).Leader(t.Context(), &wire.LeaderRequest{}); err != nil {
		t.Fatal(err)
	}
	w.until("both are removed", func() bool {
		_, err := w.s.Commit(t.Context(), store.Delete(store.Copy(w.get("n1"))), store.Delete(store.Copy(w.get("n2"))))
		return err == nil
	})
	if _, err := wire.NewNodeClient(conn).Leader(t.Context(), &wire.LeaderRequest{}); !errdefs.IsPermissionDenied(errgrpc.ToNative(err)) {
		t.Errorf("on the connection it has: %v", err)
	}
	w.until("it is cut off", func() bool { return !r.Connected() })
	// A worker in a manager's place is believed by nobody.
	l, err := tls.Listen("tcp", "127.0.0.1:0", w.identity(a, "m1", ca.Worker, 0).Server(func(ca.Peer) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c) // whatever is said to it
			_ = c.Close()
		}
	}()
	for call, err := range calls(t, l.Addr().String(), w.identity(a, "n1", ca.Worker, 0).Client(ca.Manager)) {
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("a worker in a manager's place, %s: %v", call, err)
		}
	}
}

// A manager who does not lead sends nodes to the one who does.
func TestLeader(t *testing.T) {
	w := newSite(t)
	follower := w.manager("m1", 0)
	leader := w.manager("m2", 3)
	j, err := w.join(follower.addr, w.token(workers))
	if err != nil {
		t.Fatal(err)
	}
	r := w.node(j.Keeper, []dispatch.Manager{{Addr: follower.addr}})
	w.until("the leader is found", r.Connected)
	if list := r.Managers(); len(list) != 2 || list[0].Addr != leader.addr || !list[0].Leader {
		t.Errorf("%+v", list)
	}
	// The leader goes, and the other one takes over.
	leader.stop()
	storetest.Change(w, w.s, "m1", func(n *cluster.Node) { n.Status.Manager.Leader = true })
	storetest.Change(w, w.s, "m2", func(n *cluster.Node) { n.Status.Manager.Leader = false })
	d := dispatch.New(w.s, 4, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	defer func() { cancel(); <-done }()
	began := time.Now()
	follower.Lead(d)
	w.until("the new leader is found", func() bool { list := r.Managers(); return r.Connected() && list[0].Addr == follower.addr })
	t.Logf("after %s", time.Since(began))
}

// The root is exchanged under nodes that go on: each gets a certificate of the new one, and
// then the old one is worth nothing.
func TestRootRotation(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	j, err := w.join(m.addr, w.token(workers))
	if err != nil {
		t.Fatal(err)
	}
	id := j.Keeper.Identity().Node
	r := w.node(j.Keeper, j.Managers)
	own := w.node(m.k, j.Managers) // a manager is a node, too
	w.until("they are connected", func() bool { return r.Connected() && own.Connected() })
	a, _ := w.m.Authority()
	next, err := ca.NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	rotation, err := a.Rotate(next)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ca.NewAuthority(a.Root(), rotation)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Change(w, w.s, "c1", func(c *cluster.Cluster) {
		c.Status.RootRotation = &cluster.RootRotation{Cert: rotation.Cert, Key: rotation.Key, Cross: rotation.Cross, Issuer: b.Issuer()}
	})
	w.until("all say that they have a certificate of the new root", func() bool {
		return w.get(id).Status.CertIssuer == b.Issuer() && w.get("m1").Status.CertIssuer == b.Issuer()
	})
	if _, err := w.join(m.addr, w.token(workers)); err != nil { // by a token that names the old root
		t.Errorf("amid it: %v", err)
	}
	storetest.Change(w, w.s, "c1", func(c *cluster.Cluster) {
		c.Status.RootCA, c.Status.Key, c.Status.RootRotation = rotation.Cert, rotation.Key, nil
	})
	w.until("the old root is trusted no more", func() bool {
		return string(j.Keeper.Identity().Roots) == string(next.PEM()) && string(m.k.Identity().Roots) == string(next.PEM())
	})
	w.until("they are connected", func() bool { return r.Connected() && own.Connected() })
	if _, err := w.join(m.addr, w.token(workers)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("with a token of the old root: %v", err)
	}
	w.root = next
	if _, err := w.join(m.addr, w.token(workers)); err != nil {
		t.Errorf("with a token of the new root: %v", err)
	}
}

// A node that is promoted gets the certificate of a manager, and loses it again.
func TestPromote(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	j, err := w.join(m.addr, w.token(workers))
	if err != nil {
		t.Fatal(err)
	}
	id := j.Keeper.Identity().Node
	r := w.node(j.Keeper, j.Managers)
	storetest.Change(w, w.s, id, func(n *cluster.Node) { n.Spec.Manager = true })
	w.until("the certificate says so", func() bool { return j.Keeper.Identity().Role == ca.Manager })
	// Demoted, it stays one as long as it keeps the store.
	storetest.Change(w, w.s, id, func(n *cluster.Node) { n.Status.Manager = &cluster.ManagerStatus{} })
	storetest.Change(w, w.s, id, func(n *cluster.Node) { n.Spec.Manager = false })
	w.until("the node knows that it is demoted", func() bool {
		n, err := store.Find[*cluster.Node](r.View(), id)
		return err == nil && !n.Spec.Manager && n.Status.Manager != nil
	})
	if role, err := w.m.Role(id); err != nil || role != ca.Manager || NewMember(j.Keeper, slog.New(slog.DiscardHandler)).due(r.View()) {
		t.Errorf("it has its seat still, and is to be a %s, %v", role, err)
	}
	storetest.Change(w, w.s, id, func(n *cluster.Node) { n.Status.Manager = nil })
	w.until("the certificate says so", func() bool { return j.Keeper.Identity().Role == ca.Worker })
}

// A manager that was off for longer than its certificate is valid, and can ask nobody, signs
// for itself as soon as it can; and always in time from then on.
func TestSignsForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSite(t)
		a, err := w.m.Authority()
		if err != nil {
			t.Fatal(err)
		}
		w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "m1"}, Spec: cluster.NodeSpec{Manager: true}}))
		log := slog.New(slog.DiscardHandler)
		k := w.identity(a, "m1", ca.Manager, time.Hour)
		s, m := New(k, w.m, log), NewMember(k, log)
		time.Sleep(2 * time.Hour)
		r, err := dispatch.Open(dispatch.Config{Node: "m1", Log: log})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, r) }()
		valid := func() bool {
			id := k.Identity()
			return id.Node == "m1" && id.Role == ca.Manager && time.Now().Before(id.Expires)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if valid() {
			t.Fatal("somebody has signed")
		}
		m.SetSigner(s.Sign)
		synctest.Wait()
		for day := range 200 {
			if !valid() {
				t.Fatalf("after %d days its certificate is valid until %s", day, k.Identity().Expires)
			}
			time.Sleep(24 * time.Hour)
		}
		cancel()
		if err := errors.Join(<-done, r.Close()); err != nil {
			t.Error(err)
		}
	})
}

// When a manager's listener fails, nobody is left connected with it.
func TestListenerFails(t *testing.T) {
	w := newSite(t)
	a, err := w.m.Authority()
	if err != nil {
		t.Fatal(err)
	}
	w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "m1"}, Spec: cluster.NodeSpec{Manager: true}}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := w.identity(a, "m1", ca.Manager, 0)
	s := New(k, w.m, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(t.Context(), l) }()
	conn, err := dial(l.Addr().String(), k.Client(ca.Manager))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := wire.NewNodeClient(conn).Leader(t.Context(), &wire.LeaderRequest{}); err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // as by a hand from outside
	if err := <-ended; err == nil {
		t.Error("that is no end")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := wire.NewNodeClient(conn).Leader(ctx, &wire.LeaderRequest{}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
		t.Errorf("a connection of before: %v", err)
	}
}
