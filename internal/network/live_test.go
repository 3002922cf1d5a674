package network_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
)

// connect puts a running container on a network.
func (h *host) connect(b *box, name string, s *settings) *network.Change {
	h.t.Helper()
	r := request(b.name)
	r.ContainerID, r.Networks = b.ID, map[string]*settings{name: s}
	c, err := h.m.Connect(h.t.Context(), r, b.Endpoints)
	if err != nil {
		h.t.Fatalf("connecting %s to %s: %v", b.name, name, err)
	}
	b.Endpoints = c.Endpoints
	return c
}

func (h *host) disconnect(b *box, name string) {
	h.t.Helper()
	c, err := h.m.Disconnect(h.t.Context(), b.ID, name, b.Endpoints)
	if err != nil {
		h.t.Fatalf("disconnecting %s from %s: %v", b.name, name, err)
	}
	b.Endpoints = c.Endpoints
}

// way is the gateways of the default routes inside, with their links.
func (b *box) way() string {
	b.t.Helper()
	var out []string
	b.must(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(nil, family)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Gw == nil {
					continue
				}
				l, err := netlink.LinkByIndex(r.LinkIndex)
				if err != nil {
					return err
				}
				out = append(out, r.Gw.String()+"@"+l.Attrs().Name)
			}
		}
		return nil
	})
	return strings.Join(out, " ")
}

func TestConnect(t *testing.T) {
	h := newHost(t)
	for i, name := range []string{"one", "two", "six"} {
		c := network.Create{Name: name, IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: fmt.Sprintf("10.6%d.0.0/24", i)}}}}
		if name == "six" {
			c.EnableIPv6, c.IPAM.Config = yes(), append(c.IPAM.Config, network.CreateSubnet{Subnet: "fd00:6::/64"})
		}
		h.make(c)
	}
	h.make(network.Create{Name: "inner", Internal: true})
	a, b := h.start("a", "8080->80"), h.startAs(on("b", "one"))
	a.serve("tcp", ":80")
	b.serve("tcp", ":80")
	a.blocked("tcp", b.ip()+":80")
	c := h.connect(a, "one", &settings{IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.60.0.77")}, Aliases: []string{"late"}})
	if c.Changed.Interface != "eth1" || c.Changed.IP != "10.60.0.77" || len(c.Held) != 0 {
		t.Errorf("%+v", c)
	}
	a.reaches("tcp", b.ip()+":80", "b", "10.60.0.77")
	if w := a.way(); w != "172.17.0.1@eth0" {
		t.Errorf("way out %q", w)
	}
	if addrs, known := h.m.Names(b.ID).Addrs("late"); !known || len(addrs) != 1 || addrs[0].String() != "10.60.0.77" {
		t.Errorf("the alias: %v, %v", addrs, known)
	}
	published := func(where string) {
		t.Helper()
		h.here().reaches("tcp", "127.0.0.1:8080", "a", where)
	}
	// The way out and the ports follow: priority, both families, what is left.
	h.connect(a, "two", &settings{GwPriority: 3})
	if w := a.way(); w != "10.61.0.1@eth2" {
		t.Errorf("way out %q", w)
	}
	published("10.61.0.1")
	h.disconnect(a, "two")
	if w := a.way(); w != "172.17.0.1@eth0" {
		t.Errorf("way out %q", w)
	}
	published("172.17.0.1")
	h.connect(a, "six", &settings{})
	if w := a.way(); w != "10.62.0.1@eth2 fd00:6::1@eth2" {
		t.Errorf("way out %q", w)
	}
	published("10.62.0.1")
	h.disconnect(a, "bridge")
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints, b.ID: b.Endpoints})
	h.takeUp(a)
	published("10.62.0.1")
	h.connect(a, "inner", nil)
	h.disconnect(a, "six")
	if w := a.way(); w != "10.60.0.1@eth1" {
		t.Errorf("way out %q", w)
	}
	published("10.60.0.1")
	h.disconnect(a, "one")
	if w := a.way(); w != "" {
		t.Errorf("way out of an internal network %q", w)
	}
	if _, err := h.here().ask("tcp", "127.0.0.1:8080", time.Second); err == nil {
		t.Error("a port is published without a way out")
	}
	h.disconnect(a, "inner")
	if len(a.Endpoints) != 1 || a.Endpoints[0].Network != "" || h.m.Path(a.ID, a.Endpoints) != a.Path {
		t.Errorf("on no network: %+v", a.Endpoints)
	}
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints, b.ID: b.Endpoints})
	h.connect(a, "one", nil)
	a.reaches("tcp", b.ip()+":80", "b", a.ip())
}

