package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
)

// paper is all that a Swarm needs, made up.
type paper struct {
	addrs   []Interface
	secrets int
	images  map[string]Image
	asked   []string // of images
	logs    map[string][]logs.Line
	broken  error // the end of logs of node2
}

func (p *paper) NewRoot(cluster string, _ time.Time) (Root, error) {
	r, err := ca.NewRoot(cluster, time.Now())
	if err != nil {
		return Root{}, err
	}
	key, err := r.KeyPEM()
	return Root{Cert: r.PEM(), Key: key, Ends: r.Ends()}, err
}
func (p *paper) LoadRoot(cert, key []byte) (Root, error) {
	r, err := ca.LoadRoot(cert, key)
	if err != nil {
		return Root{}, err
	}
	return Root{Cert: r.PEM(), Key: key, Ends: r.Ends()}, nil
}
func (p *paper) Rotate(root, next Root) (cluster.RootRotation, error) {
	return cluster.RootRotation{Cert: next.Cert, Key: next.Key, Cross: append([]byte("by "), root.Cert...), Issuer: "next"}, nil
}
func (p *paper) Token(cert []byte, secret string) (string, error) {
	return "SWMTKN-1-" + string(cert) + "-" + secret, nil
}
func (p *paper) NewUnlockKey() string { return "SWMKEY-1-" + p.NewSecret() }
func (p *paper) NewSecret() string    { p.secrets++; return string(rune('a' + p.secrets)) }
func (p *paper) Resolve(_ context.Context, ref, auth string, ask bool) Image {
	what := ref + " " + auth
	if ask {
		what += " asked"
	}
	p.asked = append(p.asked, what)
	return p.images[ref]
}
func (p *paper) Local(ref string) (string, bool, bool) {
	return ref, ref == "host" || ref == "mine", ref == "host"
}

// Open implements Logs; a log that is followed ends with its lines, too.
func (p *paper) Open(_ context.Context, node, id string, _ logs.ReadOptions) (logs.Reader, error) {
	if node == "dead" {
		return nil, errdefs.ErrUnavailable
	}
	list, ok := p.logs[id]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	if node == "node2" && p.broken != nil {
		return &lines{list, p.broken}, nil
	}
	return &lines{list, io.EOF}, nil
}

type lines struct {
	list []logs.Line
	end  error
}

func (l *lines) Next() (logs.Line, error) {
	if len(l.list) == 0 {
		return logs.Line{}, l.end
	}
	next := l.list[0]
	l.list = l.list[1:]
	return next, nil
}
func (l *lines) Hold() error  { return nil }
func (l *lines) Close() error { return nil }

// rig is a Swarm over a store in memory, with one node.
type rig struct {
	*testing.T
	*Swarm
	paper *paper
}

func newRig(t *testing.T) *rig {
	s := mem.New(store.NewState())
	t.Cleanup(func() { _ = s.Close() })
	p := &paper{images: map[string]Image{}, logs: map[string][]logs.Line{}, addrs: []Interface{
		{Name: "lo", Flags: net.FlagUp | net.FlagLoopback, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
		{Name: "eth0", Flags: net.FlagUp, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}},
		{Name: "docker0", Flags: net.FlagUp, Addrs: []netip.Addr{netip.MustParseAddr("172.17.0.1")}},
	}}
	r := &rig{t, New(Config{
		Store: s, Authority: p, Images: p, Networks: p, Logs: p, Membership: &paperMembership{s: s, part: Part{Node: "node1", Addr: "192.0.2.7"}}, Addrs: func() ([]Interface, error) { return p.addrs, nil },
		Now: func() time.Time { return time.Unix(1e9, 0).UTC() }, NewName: func() string { return "calm_cadiz" },
	}), p}
	r.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "node1", Name: "host1"}, Spec: cluster.NodeSpec{Manager: true}, Status: cluster.NodeStatus{Ready: true}}))
	return r
}

// paperMembership is the part of a host that has its swarm by itself.
type paperMembership struct {
	s      store.Store
	part   Part
	joined []Joining
	forced bool
	behind error // why it is not current
	saved  *store.State
	placed *cluster.Node
}

func (p *paperMembership) Part() Part { return p.part }
func (p *paperMembership) Found(ctx context.Context, c *cluster.Cluster, n *cluster.Node) error {
	p.part.In, p.part.Manager, p.part.Ready = true, true, true
	_, err := p.s.Commit(ctx, store.Create(c), store.Update(n))
	return err
}
func (p *paperMembership) Current(context.Context) error { return p.behind }
func (p *paperMembership) Restore(_ context.Context, saved *store.State, n *cluster.Node, _ bool) error {
	p.saved, p.placed = saved, n
	return nil
}
func (p *paperMembership) Force(context.Context) error { p.forced = true; return nil }
func (p *paperMembership) Join(_ context.Context, j Joining) error {
	p.joined = append(p.joined, j)
	return nil
}
func (p *paperMembership) Leave(ctx context.Context) error {
	c, err := the(p.s.View())
	if err != nil {
		return err
	}
	p.part = Part{Node: p.part.Node}
	_, err = p.s.Commit(ctx, store.Delete(c))
	return err
}
func (p *paperMembership) Unlock(_ context.Context, key string) error {
	if !p.part.Locked {
		return errdefs.ErrConflict
	}
	if key != "right" {
		return errdefs.ErrPermissionDenied
	}
	p.part.Locked = false
	return nil
}

// membership is the rig's.
func (r *rig) membership() *paperMembership { return r.Membership.(*paperMembership) }

func (r *rig) commit(c ...store.Change) {
	r.Helper()
	if _, err := r.Store.Commit(r.Context(), c...); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) init() *rig {
	r.Helper()
	if _, err := r.Init(r.Context(), swarm.InitRequest{}); err != nil {
		r.Fatal(err)
	}
	return r
}

// wants fails unless an error has a kind and words.
func wants(t *testing.T, err error, is func(error) bool, words string) {
	t.Helper()
	if err == nil || is != nil && !is(err) || !strings.Contains(err.Error(), words) {
		t.Errorf("%v, want %q", err, words)
	}
}

