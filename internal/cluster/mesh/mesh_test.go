package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// world is a store with two nodes, and a network "net" that has the service "web".
type world struct {
	*testing.T
	s *mem.Store
}

func newWorld(t *testing.T) world {
	w := world{t, mem.New(store.NewState())}
	t.Cleanup(func() { _ = w.s.Close() })
	n := &cluster.Network{Meta: cluster.Meta{ID: "net", Name: "net"}, Spec: cluster.NetworkSpec{Name: "net", Create: &network.CreateRequest{Driver: "overlay"}}}
	n.Status.Attached = []cluster.Attached{{Node: "there", Container: "c", Addrs: prefixes("10.0.0.50/24")}, {Node: "here", Container: "d", Addrs: prefixes("10.0.0.51/24")}}
	w.commit(store.Create(n))
	for id, at := range map[string]string{"here": "192.0.2.1", "there": "192.0.2.2:2377"} {
		w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: id, Name: id}, Status: cluster.NodeStatus{Ready: true, Addr: at}}))
	}
	w.service("web", "10.0.0.9/24")
	w.service("rr", "")
	return w
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func (w world) commit(changes ...store.Change) {
	w.Helper()
	if _, err := w.s.Commit(w.Context(), changes...); err != nil {
		w.Fatal(err)
	}
}

func (w world) service(name, vip string) {
	w.Helper()
	s := &cluster.Service{Meta: cluster.Meta{ID: name, Name: name}, Spec: cluster.ServiceSpec{
		Task: cluster.TaskSpec{Container: &container.Config{}}, Networks: []cluster.Attachment{{Network: "net", Settings: &network.EndpointSettings{Aliases: []string{"also-" + name}}}},
	}}
	if vip != "" {
		s.Status.VIPs = []cluster.VIP{{Network: "net", Addr: netip.MustParsePrefix(vip)}}
	}
	w.commit(store.Create(s))
}

// task is one that runs and is well, but for what f says.
func (w world) task(id, service, node, addr string, f ...func(*cluster.Task)) {
	w.Helper()
	t := &cluster.Task{
		Meta: cluster.Meta{ID: id, Name: service + "." + id, Owner: service}, Spec: cluster.TaskSpec{Container: &container.Config{}}, Node: node, Desired: cluster.TaskRunning,
		Status: cluster.TaskStatus{State: cluster.TaskRunning, Healthy: true},
	}
	for _, p := range prefixes(strings.Fields(addr)...) {
		t.Addresses = append(t.Addresses, cluster.TaskAddress{Network: "net", Addr: p})
	}
	for _, f := range f {
		f(t)
	}
	w.commit(store.Create(t))
}

func (w world) change(id string, f func(*cluster.Task)) {
	w.Helper()
	t, err := store.Find[*cluster.Task](w.s.View(), id)
	if err != nil {
		w.Fatal(err)
	}
	t = store.Copy(t)
	f(t)
	w.commit(store.Update(t))
}

func (n Network) peers() string {
	var out []string
	for _, p := range n.Peers {
		out = append(out, fmt.Sprint(p.Addr, "@", p.Node))
	}
	return strings.Join(out, " ")
}

func (n Network) serving(vip string) string {
	for _, s := range n.Services {
		if s.VIP.String() == vip {
			return strings.Trim(fmt.Sprint(s.Backends), "[]")
		}
	}
	return "none"
}

func (n Network) name(name string) string { return strings.Trim(fmt.Sprint(n.Names[name]), "[]") }

