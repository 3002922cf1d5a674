// Package networktest is what every network.Driver must do.
package networktest

import (
	"net"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Subject is a driver under test.
type Subject struct {
	// New makes a driver as a freshly started engine does; several made in one
	// test stand for an engine that was killed and its successors.
	New func(t *testing.T) network.Driver
	// Links tells whether the driver's endpoints have links and addresses.
	Links bool
}

// Test runs the suite. It needs root and a host of its own: the package's TestMain
// is netnstest.Main.
func Test(t *testing.T, s Subject) {
	netnstest.Root(t)
	for name, test := range map[string]func(*testing.T, Subject){
		"create and delete are idempotent": testCreate,
		"join and leave":                   testJoin,
		"endpoints differ":                 testDistinct,
		"unknown networks":                 testUnknown,
		"a failed join leaves nothing":     testFailedJoin,
		"restore":                          testRestore,
		"leave by a successor":             testSuccessor,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

var spec = network.Spec{Name: "test", ID: strings.Repeat("ab", 32)}

// open makes a driver with the test's network, and checks at the end that nothing
// is left on the host.
func (s Subject) open(t *testing.T) network.Driver {
	t.Helper()
	before := links(t)
	d := s.New(t)
	if _, err := d.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := t.Context()
		if err := d.Delete(ctx, spec.ID); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if after := links(t); after != before {
			t.Errorf("links on the host are %q, were %q", after, before)
		}
	})
	return d
}

// links are the names of the host's links.
func links(t *testing.T) string {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}

func space(t *testing.T) *netns.Handle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func join(t *testing.T, d network.Driver, ns *netns.Handle, n string) network.Endpoint {
	t.Helper()
	ep, err := d.Join(t.Context(), spec.ID, ns, network.Join{ContainerID: n, EndpointID: strings.Repeat(n, 64), Interface: "eth0", Gateway: true})
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

func leave(t *testing.T, d network.Driver, ep network.Endpoint) {
	t.Helper()
	for range 2 { // idempotent
		if err := d.Leave(t.Context(), ep); err != nil {
			t.Errorf("Leave: %v", err)
		}
	}
}

func testCreate(t *testing.T, s Subject) {
	d := s.open(t)
	first, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if first.Name != spec.Name || first.ID != spec.ID || first.Driver != d.Type() || first.Scope != "local" || (first.Subnet != "") != s.Links {
		t.Errorf("Info %+v", first)
	}
	again := s.New(t)
	defer again.Close()
	second, err := again.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if second.Subnet != first.Subnet || second.Gateway != first.Gateway {
		t.Errorf("taken up again it is %+v, was %+v", second, first)
	}
	if err := d.Delete(t.Context(), strings.Repeat("0", 64)); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
}

func testJoin(t *testing.T, s Subject) {
	d, ns := s.open(t), space(t)
	before := links(t)
	ep := join(t, d, ns, "1")
	if ep.EndpointID != strings.Repeat("1", 64) || ep.NetworkID != spec.ID {
		t.Errorf("endpoint %+v", ep)
	}
	inside := addresses(t, ns)
	if s.Links && (ep.Interface != "eth0" || !strings.Contains(inside, ep.IP+"/")) || !s.Links && inside != "" {
		t.Errorf("addresses inside %q, endpoint %+v", inside, ep)
	}
	leave(t, d, ep)
	if after := links(t); after != before {
		t.Errorf("after Leave the host's links are %q, were %q", after, before)
	}
	if left := addresses(t, ns); left != "" {
		t.Errorf("after Leave %q is left inside", left)
	}
}

// addresses are those of the links in a namespace but the loopback link.
func addresses(t *testing.T, ns *netns.Handle) (out string) {
	t.Helper()
	if err := ns.Do(func() error {
		list, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range list {
			if l.Flags&net.FlagLoopback != 0 {
				continue
			}
			addrs, err := l.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				out += a.String() + " "
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func testDistinct(t *testing.T, s Subject) {
	d := s.open(t)
	a, b := join(t, d, space(t), "1"), join(t, d, space(t), "2")
	if s.Links && (a.IP == b.IP || a.MAC == b.MAC || a.HostLink == b.HostLink) {
		t.Errorf("endpoints %+v and %+v", a, b)
	}
	leave(t, d, a)
	leave(t, d, b)
}

func testUnknown(t *testing.T, s Subject) {
	d := s.open(t)
	_, err := d.Join(t.Context(), strings.Repeat("0", 64), space(t), network.Join{EndpointID: strings.Repeat("1", 64), Interface: "eth0"})
	if !errdefs.IsNotFound(err) {
		t.Errorf("Join: %v", err)
	}
}

func testFailedJoin(t *testing.T, s Subject) {
	if !s.Links {
		t.Skip("makes no links: nothing can fail half-way")
	}
	d, ns := s.open(t), space(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0" // in the way
	if err := ns.Do(func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}) }); err != nil {
		t.Fatal(err)
	}
	before := links(t)
	if _, err := d.Join(t.Context(), spec.ID, ns, network.Join{EndpointID: strings.Repeat("1", 64), Interface: "eth0"}); err == nil {
		t.Error("a second link called eth0 was made")
	}
	if after := links(t); after != before {
		t.Errorf("the host's links are %q, were %q", after, before)
	}
}

func testRestore(t *testing.T, s Subject) {
	d := s.open(t)
	empty := links(t)
	kept, lost := join(t, d, space(t), "1"), join(t, d, space(t), "2")
	next := s.New(t)
	defer next.Close()
	if _, err := next.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := next.Restore(t.Context(), map[string][]network.Live{spec.ID: {{ContainerID: "1", Endpoint: kept, Gateway: true}}}); err != nil {
		t.Fatal(err)
	}
	after := links(t)
	if s.Links && (!strings.Contains(after, kept.HostLink) || strings.Contains(after, lost.HostLink)) {
		t.Errorf("links are %q: %s is to be there, %s is not", after, kept.HostLink, lost.HostLink)
	}
	if other := join(t, next, space(t), "3"); s.Links && other.IP == kept.IP {
		t.Errorf("address %s was given twice", other.IP)
	} else {
		leave(t, next, other)
	}
	leave(t, next, kept)
	if after := links(t); after != empty {
		t.Errorf("links are %q, were %q", after, empty)
	}
}

func testSuccessor(t *testing.T, s Subject) {
	d := s.open(t)
	before := links(t)
	ep := join(t, d, space(t), "1")
	next := s.New(t)
	defer next.Close()
	leave(t, next, ep) // it has not even heard of the network yet
	if after := links(t); after != before {
		t.Errorf("links are %q, were %q", after, before)
	}
}