func TestBeforeInit(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for what, call := range map[string]func() error{
		"inspect":  func() error { _, err := r.Inspect(); return err },
		"update":   func() error { return r.Update(ctx, 1, swarm.Spec{}, Rotate{}) },
		"nodes":    func() error { _, err := r.Nodes(nil); return err },
		"node":     func() error { _, err := r.GetNode("node1"); return err },
		"services": func() error { _, err := r.Services(nil, false); return err },
		"create":   func() error { _, _, err := r.CreateService(ctx, web(), Asked{}); return err },
		"service":  func() error { _, err := r.GetService("web", false); return err },
		"tasks":    func() error { _, err := r.Tasks(nil); return err },
		"logs":     func() error { _, _, err := r.ServiceLogs(ctx, "web", logs.ReadOptions{}); return err },
		"secrets":  func() error { _, err := r.Secrets(nil); return err },
		"secret":   func() error { _, err := r.CreateSecret(ctx, swarm.SecretSpec{}); return err },
		"configs":  func() error { _, err := r.Configs(nil); return err },
		"config":   func() error { _, err := r.CreateConfig(ctx, swarm.ConfigSpec{}); return err },
		"unlock":   func() error { _, err := r.UnlockKey(); return err },
	} {
		if err := call(); !errors.Is(err, errNoManager) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wants(t, r.Leave(ctx, true), errdefs.IsUnavailable, "This node is not part of a swarm")
	if i := r.Info(); i.LocalNodeState != "inactive" || r.State() != "inactive" {
		t.Errorf("%+v", i)
	}
}

func TestInit(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for words, q := range map[string]swarm.InitRequest{
		"must be a non-zero IP address or network":  {AdvertiseAddr: "nowhere0"},
		"listen address must be":                    {ListenAddr: "192.0.2.7:x"},
		"interface eth1 has no usable":              {AdvertiseAddr: "eth1"},
		"minimum certificate expiry time is: 1h0m0": {Spec: swarm.Spec{CAConfig: swarm.CAConfig{NodeCertExpiry: time.Minute}}},
		"raft settings":                             {Spec: swarm.Spec{Raft: swarm.RaftConfig{SnapshotInterval: 7}}},
		"external certificate":                      {Spec: swarm.Spec{CAConfig: swarm.CAConfig{ExternalCAs: []*swarm.ExternalCA{{}}}}},
		"overlaps 10.0.0.0/8":                       {DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}},
		"subnet size is out of range: 30":           {DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, SubnetSize: 30},
		"invalid Data path port number (80)":        {DataPathPort: 80},
		"invalid Availability":                      {Availability: "lazy"},
		"only a manager has":                        {ForceNewCluster: true},
	} {
		r.paper.addrs = append(r.paper.addrs[:3:3], Interface{Name: "eth1", Flags: net.FlagUp})
		_, err := r.Init(ctx, q)
		wants(t, err, nil, words)
	}
	node, err := r.Init(ctx, swarm.InitRequest{ListenAddr: "0.0.0.0:2377", Spec: swarm.Spec{Annotations: swarm.Annotations{Labels: map[string]string{"a": "b"}}}})
	if err != nil || node != "node1" {
		t.Fatal(node, err)
	}
	_, err = r.Init(ctx, swarm.InitRequest{})
	wants(t, err, errdefs.IsUnavailable, "This node is already part of a swarm")
	wants(t, r.Join(ctx, swarm.JoinRequest{}), errdefs.IsUnavailable, "This node is already part of a swarm")
	i := r.Info()
	if i.NodeID != "node1" || i.NodeAddr != "192.0.2.7" || i.Managers != 1 || i.RemoteManagers[0].Addr != "192.0.2.7:2377" || i.Cluster.SubnetSize != 24 || i.Cluster.Spec.Labels["a"] != "b" {
		t.Errorf("%+v", i)
	}
	if r.State() != "active/manager" {
		t.Error(r.State())
	}
	if node, err := r.Init(ctx, swarm.InitRequest{ForceNewCluster: true}); err != nil || node != "node1" || !r.membership().forced {
		t.Error(node, err)
	}
}