func TestOf(t *testing.T) {
	w := newWorld(t)
	w.task("t1", "web", "here", "10.0.0.11/24")
	w.task("t2", "web", "there", "10.0.0.12/24 fd00::12/64")
	w.task("t3", "rr", "there", "10.0.0.13/24")
	w.task("t4", "rr", "here", "10.0.0.14/24")
	for id, f := range map[string]func(*cluster.Task){
		"ill":      func(t *cluster.Task) { t.Status.Healthy = false },
		"halted":   func(t *cluster.Task) { t.Halted = true },
		"ending":   func(t *cluster.Task) { t.Desired = cluster.TaskShutdown },
		"starting": func(t *cluster.Task) { t.Status.State = cluster.TaskStarting },
	} {
		w.task(id, "web", "there", fmt.Sprintf("10.0.0.%d/24", 20+len(id)), f)
	}
	w.task("over", "web", "there", "10.0.0.40/24", func(t *cluster.Task) { t.Status.State = cluster.TaskFailed })
	w.task("homeless", "web", "", "10.0.0.41/24", func(t *cluster.Task) { t.Status.State = cluster.TaskPending })
	n := Of(w.s.View(), "here", "net")
	if got, want := n.peers(), "10.0.0.12@192.0.2.2 10.0.0.13@192.0.2.2 10.0.0.23@192.0.2.2 10.0.0.26@192.0.2.2 10.0.0.26@192.0.2.2 10.0.0.28@192.0.2.2 10.0.0.50@192.0.2.2 fd00::12@192.0.2.2"; got != want {
		t.Errorf("peers %s\nwant  %s", got, want)
	}
	for _, p := range n.Peers {
		if (p.Addr == netip.MustParseAddr("fd00::12")) != (p.MAC.String() == "02:42:0a:00:00:0c" && p.Addr.Is6()) {
			t.Errorf("%s has %s: both addresses of a task are of one link", p.Addr, p.MAC)
		}
	}
	if got := n.serving("10.0.0.9"); got != "10.0.0.11 10.0.0.12" {
		t.Errorf("%s serve", got)
	}
	for name, want := range map[string]string{
		"web": "10.0.0.9", "also-web": "10.0.0.9", "tasks.web": "10.0.0.11 10.0.0.12 fd00::12",
		"rr": "10.0.0.13 10.0.0.14", "also-rr": "10.0.0.13 10.0.0.14", "tasks.rr": "10.0.0.13 10.0.0.14",
		"web.t2.t2": "10.0.0.12 fd00::12", "web.t1.t1": "", "web.ill.ill": "", "nobody": "",
	} {
		if got := n.name(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if n.Local.String() != "192.0.2.1" || n.Port != 0 {
		t.Errorf("this node is at %s, port %d", n.Local, n.Port)
	}
	// The other node sees it the other way round.
	if got := Of(w.s.View(), "there", "net").peers(); got != "10.0.0.11@192.0.2.1 10.0.0.14@192.0.2.1 10.0.0.51@192.0.2.1" {
		t.Errorf("peers of the other %s", got)
	}
}

// engine notes what it was told.
type engine struct {
	have  []string
	told  []Network
	drops []string
	fails int // so many calls fail first
}

func (e *engine) Set(_ context.Context, n Network) error {
	if e.fails > 0 {
		e.fails--
		return fmt.Errorf("not now")
	}
	if !slices.Contains(e.have, n.ID) {
		return errdefs.ErrNotFound
	}
	e.told = append(e.told, n)
	return nil
}

func (e *engine) Have() []string { return e.have }

func (e *engine) Drop(_ context.Context, id string) error {
	if e.drops = append(e.drops, id); len(e.drops) == 1 {
		return errdefs.ErrConflict // somebody is on it still
	}
	return nil
}

// The engine is told what has changed and nothing else; what it could not do is told again,
// and a network that is no more is dropped.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.task("t1", "web", "there", "10.0.0.11/24")
		e := &engine{have: []string{"net", "old"}, fails: 1}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New("here", w.s, e, slog.New(slog.DiscardHandler)).Run(ctx) }()
		sleep := synctest.Wait
		settle := func() Network {
			t.Helper()
			sleep()
			if len(e.told) == 0 {
				t.Fatal("nothing was told")
			}
			return e.told[len(e.told)-1]
		}
		until := func(ok func() bool) {
			t.Helper()
			for range 20 {
				if sleep(); ok() {
					return
				}
				time.Sleep(patience)
			}
			t.Fatalf("told %v, dropped %v", e.told, e.drops)
		}
		until(func() bool { return len(e.told) == 1 && len(e.drops) == 2 })
		if !slices.Equal(e.drops, []string{"old", "old"}) {
			t.Errorf("dropped %v", e.drops)
		}
		if got := settle().serving("10.0.0.9"); got != "10.0.0.11" {
			t.Errorf("%s serves", got)
		}
		w.change("t1", func(t *cluster.Task) { t.Status.Message = "something else" })
		sleep()
		if len(e.told) != 1 {
			t.Errorf("told %d times of nothing", len(e.told)-1)
		}
		w.change("t1", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		if n := settle(); n.serving("10.0.0.9") != "" || !strings.Contains(n.peers(), "10.0.0.11@") {
			t.Errorf("one that ends: %s serves, peers %s", n.serving("10.0.0.9"), n.peers())
		}
		w.change("t1", func(t *cluster.Task) { t.Status.State = cluster.TaskShutdown })
		if n := settle(); strings.Contains(n.peers(), "10.0.0.11@") {
			t.Errorf("one that has ended: peers %s", n.peers())
		}
		node, err := store.Find[*cluster.Node](w.s.View(), "there")
		if err != nil {
			t.Fatal(err)
		}
		node = store.Copy(node)
		node.Status.DataPathAddr = "198.51.100.7"
		w.commit(store.Update(node))
		if n := settle(); n.peers() != "10.0.0.50@198.51.100.7" {
			t.Errorf("a node with another address: peers %s", n.peers())
		}
		if node, err = store.Find[*cluster.Node](w.s.View(), "here"); err != nil {
			t.Fatal(err)
		}
		node = store.Copy(node)
		node.Status.Addr = "198.51.100.1:2377"
		w.commit(store.Update(node))
		if n := settle(); n.Local.String() != "198.51.100.1" {
			t.Errorf("this node has another address: %s", n.Local)
		}
		c := &cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}, Status: cluster.ClusterStatus{DataPathPort: 4800}}
		w.commit(store.Create(c))
		if n := settle(); n.Port != 4800 {
			t.Errorf("a cluster with another port: %d", n.Port)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// published tells of ports as "8080/tcp web>80: addresses"; those on other nodes have a !, those
// that take nothing new stand in brackets.
func (n Network) published() string {
	var out []string
	for _, p := range n.Ports {
		text := fmt.Sprintf("%d/%s %s>%d:", p.Port, p.Proto, p.Service, p.Target)
		for _, b := range p.Tasks {
			a := b.Addr.String()
			if b.Far {
				a += "!"
			}
			if b.Rests {
				a = "(" + a + ")"
			}
			text += " " + a
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// Every node is told of all tasks behind published ports, and which of them take what is new;
// of a host that has left with its apps the ports stay as long as the tasks that are reached by
// the network.
func TestPorts(t *testing.T) {
	w := newWorld(t)
	in := cluster.NewIngress()
	in.ID = "in"
	in.Status.Attached = []cluster.Attached{{Node: "there", Addrs: prefixes("10.1.0.2/24")}}
	w.commit(store.Create(in))
	ports := []cluster.Port{
		{Proto: network.TCP, Target: 80, Published: 8080}, {Proto: network.UDP, Target: 53}, {Proto: network.TCP, Target: 81, Published: 81, Host: true},
		{Proto: network.TCP, Target: 82, Published: 82, Address: "127.0.0.1"},
		{Proto: network.TCP, Target: 83, Published: 83, Last: 85},
	}
	w.commit(store.Create(&cluster.Service{Meta: cluster.Meta{ID: "pub", Name: "pub"}, Spec: cluster.ServiceSpec{Task: cluster.TaskSpec{Container: &container.Config{}}, Ports: ports}}))
	on := func(addr string, f ...func(*cluster.Task)) func(*cluster.Task) {
		return func(t *cluster.Task) {
			t.Addresses = []cluster.TaskAddress{{Network: "in", Addr: netip.MustParsePrefix(addr)}}
			for _, f := range f {
				f(t)
			}
		}
	}
	w.task("p1", "pub", "here", "", on("10.1.0.11/24"))
	w.task("p2", "pub", "there", "", on("10.1.0.12/24"))
	w.task("p3", "pub", "there", "", on("10.1.0.13/24", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown }))
	w.task("p4", "pub", "here", "", on("10.1.0.14/24", func(t *cluster.Task) { t.Status.State = cluster.TaskFailed }))
	if n := Of(w.s.View(), "here", "in"); n.published() != "" || !n.Ingress || n.Placed {
		t.Errorf("before ports are settled: %q, ingress %t, placed %t", n.published(), n.Ingress, n.Placed)
	}
	s, err := store.Find[*cluster.Service](w.s.View(), "pub")
	if err != nil {
		t.Fatal(err)
	}
	s = store.Copy(s)
	s.Status.Ports = slices.Clone(ports)
	s.Status.Ports[1], s.Status.Ports[4] = ports[1].At(30000), ports[4].At(84)
	w.commit(store.Update(s))
	is := func(want string) {
		t.Helper()
		if got := Of(w.s.View(), "here", "in").published(); got != want {
			t.Errorf("published %s\nwant      %s", got, want)
		}
	}
	is("84/tcp pub>83: 10.1.0.11 10.1.0.12! (10.1.0.13!), 8080/tcp pub>80: 10.1.0.11 10.1.0.12! (10.1.0.13!), 30000/udp pub>53: 10.1.0.11 10.1.0.12! (10.1.0.13!)")
	if n := Of(w.s.View(), "there", "in"); !n.Placed || !strings.Contains(n.published(), "10.1.0.11! 10.1.0.12 (10.1.0.13)") {
		t.Errorf("the other node: %s, placed %t", n.published(), n.Placed)
	}
	node, err := store.Find[*cluster.Node](w.s.View(), "there")
	if err != nil {
		t.Fatal(err)
	}
	node = store.Copy(node)
	node.Status.Ready = false
	w.commit(store.Update(node))
	is("84/tcp pub>83: 10.1.0.11, 8080/tcp pub>80: 10.1.0.11, 30000/udp pub>53: 10.1.0.11")
	m := New("here", w.s, nil, slog.New(slog.DiscardHandler))
	for _, o := range []cluster.Object{node, s} {
		if got := m.concerns(w.s.View(), store.Event{Old: o, New: func() cluster.Object {
			if n, ok := o.(*cluster.Node); ok {
				n = store.Copy(n)
				n.Status.Ready = true
				return n
			}
			return o
		}()}); !slices.Contains(got, "in") {
			t.Errorf("a change of %T concerns %v", o, got)
		}
	}
	if in, err = store.Find[*cluster.Network](w.s.View(), "in"); err != nil {
		t.Fatal(err)
	}
	w.commit(store.Delete(in))
	is("8080/tcp pub>80: 10.1.0.11")
	w.change("p1", func(t *cluster.Task) { t.Status.State = cluster.TaskShutdown })
	is("")
}

// An engine is told the keys of an encrypted network as they change, and of no other.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	key := func(id uint64) cluster.NetworkKey {
		return cluster.NetworkKey{ID: id, Secret: make([]byte, cluster.NetworkKeySize)}
	}
	s := &cluster.Secret{Meta: cluster.Meta{ID: "k", Name: cluster.KeysOf("net")}, Spec: cluster.SecretSpec{Network: "net", Data: cluster.NetworkKeys{Current: key(1)}.Bytes()}}
	w.commit(store.Create(s))
	if got := Of(w.s.View(), "here", "net").Keys; got.Current.ID != 0 {
		t.Errorf("of a network that is not encrypted: %+v", got)
	}
	n, err := store.Find[*cluster.Network](w.s.View(), "net")
	if err != nil {
		t.Fatal(err)
	}
	n = store.Copy(n)
	n.Spec.Create.Options = map[string]string{"encrypted": ""}
	w.commit(store.Update(n))
	m := New("here", w.s, nil, slog.Default())
	if got := Of(w.s.View(), "here", "net").Keys; got.Current.ID != 1 {
		t.Errorf("%+v", got)
	}
	next := store.Copy(s)
	next.Spec.Data = cluster.NetworkKeys{Previous: key(1), Current: key(2)}.Bytes()
	if got := m.concerns(w.s.View(), store.Event{Old: s, New: next}); !slices.Contains(got, "net") {
		t.Errorf("other keys concern %v", got)
	}
}