func TestConnectRefuses(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "one", IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "10.60.0.0/29"}}}})
	a := h.start("a")
	n := h.startAs(on("n", "none"))
	before := h.count()
	for _, c := range []struct {
		who   *box
		name  string
		s     *settings
		kind  func(error) bool
		words string
	}{
		{a, "nosuch", nil, errdefs.IsNotFound, "network nosuch not found"},
		{a, "bridge", nil, errdefs.IsPermissionDenied, "endpoint with name a already exists in network bridge"},
		{a, "host", nil, errdefs.IsInvalidArgument, "cannot connect container to host network"},
		{a, "none", nil, errdefs.IsInvalidArgument, "one of the networks in private (none) mode"},
		{n, "one", nil, errdefs.IsInvalidArgument, "one of the networks in private (none) mode"},
		{a, "one", &settings{IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.60.0.1")}}, errdefs.IsPermissionDenied, "Address already in use"},
		{a, "one", &settings{IPAMConfig: &apinetwork.EndpointIPAMConfig{LinkLocalIPs: []netip.Addr{netip.MustParseAddr("1.2.3.4")}}}, errdefs.IsInvalidArgument, "invalid link-local IP address: 1.2.3.4"},
		{a, "one", &settings{DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.core.somaxconn=1"}}, errdefs.IsInvalidArgument, "unrecognised network interface sysctl 'net.core.somaxconn=1'"},
		{a, "one", &settings{DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.nosuch=1"}}, func(error) bool { return true }, "net.ipv4.conf.IFNAME.nosuch"},
		{a, "one", &settings{DriverOpts: map[string]string{"com.docker.network.endpoint.ifname": "eth0"}}, errdefs.IsConflict, `interface name "eth0" is in use already`},
		{a, "one", &settings{DriverOpts: map[string]string{"com.docker.network.endpoint.ifname": "a/b"}}, errdefs.IsInvalidArgument, "invalid interface name: a/b"},
	} {
		r := request(c.who.name)
		r.ContainerID, r.Networks = c.who.ID, map[string]*settings{c.name: c.s}
		if _, err := h.m.Connect(t.Context(), r, c.who.Endpoints); err == nil || !c.kind(err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s to %s: %v", c.who.name, c.name, err)
		}
	}
	if after := h.count(); after != before {
		t.Errorf("the kernel has %+v, had %+v", after, before)
	}
	if _, err := h.m.Disconnect(t.Context(), a.ID, "one", a.Endpoints); err == nil || err.Error() != "container "+a.ID+" is not connected to network one" {
		t.Errorf("Disconnect: %v", err)
	}
	for _, name := range []string{"b", "cc", "ddd", "eeee", "fffff"} { // all the addresses there are
		h.startAs(on(name, "one"))
	}
}

// Options of endpoints do what they say.
func TestEndpointOptions(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "n", EnableIPv6: yes(), Options: map[string]string{"com.docker.network.driver.mtu": "1400", "com.docker.network.container_iface_prefix": "net", "com.example.unknown": "kept"}})
	if i, _ := h.m.Inspect("n"); i.Options["com.example.unknown"] != "kept" {
		t.Errorf("options %v", i.Options)
	}
	a := h.start("a")
	h.connect(a, "n", &settings{
		MacAddress: apinetwork.HardwareAddr{2, 0, 0, 0, 0, 9},
		DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.ifname.forwarding=1"},
		IPAMConfig: &apinetwork.EndpointIPAMConfig{LinkLocalIPs: []netip.Addr{netip.MustParseAddr("169.254.7.7"), netip.MustParseAddr("fe80::77")}},
	})
	a.must(func() error {
		l, err := netlink.LinkByName("net0")
		if err != nil {
			return err
		}
		if l.Attrs().MTU != 1400 || l.Attrs().HardwareAddr.String() != "02:00:00:00:00:09" {
			t.Errorf("%+v", l.Attrs())
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		if s := fmt.Sprint(addrs); !strings.Contains(s, "169.254.7.7/16") || !strings.Contains(s, "fe80::77/64") {
			t.Errorf("addresses %s", s)
		}
		for file, want := range map[string]string{"ipv4/conf/net0/log_martians": "1", "ipv6/conf/net0/forwarding": "1", "ipv6/conf/net0/accept_ra": "0"} {
			if b, err := os.ReadFile("/proc/sys/net/" + file); err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s is %q, %v", file, b, err)
			}
		}
		return nil
	})
}

// Containers on a macvlan network reach each other, and what an engine that was
// killed left inside one goes.
func TestMacvlan(t *testing.T) {
	var info network.Info
	t.Cleanup(func() {
		if _, err := netlink.LinkByName("dm-" + info.ID[:12]); err == nil {
			t.Error("the parent is left")
		}
	})
	h := newHost(t)
	info = h.make(network.Create{Name: "lan", Driver: "macvlan", EnableIPv6: yes(), IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "10.70.0.0/24", Gateway: "10.70.0.1"}, {Subnet: "fd00:70::/64"}}}})
	a, b := h.startAs(on("a", "lan")), h.start("b", "8080->80")
	a.serve("tcp", ":80")
	a.serve("tcp6", ":81")
	h.connect(b, "lan", nil)
	b.serve("tcp", ":80")
	b.reaches("tcp", a.ip()+":80", "a", b.Endpoints[1].IP)
	b.reaches("tcp6", "["+a.Endpoints[0].IP6+"]:81", "a", b.Endpoints[1].IP6)
	if w := b.way(); w != "172.17.0.1@eth0" {
		t.Errorf("way out %q", w)
	}
	h.here().reaches("tcp", "127.0.0.1:8080", "b", "172.17.0.1")
	without := b.Endpoints[:1]
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints, b.ID: without})
	b.must(func() error {
		if _, err := netlink.LinkByName("eth1"); err == nil {
			t.Error("a link that no record names is left inside")
		}
		return nil
	})
	b.Endpoints = without
	h.connect(b, "lan", nil)
	b.reaches("tcp", a.ip()+":80", "a", b.Endpoints[1].IP)
	h.disconnect(b, "lan")
	b.must(func() error {
		if _, err := netlink.LinkByName("eth1"); err == nil {
			t.Error("the link is left after the container was disconnected")
		}
		return nil
	})
	if _, err := h.m.Create(t.Context(), network.Create{Name: "x", Driver: "macvlan", Options: map[string]string{"parent": "nosuch"}}); err == nil {
		t.Error("a parent that is not there")
	}
	if n := h.recordsLeft(); n != 1 {
		t.Errorf("%d records", n)
	}
}