// Where to join is read as Docker reads it; what the node becomes is what it is told of itself.
func TestJoin(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for words, q := range map[string]swarm.JoinRequest{
		"at least 1 RemoteAddr":              {},
		"invalid remote address":             {RemoteAddrs: []string{"192.0.2.1:x"}},
		"invalid Availability":               {RemoteAddrs: []string{"192.0.2.1"}, Availability: "lazy"},
		"must be a non-zero IP address or n": {RemoteAddrs: []string{"192.0.2.1"}, AdvertiseAddr: "nowhere0"},
		"data path address must be":          {RemoteAddrs: []string{"192.0.2.1"}, DataPathAddr: "nowhere0"},
	} {
		wants(t, r.Join(ctx, q), errdefs.IsInvalidArgument, words)
	}
	if err := r.Join(ctx, swarm.JoinRequest{RemoteAddrs: []string{"192.0.2.1", "[2001:db8::1]:4000"}, JoinToken: "t", Availability: "drain", DataPathAddr: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if err := r.Join(ctx, swarm.JoinRequest{RemoteAddrs: []string{"m"}, ListenAddr: "192.0.2.7:4000"}); err != nil {
		t.Fatal(err)
	}
	want := []Joining{
		{Managers: []string{"192.0.2.1:2377", "[2001:db8::1]:4000"}, Token: "t", Listen: "0.0.0.0:2377", DataPath: "192.0.2.7", Availability: "drain"},
		{Managers: []string{"m:2377"}, Listen: "192.0.2.7:4000", Addr: "192.0.2.7:4000", Availability: "active"},
	}
	if got := r.membership().joined; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		part  Part
		state string
	}{
		{Part{In: true}, "pending"}, {Part{In: true, Ready: true}, "active/worker"}, {Part{In: true, Manager: true, Locked: true, Err: "x"}, "locked"}, {Part{In: true, Err: "x"}, "error"},
	} {
		r.membership().part = c.part
		if got := r.State(); got != c.state {
			t.Errorf("%+v: %s", c.part, got)
		}
	}
}

// A node that knows nothing of its swarm says why.
func TestNoManager(t *testing.T) {
	r := newRig(t)
	change := func(f func(n *cluster.Node)) {
		n, err := store.Find[*cluster.Node](r.Store.View(), "node1")
		if err != nil {
			t.Fatal(err)
		}
		n = store.Copy(n)
		f(n)
		r.commit(store.Update(n))
	}
	change(func(n *cluster.Node) { n.Spec.Manager = false })
	_, err := r.Nodes(nil)
	wants(t, err, errdefs.IsUnavailable, "Worker nodes can't be used to view or modify cluster state.")
	change(func(n *cluster.Node) { n.Status.Message = "it is starting" })
	_, err = r.Nodes(nil)
	wants(t, err, errdefs.IsUnavailable, "it is starting")
}

func TestAdvertise(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ advertise, listen, want, words string }{
		{"", "", "192.0.2.7:2377", ""},
		{"eth0", "", "192.0.2.7:2377", ""},
		{"eth0:999", "", "192.0.2.7:999", ""},
		{"198.51.100.1", "0.0.0.0:4000", "198.51.100.1:4000", ""},
		{"", "192.0.2.9:4000", "192.0.2.9:4000", ""},
		{"2001:db8::7", "", "[2001:db8::7]:2377", ""},
		{"0.0.0.0", "", "", "non-zero"},
	} {
		h := host(r.Addrs)
		addr, at, err := h.listen(c.listen)
		if err != nil {
			t.Fatal(err)
		}
		a, err := h.advertise(c.advertise, addr, at)
		if c.words == "" && (err != nil || a.String() != c.want) {
			t.Errorf("%+v: %s %v", c, a, err)
		}
		if c.words != "" {
			wants(t, err, errdefs.IsInvalidArgument, c.words)
		}
	}
	r.paper.addrs = append(r.paper.addrs, Interface{Name: "eth1", Flags: net.FlagUp, Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.2")}})
	_, err := host(r.Addrs).advertise("", "0.0.0.0", "2377")
	wants(t, err, errdefs.IsInvalidArgument, "multiple addresses on different interfaces (192.0.2.7 on eth0 and 198.51.100.2 on eth1)")
	bridge := Interface{Name: "br-lan", Flags: net.FlagUp, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.8")}}
	r.paper.addrs = append(r.paper.addrs[:1:1], bridge)
	if a, err := host(r.Addrs).advertise("", "0.0.0.0", "2377"); err != nil || a.String() != "192.0.2.8:2377" {
		t.Errorf("a host that has its address on a bridge: %s %v", a, err)
	}
	r.paper.addrs = append(r.paper.addrs, Interface{Name: "docker0", Flags: net.FlagUp, Addrs: []netip.Addr{netip.MustParseAddr("172.17.0.1")}})
	_, err = host(r.Addrs).advertise("", "0.0.0.0", "2377")
	wants(t, err, errdefs.IsInvalidArgument, "multiple addresses on different interfaces (192.0.2.8 on br-lan and 172.17.0.1 on docker0)")
	r.paper.addrs = nil
	_, err = host(r.Addrs).advertise("", "0.0.0.0", "2377")
	wants(t, err, errdefs.IsInvalidArgument, "could not find the system's IP address")
}

func TestUpdateSwarm(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	before, err := r.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	wants(t, r.Update(ctx, before.Version.Index+1, before.Spec, Rotate{}), nil, "update out of sequence")
	spec := before.Spec
	spec.Orchestration.TaskHistoryRetentionLimit = pointer(int64(2))
	if err := r.Update(ctx, before.Version.Index, spec, Rotate{WorkerToken: true}); err != nil {
		t.Fatal(err)
	}
	after, _ := r.Inspect()
	if after.JoinTokens.Worker == before.JoinTokens.Worker || after.JoinTokens.Manager != before.JoinTokens.Manager || *after.Spec.Orchestration.TaskHistoryRetentionLimit != 2 {
		t.Errorf("%+v", after)
	}
	wants(t, r.Unlock(ctx, swarm.UnlockRequest{}), errdefs.IsConflict, "swarm is not locked")
	spec.EncryptionConfig.AutoLockManagers = true
	keys := map[string]bool{}
	for range 2 { // the first locks, the second has another key
		is, _ := r.Inspect()
		if err := r.Update(ctx, is.Version.Index, spec, Rotate{UnlockKey: true}); err != nil {
			t.Fatal(err)
		}
		key, err := r.UnlockKey()
		if err != nil || key == "" {
			t.Fatal(key, err)
		}
		keys[key] = true
	}
	if len(keys) != 2 {
		t.Error(keys)
	}
	r.membership().part.Locked = true
	wants(t, r.Unlock(ctx, swarm.UnlockRequest{UnlockKey: "wrong"}), errdefs.IsInvalidArgument, "invalid key provided")
	if err := r.Unlock(ctx, swarm.UnlockRequest{UnlockKey: "right"}); err != nil {
		t.Error(err)
	}
}

// Leaving takes along what is the swarm's, and leaves what apps have.
func TestLeave(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	id, _, err := r.CreateService(ctx, web(), Asked{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateSecret(ctx, swarm.SecretSpec{Annotations: swarm.Annotations{Name: "s"}, Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	app := &cluster.App{Meta: cluster.Meta{ID: cluster.NewID(), Name: "shop"}}
	service, _ := store.Find[*cluster.Service](r.Store.View(), id)
	task := service.First(1, "")
	r.commit(store.Create(app), store.Create(&cluster.Config{Meta: cluster.Meta{Name: "shop_c", Owner: app.ID}}), store.Create(task),
		store.Create(&cluster.Network{Meta: cluster.Meta{ID: "net", Name: "front"}, Spec: cluster.NetworkSpec{Name: "front"}}))
	wants(t, r.Leave(ctx, false), errdefs.IsUnavailable, "Removing the last manager erases all current state of the swarm. Use `--force`")
	left := make(chan error, 1)
	go func() { left <- r.Leave(ctx, true) }()
	w, err := r.Store.Watch(0, cluster.KindService)
	for gone := false; err == nil && !gone; { // then its task goes
		_, none := store.Find[*cluster.Service](r.Store.View(), id)
		if gone = none != nil; !gone {
			_, err = w.Next(ctx)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := the(r.Store.View()); err != nil {
		t.Error("it has left before its tasks")
	}
	if n, _ := store.Find[*cluster.Network](r.Store.View(), "net"); n.Spec.Removed {
		t.Error("its network is about to go before its tasks have")
	}
	r.commit(store.Delete(store.List[*cluster.Task](r.Store.View())[0]))
	w, err = r.Store.Watch(r.Store.View().Revision(), cluster.KindNetwork)
	for gone := false; err == nil && !gone; { // and then the network, once nothing of it is there any more
		n, none := store.Find[*cluster.Network](r.Store.View(), "net")
		if gone = none == nil && n.Spec.Removed; !gone {
			_, err = w.Next(ctx)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := the(r.Store.View()); err != nil {
		t.Error("it has left before its networks")
	}
	front, _ := store.Find[*cluster.Network](r.Store.View(), "net")
	r.commit(store.Delete(front))
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	v := r.Store.View()
	if n := len(store.List[*cluster.Secret](v)) + len(store.List[*cluster.Cluster](v)); n != 0 || len(store.List[*cluster.App](v)) != 1 || len(store.List[*cluster.Config](v)) != 1 {
		t.Error("what is left is not what apps have")
	}
}

func TestNodes(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	r.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "node2", Name: "host2"}}))
	for _, c := range []struct {
		f    Filters
		want string
	}{
		{nil, "host1 host2"}, {Filters{"role": {"manager"}}, "host1"}, {Filters{"name": {"host2"}}, "host2"}, {Filters{"id": {"node"}}, "host1 host2"},
		{Filters{"membership": {"pending"}}, ""}, {Filters{"node.label": {"a"}}, ""},
	} {
		list, err := r.Nodes(c.f)
		var names []string
		for _, n := range list {
			names = append(names, n.Description.Hostname)
		}
		if err != nil || strings.Join(names, " ") != c.want {
			t.Errorf("%v: %v %v", c.f, names, err)
		}
	}
	_, err := r.Nodes(Filters{"role": {"boss"}})
	wants(t, err, errdefs.IsInvalidArgument, "boss")
	_, err = r.GetNode("nope")
	wants(t, err, errdefs.IsNotFound, "node nope not found")
	_, err = r.GetNode("node")
	wants(t, err, errdefs.IsInvalidArgument, "node node is ambiguous (2 matches found)")

	n, _ := r.GetNode("host1")
	spec := n.Spec
	spec.Role = "worker"
	wants(t, r.UpdateNode(ctx, "node1", n.Version.Index, spec), errdefs.IsFailedPrecondition, "attempting to demote the last manager of the swarm")
	spec = n.Spec
	spec.Availability, spec.Labels = "drain", map[string]string{"zone": "a"}
	wants(t, r.UpdateNode(ctx, "node1", n.Version.Index+1, spec), nil, "update out of sequence")
	if err := r.UpdateNode(ctx, "node1", n.Version.Index, spec); err != nil {
		t.Fatal(err)
	}
	if n, _ = r.GetNode("node1"); n.Spec.Availability != "drain" || n.Spec.Labels["zone"] != "a" || n.ManagerStatus == nil || !n.ManagerStatus.Leader {
		t.Errorf("%+v", n)
	}
	wants(t, r.RemoveNode(ctx, "node1", true), errdefs.IsFailedPrecondition, "is a cluster manager and is a member of the raft cluster")
	if err := r.RemoveNode(ctx, "node2", false); err != nil {
		t.Error(err)
	}
	if c, err := the(r.Store.View()); err != nil || len(c.Status.Barred) != 1 || c.Status.Barred[0].Node != "node2" || !c.Status.Barred[0].Until.After(r.Now().Add(c.Spec.CAConfig.NodeCertExpiry-time.Second)) {
		t.Errorf("others are not told: %+v, %v", c.Status.Barred, err)
	}
}

func TestServices(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	r.paper.images["nginx:1"] = Image{ID: "sha256:one"}
	s := whole()
	_, _, err := r.CreateService(ctx, s, Asked{})
	wants(t, err, errdefs.IsNotFound, "network front not found")
	s.TaskTemplate.Networks[0].Target = "mine"
	_, _, err = r.CreateService(ctx, s, Asked{})
	wants(t, err, errdefs.IsPermissionDenied, "The network mine cannot be used with services")
	s.TaskTemplate.Networks[0].Target = "host"
	_, _, err = r.CreateService(ctx, s, Asked{})
	wants(t, err, errdefs.IsInvalidArgument, "secret not found: key")
	key, _ := r.CreateSecret(ctx, swarm.SecretSpec{Annotations: swarm.Annotations{Name: "key"}, Data: []byte("x")})
	conf, _ := r.CreateConfig(ctx, swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "conf"}, Data: []byte("x")})
	s.TaskTemplate.ContainerSpec.Secrets[0].SecretID, s.TaskTemplate.ContainerSpec.Configs[0].ConfigID = key, conf
	id, warnings, err := r.CreateService(ctx, s, Asked{Auth: "login"})
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	o, _ := store.Find[*cluster.Service](r.Store.View(), id)
	if o.Spec.Task.ImageID != "sha256:one" || o.Spec.Task.Auth != "login" || o.Spec.Number != 1 {
		t.Errorf("%+v", o.Spec.Task)
	}
	_, _, err = r.CreateService(ctx, web(), Asked{})
	wants(t, err, errdefs.IsAlreadyExists, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists")
	unnamed := web()
	unnamed.Name = ""
	unnamed.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 1, PublishedPort: 8080}}}
	_, _, err = r.CreateService(ctx, unnamed, Asked{})
	wants(t, err, errdefs.IsInvalidArgument, "port '8080' is already in use by service 'web' ("+id+") as an ingress port")

	wants(t, r.RemoveSecret(ctx, "key"), errdefs.IsInvalidArgument, "secret 'key' is in use by the following service: web")
	wants(t, r.RemoveConfig(ctx, "conf"), errdefs.IsInvalidArgument, "config 'conf' is in use by the following service: web")
	list, err := r.Services(Filters{"name": {"we"}, "mode": {"replicated"}}, true)
	if err != nil || len(list) != 1 || list[0].ServiceStatus.DesiredTasks != 3 {
		t.Errorf("%+v %v", list, err)
	}
	if err := r.RemoveService(ctx, "web"); err != nil {
		t.Error(err)
	}
	_, err = r.GetService("web", true)
	wants(t, err, errdefs.IsNotFound, "service web not found")
}

// change asks for another spec of a service.
func (r *rig) change(name string, a Asked, f func(*swarm.ServiceSpec)) error {
	s, err := r.GetService(name, false)
	if err != nil {
		return err
	}
	spec := s.Spec
	if f != nil {
		c := *spec.TaskTemplate.ContainerSpec
		spec.TaskTemplate.ContainerSpec = &c
		f(&spec)
	}
	_, err = r.UpdateService(r.Context(), name, s.Version.Index, spec, a)
	return err
}

func TestUpdateService(t *testing.T) {
	r := newRig(t).init()
	r.paper.images["nginx:1"], r.paper.images["nginx:2"] = Image{ID: "sha256:one"}, Image{ID: "sha256:two"}
	if _, _, err := r.CreateService(r.Context(), web(), Asked{Auth: "login"}); err != nil {
		t.Fatal(err)
	}
	get := func() *cluster.Service {
		o, err := store.Named[*cluster.Service](r.Store.View(), "web")
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	wants(t, r.change("web", Asked{Rollback: true}, nil), errdefs.IsFailedPrecondition, "does not have a previous spec")
	wants(t, r.change("web", Asked{}, func(s *swarm.ServiceSpec) { s.Name = "other" }), errdefs.IsNotImplemented, "renaming services is not supported")
	wants(t, r.change("web", Asked{}, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}} }), errdefs.IsNotImplemented, "service mode change is not allowed")
	_, err := r.UpdateService(t.Context(), "web", 1, web(), Asked{})
	wants(t, err, nil, "update out of sequence")

	for _, c := range []struct {
		what   string
		a      Asked
		f      func(*swarm.ServiceSpec)
		number uint64
		image  string
	}{
		{"replicas alone", Asked{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: pointer(uint64(4))} }, 1, "sha256:one"},
		{"another image", Asked{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "nginx:2" }, 2, "sha256:two"},
		{"back", Asked{Rollback: true}, nil, 1, "sha256:one"},
		{"and there again", Asked{Rollback: true}, nil, 2, "sha256:two"},
		{"by force", Asked{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ }, 3, "sha256:two"},
	} {
		if err := r.change("web", c.a, c.f); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		o := get()
		if o.Spec.Number != c.number || o.Spec.Task.ImageID != c.image || o.Spec.Task.Auth != "login" || c.a.Rollback != (o.Status.Rollout != nil) {
			t.Errorf("%s: number %d image %s auth %q rollout %+v", c.what, o.Spec.Number, o.Spec.Task.ImageID, o.Spec.Task.Auth, o.Status.Rollout)
		}
	}
	if s, _ := r.GetService("web", false); s.PreviousSpec == nil || s.PreviousSpec.TaskTemplate.ForceUpdate != 0 || *s.Spec.Mode.Replicated.Replicas != 4 {
		t.Errorf("%+v", s)
	}
}

