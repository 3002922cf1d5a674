// Package networktest is what every network.Driver must do.
package networktest

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
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
	// Dir is the folder of namespaces that the driver looks for handles in; empty:
	// it looks for none.
	Dir string
	// SameMAC tells that all endpoints have the parent's hardware address.
	SameMAC bool
	// HostLinks tells whether each endpoint has a link on the host, too.
	HostLinks bool
	// Scope is that of the networks; empty: local.
	Scope string
	// Options are those of the network that is made.
	Options map[string]string
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

// spec is the network of the tests.
func (s Subject) spec() network.Spec {
	n := network.Spec{Name: "test", ID: id, IPv4: true, IPv6: s.Links, Options: s.Options}
	if s.Links {
		n.Subnets = []network.Subnet{
			{Prefix: netip.MustParsePrefix("10.203.0.0/24"), Gateway: netip.MustParseAddr("10.203.0.1")},
			{Prefix: netip.MustParsePrefix("fd00:203::/64"), Gateway: netip.MustParseAddr("fd00:203::1")},
		}
	}
	return n
}

var id = strings.Repeat("ab", 32)

// open makes a driver with the test's network, and checks at the end that nothing
// is left on the host.
func (s Subject) open(t *testing.T) network.Driver {
	t.Helper()
	before := links(t)
	d := s.New(t)
	if _, err := d.Create(t.Context(), s.spec()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := t.Context()
		if err := d.Delete(ctx, id); err != nil {
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

// box is the namespace of a container.
type box struct {
	*netns.Handle
	name string // of its handle
}

func (s Subject) space(t *testing.T) box {
	t.Helper()
	if s.Dir == "" {
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		return box{Handle: ns}
	}
	f, err := netns.OpenFolder(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("box%d", boxes.Add(1))
	ns, err := f.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := f.Destroy(); err != nil {
			t.Error(err)
		}
	})
	return box{ns, name}
}

var boxes atomic.Int64

// how is the join of container n, which is one digit; the address follows from it.
func (s Subject) how(n string) network.Join {
	j := network.Join{ContainerID: n, EndpointID: strings.Repeat(n, 64), Interface: "eth0"}
	if s.Links {
		j.IP, j.IP6 = netip.MustParsePrefix("10.203.0.1"+n+"/24"), netip.MustParsePrefix("fd00:203::1"+n+"/64")
		j.Gateway, j.Gateway6 = netip.MustParseAddr("10.203.0.1"), netip.MustParseAddr("fd00:203::1")
	}
	return j
}

func (s Subject) join(t *testing.T, d network.Driver, ns box, n string) network.Endpoint {
	t.Helper()
	j := s.how(n)
	ep, err := d.Join(t.Context(), id, ns.Handle, j)
	if err != nil {
		t.Fatal(err)
	}
	ep.Network, ep.NetworkID, ep.Handle = "test", id, ns.name // as the manager completes it
	if s.Links {
		ep.IP, ep.PrefixLen, ep.IP6, ep.PrefixLen6 = j.IP.Addr().String(), j.IP.Bits(), j.IP6.Addr().String(), j.IP6.Bits()
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
	first, err := d.Create(t.Context(), s.spec())
	if err != nil {
		t.Fatal(err)
	}
	if first.Name != "test" || first.ID != id || first.Driver != d.Type() || first.Scope != cmp.Or(s.Scope, "local") || (len(first.IPAM.Subnets) == 2) != s.Links {
		t.Errorf("Info %+v", first)
	}
	again := s.New(t)
	defer again.Close()
	second, err := again.Create(t.Context(), s.spec())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(second, first) {
		t.Errorf("taken up again it is %+v, was %+v", second, first)
	}
	if err := d.Delete(t.Context(), strings.Repeat("0", 64)); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
}

func testJoin(t *testing.T, s Subject) {
	d, ns := s.open(t), s.space(t)
	before := links(t)
	ep := s.join(t, d, ns, "1")
	if ep.EndpointID != strings.Repeat("1", 64) {
		t.Errorf("endpoint %+v", ep)
	}
	inside := addresses(t, ns)
	if s.Links && (ep.Interface != "eth0" || !strings.Contains(inside, "10.203.0.11/24 ") || !strings.Contains(inside, "fd00:203::11/64 ")) || !s.Links && inside != "" {
		t.Errorf("addresses inside %q, endpoint %+v", inside, ep)
	}
	if got := routes(t, ns); s.Links && got != "10.203.0.1 fd00:203::1" {
		t.Errorf("default routes %q", got)
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
func addresses(t *testing.T, ns box) (out string) {
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

// routes are the gateways of the default routes in a namespace.
func routes(t *testing.T, ns box) string {
	t.Helper()
	var out []string
	if err := ns.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.RouteList(nil, family)
			if err != nil {
				return err
			}
			for _, r := range list {
				if r.Gw != nil {
					out = append(out, r.Gw.String())
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func testDistinct(t *testing.T, s Subject) {
	d := s.open(t)
	a, b := s.join(t, d, s.space(t), "1"), s.join(t, d, s.space(t), "2")
	if s.Links && !s.SameMAC && a.MAC == b.MAC || s.HostLinks && a.HostLink == b.HostLink {
		t.Errorf("endpoints %+v and %+v", a, b)
	}
	leave(t, d, a)
	leave(t, d, b)
}

func testUnknown(t *testing.T, s Subject) {
	d := s.open(t)
	_, err := d.Join(t.Context(), strings.Repeat("0", 64), s.space(t).Handle, network.Join{EndpointID: strings.Repeat("1", 64), Interface: "eth0"})
	if !errdefs.IsNotFound(err) {
		t.Errorf("Join: %v", err)
	}
}

func testFailedJoin(t *testing.T, s Subject) {
	if !s.Links {
		t.Skip("makes no links: nothing can fail half-way")
	}
	d, ns := s.open(t), s.space(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0" // in the way
	if err := ns.Do(func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}) }); err != nil {
		t.Fatal(err)
	}
	before := links(t)
	if _, err := d.Join(t.Context(), id, ns.Handle, s.how("1")); err == nil {
		t.Error("a second link called eth0 was made")
	}
	if after := links(t); after != before {
		t.Errorf("the host's links are %q, were %q", after, before)
	}
}

func testRestore(t *testing.T, s Subject) {
	d := s.open(t)
	empty := links(t)
	kept, lost := s.join(t, d, s.space(t), "1"), s.join(t, d, s.space(t), "2")
	next := s.New(t)
	defer next.Close()
	if _, err := next.Create(t.Context(), s.spec()); err != nil {
		t.Fatal(err)
	}
	if err := next.Restore(t.Context(), map[string][]network.Live{id: {{ContainerID: "1", Endpoint: kept}}}); err != nil {
		t.Fatal(err)
	}
	after := links(t)
	if s.HostLinks && (!strings.Contains(after, kept.HostLink) || strings.Contains(after, lost.HostLink)) {
		t.Errorf("links are %q: %s is to be there, %s is not", after, kept.HostLink, lost.HostLink)
	}
	leave(t, next, s.join(t, next, s.space(t), "3"))
	leave(t, next, kept)
	if after := links(t); after != empty {
		t.Errorf("links are %q, were %q", after, empty)
	}
}

func testSuccessor(t *testing.T, s Subject) {
	d := s.open(t)
	before := links(t)
	ep := s.join(t, d, s.space(t), "1")
	next := s.New(t)
	defer next.Close()
	leave(t, next, ep) // it has not even heard of the network yet
	if after := links(t); after != before {
		t.Errorf("links are %q, were %q", after, before)
	}
}