// Ports are published on the address that a network names for them.
func TestHostBinding(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "n", Options: map[string]string{"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}})
	r := request("a", "8080->80", "0.0.0.0:8081->80")
	r.Networks, r.PublishAll, r.Exposed = map[string]*settings{"n": nil}, true, apinetwork.PortSet{apinetwork.MustParsePort("81"): {}}
	a := h.startAs(r)
	if s := fmt.Sprint(a.Endpoints[0].Ports); !strings.Contains(s, "{127.0.0.1 8080}") || !strings.Contains(s, "{0.0.0.0 8081}") || !strings.Contains(s, "81/tcp:[{127.0.0.1 ") {
		t.Errorf("ports %s", s)
	}
}

// Rounds of connecting and disconnecting leave nothing behind: no link, no rule, no
// address, no thread, no descriptor.
func TestConnectRounds(t *testing.T) {
	rounds := 200
	if n, err := strconv.Atoi(os.Getenv("ESCALE_NETWORK_ROUNDS")); err == nil {
		rounds = n
	}
	h := newHost(t)
	h.make(network.Create{Name: "n", EnableIPv6: yes()})
	a := h.start("a", "8080->80")
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	round := func() {
		h.connect(a, "n", &settings{GwPriority: 1})
		h.disconnect(a, "n")
	}
	round()
	runtime.GC()
	kernel, open, routines := h.count(), descriptors(), runtime.NumGoroutine()
	begun := time.Now()
	for range rounds {
		round()
	}
	t.Logf("%d rounds, %s each", rounds, time.Since(begun)/time.Duration(rounds))
	h.is(kernel)
	if n := descriptors(); n > open+3 {
		t.Errorf("%d descriptors, %d before", n, open)
	}
	if n := runtime.NumGoroutine(); n > routines+3 {
		t.Errorf("%d goroutines, %d before", n, routines)
	}
	if i, _ := h.m.Inspect("n"); len(i.Containers) != 0 {
		t.Errorf("containers %v", i.Containers)
	}
	a.must(func() error {
		links, err := netlink.LinkList()
		if err == nil && len(links) != 2 {
			t.Errorf("%d links inside", len(links))
		}
		return err
	})
}

// victimUsers is a victim that makes networks, connects containers, disconnects
// them and removes the networks.
func victimUsers(ctx context.Context, m *network.Manager) error {
	if _, err := m.Create(ctx, network.Create{Name: "kept", EnableIPv6: yes()}); err != nil && !errdefs.IsConflict(err) {
		return err
	}
	seed := rand.IntN(1 << 30)
	for i := 0; ; i++ {
		name := fmt.Sprintf("n%d-%d", seed, i)
		if _, err := m.Create(ctx, network.Create{Name: name, Internal: i%2 == 1}); err != nil {
			return err
		}
		r := numbered(seed+i, true)
		r.Networks = map[string]*settings{"kept": nil}
		s, err := m.Setup(ctx, r)
		if err != nil {
			return err
		}
		r.Networks = map[string]*settings{name: nil}
		c, err := m.Connect(ctx, r, s.Endpoints)
		if err != nil {
			return err
		}
		if i%3 == 0 {
			b, _ := json.Marshal(map[string][]network.Endpoint{s.ID: c.Endpoints})
			fmt.Println("live", string(b))
			continue
		}
		if c, err = m.Disconnect(ctx, s.ID, "kept", c.Endpoints); err != nil {
			return err
		}
		if err := m.Teardown(ctx, s.ID, c.Endpoints); err != nil {
			return err
		}
		if err := m.Remove(ctx, name); err != nil {
			return err
		}
	}
}

// TestKillUsers: killed while networks are made and removed, containers connected
// and disconnected, an engine leaves what the records say, and nothing else.
func TestKillUsers(t *testing.T) {
	h := newHost(t)
	rounds := 15
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		if err := h.m.Close(); err != nil {
			t.Fatal(err)
		}
		live := runVictim(t, h, time.Duration(rand.IntN(150_000))*time.Microsecond, victimEnv+"_DIR="+h.cfg.Dir)
		h.again(live)
		links := 0
		for _, eps := range live {
			links += len(eps)
		}
		networks := len(h.m.List()) - 2 // host and none have no bridge
		if h.recordsLeft() != networks-1 {
			t.Errorf("round %d: %d records, %d bridged networks", round, h.recordsLeft(), networks)
		}
		h.is(count{links: links, handles: len(live), elements: len(live), tables: 1, bridges: networks})
		for id, eps := range live {
			if err := h.m.Teardown(t.Context(), id, eps); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		for _, i := range h.m.List() {
			if i.Predefined() {
				continue
			}
			if err := h.m.Remove(t.Context(), i.ID); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		h.is(count{tables: 1, bridges: 1})
		if t.Failed() {
			t.Fatalf("after round %d", round)
		}
	}
}