// What one app has is changed by that app alone.
func TestServiceOfApp(t *testing.T) {
	r := newRig(t).init()
	app := &cluster.App{Meta: cluster.Meta{ID: cluster.NewID(), Name: "shop"}}
	spec := web()
	own, err := toSpec(&spec)
	if err != nil {
		t.Fatal(err)
	}
	own.Swarm = nil
	r.commit(store.Create(app), store.Create(&cluster.Service{Meta: cluster.Meta{Name: "shop_web", Owner: app.ID}, Spec: own, Numbers: 1}),
		store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "shop_key", Owner: app.ID}}))
	s, err := r.GetService("shop_web", false)
	if err != nil || s.Spec.TaskTemplate.ContainerSpec.Image != "nginx:1" || s.Spec.Name != "shop_web" {
		t.Fatal(s, err)
	}
	words := `which the engine keeps: change it with "escale up"`
	wants(t, r.change("shop_web", Asked{}, nil), errdefs.IsConflict, "service shop_web is of app shop, "+words)
	wants(t, r.RemoveService(t.Context(), "shop_web"), errdefs.IsConflict, words)
	wants(t, r.RemoveSecret(t.Context(), "shop_key"), errdefs.IsConflict, words)
}

// Ports that are left open stay so: a loop chooses them, and what it has chosen is that
// service's for as long as it wants it, also an app's.
func TestPortsLeftOpen(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	app := &cluster.App{Meta: cluster.Meta{ID: cluster.NewID(), Name: "shop"}}
	port := func(published uint16) []cluster.Port {
		return []cluster.Port{{Proto: "tcp", Target: 80, Published: published}}
	}
	r.commit(store.Create(app), store.Create(&cluster.Service{
		Meta: cluster.Meta{Name: "shop_web", Owner: app.ID}, Spec: cluster.ServiceSpec{Ports: port(0)}, Status: cluster.ServiceStatus{Ports: port(30000)},
	}))
	open := web()
	open.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}, {TargetPort: 90}, {TargetPort: 53, Protocol: "udp", PublishedPort: 30000}}}
	id, _, err := r.CreateService(ctx, open, Asked{})
	if err != nil {
		t.Fatal(err)
	}
	o, _ := store.Find[*cluster.Service](r.Store.View(), id)
	if p := o.Spec.Ports; p[0].Published != 0 || p[1].Published != 0 || p[2].Published != 30000 {
		t.Errorf("ports that were left open: %+v", p)
	}
	s, err := r.GetService("web", false)
	if err != nil || len(s.Endpoint.Ports) != 1 || s.Endpoint.Ports[0].PublishedPort != 30000 || s.Spec.EndpointSpec.Ports[0].PublishedPort != 0 {
		t.Errorf("told before any is chosen: %+v %v", s.Endpoint.Ports, err)
	}
	o = store.Copy(o)
	o.Status.Ports = slices.Clone(o.Spec.Ports)
	o.Status.Ports[0].Published, o.Status.Ports[1].Published = 30001, 30002
	r.commit(store.Update(o))
	if s, err = r.GetService("web", false); err != nil || len(s.Endpoint.Ports) != 3 || s.Endpoint.Ports[1].PublishedPort != 30002 || s.Spec.EndpointSpec.Ports[1].PublishedPort != 0 {
		t.Errorf("told once they are: %+v %v", s.Endpoint.Ports, err)
	}
	for n, whose := range map[uint32]string{30000: "shop_web", 30001: "web"} {
		asked := web()
		asked.Name, asked.EndpointSpec = "other", &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: n}}}
		_, _, err = r.CreateService(ctx, asked, Asked{})
		wants(t, err, errdefs.IsInvalidArgument, fmt.Sprintf("port '%d' is already in use by service '%s'", n, whose))
	}
	if err := r.change("web", Asked{}, func(s *swarm.ServiceSpec) { s.EndpointSpec = nil }); err != nil {
		t.Fatal(err)
	}
	asked := web()
	asked.Name, asked.EndpointSpec = "other", &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 30001}}}
	if _, _, err = r.CreateService(ctx, asked, Asked{}); err != nil {
		t.Errorf("a port that its service wants no more: %v", err)
	}
}

// What an app has of a range is its own, and the rest of the range anybody's; Docker's form knows
// the port that was chosen.
func TestPortsOfRanges(t *testing.T) {
	r := newRig(t).init()
	app := &cluster.App{Meta: cluster.Meta{ID: cluster.NewID(), Name: "shop"}}
	port := cluster.Port{Proto: "tcp", Target: 80, Published: 8000, Last: 8002}
	o := &cluster.Service{Meta: cluster.Meta{Name: "shop_web", Owner: app.ID}, Spec: cluster.ServiceSpec{Task: cluster.TaskSpec{Container: &container.Config{}, Host: &container.HostConfig{}}, Ports: []cluster.Port{port}}}
	r.commit(store.Create(app), store.Create(o))
	s, err := r.GetService("shop_web", false)
	if err != nil || len(s.Endpoint.Ports) != 0 || s.Spec.EndpointSpec.Ports[0].PublishedPort != 0 {
		t.Errorf("told before one is chosen: %+v %v", s.Endpoint, err)
	}
	o = store.Copy(store.List[*cluster.Service](r.Store.View())[0])
	o.Status.Ports = []cluster.Port{port.At(8001)}
	r.commit(store.Update(o))
	if s, err = r.GetService("shop_web", false); err != nil || len(s.Endpoint.Ports) != 1 || s.Endpoint.Ports[0].PublishedPort != 8001 || s.Spec.EndpointSpec.Ports[0].PublishedPort != 0 {
		t.Errorf("told once one is: %+v %v", s.Endpoint, err)
	}
	asked := web()
	asked.Name, asked.EndpointSpec = "other", &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8001}}}
	_, _, err = r.CreateService(t.Context(), asked, Asked{})
	wants(t, err, errdefs.IsInvalidArgument, "port '8001' is already in use by service 'shop_web'")
	asked.EndpointSpec.Ports[0].PublishedPort = 8000
	if _, _, err = r.CreateService(t.Context(), asked, Asked{}); err != nil {
		t.Errorf("another of the range: %v", err)
	}
}

// racing is a store in which others are quicker: what they do comes right before a commit.
type racing struct {
	store.Store
	others []func()
}

// Commit implements store.Store.
func (r *racing) Commit(ctx context.Context, c ...store.Change) (uint64, error) {
	if len(r.others) > 0 {
		next := r.others[0]
		r.others = r.others[1:]
		next()
	}
	return r.Store.Commit(ctx, c...)
}

// That a secret changes which a service uses is nothing to tell a client, who asks for what is
// possible still.
func TestSecretsThatChangeMeanwhile(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	key, err := r.CreateSecret(ctx, swarm.SecretSpec{Annotations: swarm.Annotations{Name: "key"}, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	s := &racing{Store: r.Store}
	r.Store = s
	relabel := func() {
		o, _ := store.Find[*cluster.Secret](s.Store.View(), key)
		o = store.Copy(o)
		o.Labels = map[string]string{"now": cluster.NewID()}
		if _, err := s.Store.Commit(ctx, store.Update(o)); err != nil {
			t.Error(err)
		}
	}
	takes := func() {
		c := &cluster.Service{Meta: cluster.Meta{Name: cluster.NewID()[:12]}, Spec: cluster.ServiceSpec{Ports: []cluster.Port{{Proto: "tcp", Target: 80, Published: 30000}}}}
		if _, err := s.Store.Commit(ctx, store.Create(c)); err != nil {
			t.Error(err)
		}
	}
	asked := web()
	asked.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	asked.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{File: &swarm.SecretReferenceFileTarget{Name: "key"}, SecretID: key, SecretName: "key"}}
	s.others = []func(){func() { relabel(); takes() }}
	id, _, err := r.CreateService(ctx, asked, Asked{})
	if err != nil {
		t.Fatal(err)
	}
	s.others = []func(){relabel, relabel}
	if err := r.change("web", Asked{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ }); err != nil {
		t.Error(err)
	}
	if o, _ := store.Find[*cluster.Service](s.View(), id); o.Spec.Number != 2 || o.Numbers != 2 || o.Previous == nil {
		t.Errorf("changed once: number %d of %d", o.Spec.Number, o.Numbers)
	}
	s.others = []func(){func() {
		o, _ := store.Find[*cluster.Service](s.View(), id)
		o = store.Copy(o)
		o.Labels = map[string]string{"now": "other"}
		if _, err := s.Store.Commit(ctx, store.Update(o)); err != nil {
			t.Error(err)
		}
	}}
	wants(t, r.change("web", Asked{}, nil), nil, "update out of sequence")
}

// An app's reference by name means its own secret first, and that of the swarm else.
func TestSecretsOfApps(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	app := &cluster.App{Meta: cluster.Meta{ID: cluster.NewID(), Name: "shop"}}
	refs := []cluster.FileRef{{Name: "db", Target: "/run/secrets/db"}, {Name: "shared", Target: "/run/secrets/shared"}}
	r.commit(store.Create(app), store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "shop_db", Owner: app.ID}}),
		store.Create(&cluster.Service{Meta: cluster.Meta{Name: "shop_web", Owner: app.ID}, Spec: cluster.ServiceSpec{Task: cluster.TaskSpec{Secrets: refs}}}))
	for _, name := range []string{"db", "shared"} {
		if _, err := r.CreateSecret(ctx, swarm.SecretSpec{Annotations: swarm.Annotations{Name: name}, Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.RemoveSecret(ctx, "db"); err != nil {
		t.Errorf("one that only shares its name with an app's: %v", err)
	}
	wants(t, r.RemoveSecret(ctx, "shared"), errdefs.IsInvalidArgument, "secret 'shared' is in use by the following service: shop_web")
}

func TestJobs(t *testing.T) {
	r := newRig(t).init()
	s := web()
	s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: pointer(uint64(2)), TotalCompletions: pointer(uint64(5))}}
	if _, _, err := r.CreateService(t.Context(), s, Asked{}); err != nil {
		t.Fatal(err)
	}
	if err := r.change("web", Asked{}, nil); err != nil { // asked again is done again
		t.Fatal(err)
	}
	o, _ := store.Named[*cluster.Service](r.Store.View(), "web")
	for n, state := range []cluster.TaskState{cluster.TaskComplete, cluster.TaskRunning} {
		task := o.First(uint64(n+1), "")
		task.Desired, task.Status = cluster.TaskComplete, cluster.TaskStatus{State: state, Healthy: true}
		r.commit(store.Create(task))
	}
	list, err := r.Services(nil, true)
	if err != nil || *list[0].ServiceStatus != (swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 2, CompletedTasks: 1}) || list[0].JobStatus.JobIteration.Index != 1 {
		t.Errorf("%+v %+v %v", list[0].ServiceStatus, list[0].JobStatus, err)
	}
	tasks, err := r.Tasks(Filters{"service": {"web"}, "desired-state": {"running"}})
	if err != nil || len(tasks) != 2 || tasks[0].JobIteration.Index != 1 {
		t.Errorf("%+v %v", tasks, err)
	}
}

func TestTasks(t *testing.T) {
	r := newRig(t).init()
	id, _, err := r.CreateService(t.Context(), web(), Asked{})
	if err != nil {
		t.Fatal(err)
	}
	o, _ := store.Find[*cluster.Service](r.Store.View(), id)
	make := func(slot uint64, f func(*cluster.Task)) string {
		task := o.First(slot, "")
		task.ID, task.Node = cluster.NewID(), "node1"
		f(task)
		r.commit(store.Create(task))
		return task.ID
	}
	up := make(1, func(t *cluster.Task) {
		t.Status = cluster.TaskStatus{State: cluster.TaskRunning, Healthy: true, HealthyAt: time.Now(), Container: &cluster.ContainerStatus{ID: "c0ffee", PID: 7, Ports: []cluster.Port{{Proto: "tcp", Target: 80, Published: 8080, Host: true}}}}
	})
	waits := make(2, func(t *cluster.Task) { t.Status.State = cluster.TaskRunning }) // for its health check
	make(3, func(t *cluster.Task) {
		t.SpecNumber, t.Desired, t.Status = 0, cluster.TaskShutdown, cluster.TaskStatus{State: cluster.TaskFailed, Err: "task: non-zero exit (1)"}
	})
	for _, c := range []struct {
		f    Filters
		want int
	}{
		{nil, 3}, {Filters{"desired-state": {"running"}}, 2}, {Filters{"desired-state": {"shutdown"}}, 1}, {Filters{"_up-to-date": {"true"}}, 2},
		{Filters{"node": {"node1"}, "service": {"web"}}, 3}, {Filters{"service": {"other"}}, 0}, {Filters{"id": {up[:20]}}, 1}, {Filters{"name": {"web.2"}}, 1},
	} {
		if list, err := r.Tasks(c.f); err != nil || len(list) != c.want {
			t.Errorf("%v: %d %v, want %d", c.f, len(list), err, c.want)
		}
	}
	_, err = r.Tasks(Filters{"desired-state": {"lazy"}})
	wants(t, err, errdefs.IsInvalidArgument, "Invalid desired-state filter: 'lazy'")
	_, err = r.Tasks(Filters{"node": {"nope"}})
	wants(t, err, errdefs.IsNotFound, "node nope not found")
	task, err := r.GetTask(up)
	if err != nil || task.Status.ContainerStatus.PID != 7 || task.Slot != 1 || task.NodeID != "node1" || task.Spec.ContainerSpec.Image != "nginx:1" || task.Status.State != "running" {
		t.Errorf("%+v %v", task, err)
	}
	if p := task.Status.PortStatus.Ports; len(p) != 1 || p[0] != (swarm.PortConfig{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: "host"}) {
		t.Errorf("%+v", p)
	}
	if task, _ = r.GetTask("web.2." + waits); task.Status.State != "starting" {
		t.Errorf("%+v", task.Status)
	}
}

func TestSecretsAndConfigs(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	spec := func(name string, size int) swarm.SecretSpec {
		return swarm.SecretSpec{Annotations: swarm.Annotations{Name: name, Labels: map[string]string{"a": "b"}}, Data: make([]byte, size)}
	}
	for words, s := range map[string]swarm.SecretSpec{
		"only 64 [a-zA-Z0-9-_.] characters":                          spec("-a", 1),
		"secret data must be larger than 0 and less than 512000":     spec("a", 0),
		"secret data must be larger than 0 and less than 512000 byt": spec("a", 512000),
		"secret driver \"vault\"":                                    {Annotations: swarm.Annotations{Name: "a"}, Driver: &swarm.Driver{Name: "vault"}},
		"template driver \"x\"":                                      {Annotations: swarm.Annotations{Name: "a"}, Data: []byte("a"), Templating: &swarm.Driver{Name: "x"}},
	} {
		_, err := r.CreateSecret(ctx, s)
		wants(t, err, errdefs.IsInvalidArgument, words)
	}
	id, err := r.CreateSecret(ctx, spec("a", 5))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.CreateSecret(ctx, spec("a", 5))
	wants(t, err, errdefs.IsAlreadyExists, "secret a already exists")
	o, err := r.GetSecret(id[:20])
	if err != nil || o.Spec.Data != nil || o.Spec.Labels["a"] != "b" {
		t.Errorf("%+v %v", o, err)
	}
	wants(t, r.UpdateSecret(ctx, id, o.Version.Index, spec("a", 6)), errdefs.IsInvalidArgument, "only updates to Labels are allowed")
	relabelled := o.Spec
	relabelled.Labels = map[string]string{"c": "d"}
	wants(t, r.UpdateSecret(ctx, id, o.Version.Index+1, relabelled), nil, "update out of sequence")
	if err := r.UpdateSecret(ctx, id, o.Version.Index, relabelled); err != nil {
		t.Fatal(err)
	}
	if list, err := r.Secrets(Filters{"label": {"c=d"}, "name": {"a"}}); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	if err := r.RemoveSecret(ctx, "a"); err != nil {
		t.Error(err)
	}
	_, err = r.GetSecret("a")
	wants(t, err, errdefs.IsNotFound, "secret a not found")

	conf := swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "c"}, Data: []byte("x={{.Task.Slot}}"), Templating: &swarm.Driver{Name: "golang"}}
	if _, err := r.CreateConfig(ctx, conf); err != nil {
		t.Fatal(err)
	}
	c, err := r.GetConfig("c")
	if err != nil || string(c.Spec.Data) != "x={{.Task.Slot}}" || c.Spec.Templating.Name != "golang" {
		t.Errorf("%+v %v", c, err)
	}
	c.Spec.Labels = map[string]string{"c": "d"}
	if err := r.UpdateConfig(ctx, "c", c.Version.Index, c.Spec); err != nil {
		t.Error(err)
	}
	_, err = r.CreateConfig(ctx, swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "big"}, Data: make([]byte, maxConfig)})
	wants(t, err, errdefs.IsInvalidArgument, "config data must be")
}

// Lines of several tasks come in order of time; a follower gets those of tasks to come, and
// ends with the service.
func TestServiceLogs(t *testing.T) {
	r := newRig(t).init()
	id, _, err := r.CreateService(t.Context(), web(), Asked{})
	if err != nil {
		t.Fatal(err)
	}
	line := func(at int64, text string) logs.Line {
		return logs.Line{Time: time.Unix(at, 0), Stream: "stdout", Data: []byte(text), Attrs: map[string]string{"tag": "x"}}
	}
	r.paper.logs["one"] = []logs.Line{line(1, "a"), line(4, "d")}
	r.paper.logs["two"] = []logs.Line{line(2, "b"), line(3, "c")}
	run := func(slot uint64, container string) {
		o, _ := store.Find[*cluster.Service](r.Store.View(), id)
		task := o.First(slot, "")
		task.Node, task.Status = "node1", cluster.TaskStatus{State: cluster.TaskRunning, Container: &cluster.ContainerStatus{ID: container}}
		r.commit(store.Create(task))
	}
	run(1, "one")
	run(2, "two")
	run(3, "removed")
	read := func(l Lines, n int) (out []string) {
		for range n {
			next, err := l.Next()
			if err != nil {
				t.Fatal(err)
			}
			if next.Attrs[attrService] != id || next.Attrs[attrNode] != "node1" || next.Attrs[attrTask] == "" || next.Attrs["tag"] != "x" {
				t.Errorf("%+v", next.Attrs)
			}
			out = append(out, string(next.Data))
		}
		return out
	}
	l, _, err := r.ServiceLogs(t.Context(), "web", logs.ReadOptions{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(read(l, 4), ""); got != "abcd" {
		t.Error(got)
	}
	if _, err := l.Next(); err != io.EOF || l.Close() != nil {
		t.Error(err)
	}

	l, _, err = r.ServiceLogs(t.Context(), "web", logs.ReadOptions{Stdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	got := read(l, 4)
	slices.Sort(got)
	r.paper.logs["new"] = []logs.Line{line(5, "e")}
	run(4, "new")
	got = append(got, read(l, 1)...)
	if strings.Join(got, "") != "abcde" {
		t.Error(got)
	}
	if err := r.RemoveService(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Next(); err != io.EOF {
		t.Error(err)
	}
	_ = l.Close()
}

func TestSwarmEvents(t *testing.T) {
	r := newRig(t).init()
	told := make(chan events.Message, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	begun := make(chan struct{})
	go func() { close(begun); ended <- r.Events(ctx, func(m events.Message) { told <- m }) }()
	<-begun
	next := func(typ events.Type, action events.Action, attrs string) {
		t.Helper()
		m := <-told
		for m.Type == events.NodeEventType { // of the beginning
			m = <-told
		}
		var list []string
		for _, k := range sortedKeys(m.Actor.Attributes) {
			list = append(list, k+"="+m.Actor.Attributes[k])
		}
		if m.Type != typ || m.Action != action || m.Scope != "swarm" || strings.Join(list, " ") != attrs {
			t.Errorf("%s %s %v, want %s %s %s", m.Type, m.Action, list, typ, action, attrs)
		}
	}
	// The watch may begin after the first changes: something is changed until it is told.
	for begun := false; !begun; {
		if err := r.change2("node1"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-told:
			begun = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	if _, _, err := r.CreateService(ctx, web(), Asked{}); err != nil {
		t.Fatal(err)
	}
	next("service", "create", "name=web")
	if err := r.change("web", Asked{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: pointer(uint64(4))} }); err != nil {
		t.Fatal(err)
	}
	next("service", "update", "name=web replicas.new=4 replicas.old=1")
	if err := r.RemoveService(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	next("service", "remove", "name=web")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// change2 gives a node another label.
func (r *rig) change2(id string) error {
	n, err := r.GetNode(id)
	if err != nil {
		return err
	}
	n.Spec.Labels = map[string]string{"n": n.UpdatedAt.String()}
	return r.UpdateNode(r.Context(), id, n.Version.Index, n.Spec)
}
