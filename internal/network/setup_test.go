package network_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
)

func TestEndpoint(t *testing.T) {
	h := newHost(t)
	r := request("web", "8080->80", "127.0.0.1:9000->80", "->53/udp")
	r.Exposed = apinetwork.PortSet{apinetwork.MustParsePort("443"): {}}
	a := h.startAs(r)
	ep := a.Endpoints[0]
	if ep.Network != "bridge" || ep.IP != "172.17.0.2" || ep.PrefixLen != 16 || ep.Gateway != "172.17.0.1" || ep.MAC != "02:42:ac:11:00:02" ||
		ep.Interface != "eth0" || !strings.HasPrefix(ep.HostLink, h.cfg.LinkPrefix()) || len(ep.HostLink) != 15 || !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(ep.EndpointID) {
		t.Errorf("endpoint %+v", ep)
	}
	got := fmt.Sprint(ep.Ports)
	for _, want := range []string{"80/tcp:[{0.0.0.0 8080} {:: 8080} {127.0.0.1 9000}]", "443/tcp:[]", "53/udp:[{0.0.0.0 32768} {:: 32768}]"} {
		if !strings.Contains(got, want) {
			t.Errorf("ports %s, want %s", got, want)
		}
	}
	if len(a.Held) != 5 { // 8080 and 32768 for IPv6 too
		t.Errorf("%d sockets held, want 5", len(a.Held))
	}
	a.must(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		at := l.Attrs()
		if at.HardwareAddr.String() != ep.MAC || at.MTU != 1500 || at.Flags&net.FlagUp == 0 {
			t.Errorf("eth0: %+v", at)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		if len(addrs) != 1 || addrs[0].IPNet.String() != "172.17.0.2/16" || addrs[0].Broadcast.String() != "172.17.255.255" {
			t.Errorf("addresses %v", addrs)
		}
		return nil
	})
	info, err := h.m.Inspect("bridge")
	if err != nil || info.Containers[a.ID].IP != ep.IP || info.Subnet(false).Prefix.String() != "172.17.0.0/16" || info.Driver != "bridge" || info.Options["com.docker.network.bridge.name"] != "escale0" {
		t.Errorf("Inspect: %+v, %v", info, err)
	}
	if byID, err := h.m.Inspect(info.ID[:12]); err != nil || byID.Name != "bridge" {
		t.Errorf("Inspect by id: %+v, %v", byID, err)
	}
	if _, err := h.m.Inspect("nothing"); !errdefs.IsNotFound(err) || err.Error() != "network nothing not found" {
		t.Errorf("Inspect of nothing: %v", err)
	}
	if found, err := h.m.Find(info.ID[:12]); err != nil || found.ID != info.ID || found.Containers != nil {
		t.Errorf("Find: %+v, %v", found, err)
	}
	if _, err := h.m.Find("nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("Find of nothing: %v", err)
	}
	if l := h.m.List(); len(l) != 3 || l[0].Name != "bridge" || l[1].Driver != "host" || l[2].Name != "none" || l[2].Driver != "null" {
		t.Errorf("List: %+v", l)
	}
	for name, there := range map[string]bool{"default": true, "none": true, "nothing": false} {
		if err := h.m.Validate(network.Request{Networks: map[string]*apinetwork.EndpointSettings{name: nil}}); (err == nil) != there {
			t.Errorf("network %s: %v", name, err)
		}
	}
	later := func(name string, es *apinetwork.EndpointSettings, bindings ...string) error {
		req := request("b", bindings...)
		req.Networks, req.Later = map[string]*apinetwork.EndpointSettings{name: es}, true
		return h.m.Validate(req)
	}
	if err := later("nothing", &apinetwork.EndpointSettings{IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.1.2.3")}}); err != nil {
		t.Errorf("a network that may be made later: %v", err)
	}
	wrong := &apinetwork.EndpointSettings{IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("fd00::1")}}
	if err := later("nothing", wrong); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "invalid config for network nothing: invalid endpoint settings") {
		t.Errorf("settings that no network can have: %v", err)
	}
	if gw := h.m.HostGateway(); gw != "172.17.0.1" {
		t.Errorf("the host's address is %s", gw)
	}
	if h.m.Path(a.ID, a.Endpoints) != a.Path {
		t.Error("Path is not that of the sandbox")
	}
}

// A container has IPv6 on those links only that have an address of it, and so has what it
// makes itself; the host's ends have none at all.
func TestNoIPv6(t *testing.T) {
	h := newHost(t)
	if _, err := inside.Read("net/ipv6/conf/all/disable_ipv6"); err != nil {
		t.Skip("the kernel has no IPv6")
	}
	h.six("six", "fd00:77::/64", nil)
	b := h.start("web")
	h.connect(b, "six", nil)
	off := func(link string) string {
		v, err := inside.Read("net/ipv6/conf/" + link + "/disable_ipv6")
		if err != nil {
			t.Error(err)
		}
		return v
	}
	b.must(func() error {
		for link, want := range map[string]string{"lo": "0", "default": "1", "eth0": "1", "eth1": "0"} {
			if got := off(link); got != want {
				t.Errorf("disable_ipv6 of %s is %s, want %s", link, got, want)
			}
		}
		return nil
	})
	for _, ep := range b.Endpoints {
		if off(ep.HostLink) != "1" {
			t.Errorf("%s of network %s has IPv6", ep.HostLink, ep.Network)
		}
	}
}

func TestPublishAll(t *testing.T) {
	h := newHost(t)
	r := request("a")
	r.PublishAll = true
	r.Exposed = apinetwork.PortSet{apinetwork.MustParsePort("80"): {}, apinetwork.MustParsePort("53/udp"): {}}
	a := h.startAs(r)
	a.serve("tcp", ":80")
	b := a.Endpoints[0].Ports[apinetwork.MustParsePort("80")]
	if len(b) != 2 {
		t.Fatalf("ports %v", a.Endpoints[0].Ports)
	}
	h.here().reaches("tcp", "127.0.0.1:"+b[0].HostPort, "a", "172.17.0.1")
	h.is(count{links: 1, handles: 1, elements: 2, tables: 1, bridges: 1})
}

func TestRequestedMAC(t *testing.T) {
	h := newHost(t)
	r := request("a")
	r.Networks = map[string]*settings{"bridge": {MacAddress: apinetwork.HardwareAddr{2, 0, 0, 1, 2, 3}}}
	a := h.startAs(r)
	if a.Endpoints[0].MAC != "02:00:00:01:02:03" {
		t.Errorf("MAC %s", a.Endpoints[0].MAC)
	}
	a.serve("tcp", ":80")
	h.here().reaches("tcp", a.ip()+":80", "a", "172.17.0.1")
}

// Every refusal has Docker's words and leaves nothing behind.
func TestRefusals(t *testing.T) {
	h := newHost(t, func(c *network.Config) { c.BIP = netip.MustParsePrefix("10.88.0.1/29") })
	first := h.start("a", "8080->80")
	l, err := net.Listen("tcp4", ":8090")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := h.count()
	with := func(r network.Request, networks map[string]*settings) network.Request {
		r.Networks = networks
		return r
	}
	external := `driver failed programming external connectivity on endpoint b \([0-9a-f]{64}\): `
	for _, c := range []struct {
		name string
		req  network.Request
		want string
		kind func(error) bool
	}{
		{"port of a container", request("b", "8080->80"), external + "Bind for 0.0.0.0:8080 failed: port is already allocated", nil},
		{"port of the host", request("b", "8090->80"), external + `failed to bind host port for 0.0.0.0:8090:10.88.0.[0-9]:80/tcp: address already in use`, nil},
		{"second of two ports", request("b", "8091->80", "127.0.0.1:8080->81"), external + "Bind for 127.0.0.1:8080 failed: port is already allocated", nil},
		{"address of another host", request("b", "9.9.9.9:8092->80"), external + `failed to bind host port for 9.9.9.9:8092:10.88.0.[0-9]:80/tcp: cannot assign requested address`, nil},
		{"no port", request("b", "http->80"), `invalid port specification: "http".*`, errdefs.IsInvalidArgument},
		{"unknown network", with(request("b"), map[string]*settings{"blue": nil}), "network blue not found", errdefs.IsNotFound},
		{"none and another", with(request("b"), map[string]*settings{"none": nil, "bridge": nil}),
			"container cannot be connected to multiple networks with one of the networks in private \\(none\\) mode", errdefs.IsInvalidArgument},
		{"address", with(request("b"), map[string]*settings{"bridge": {IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.88.0.5")}}}),
			"invalid config for network bridge: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only", errdefs.IsInvalidArgument},
		{"alias", with(request("b"), map[string]*settings{"default": {Aliases: []string{"x"}}}),
			"invalid config for network bridge: invalid endpoint settings:\nnetwork-scoped alias is supported only for containers in user defined networks", errdefs.IsInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := h.m.Setup(t.Context(), c.req)
			if err == nil || !regexp.MustCompile("^"+c.want+"$").MatchString(err.Error()) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if c.kind != nil && !c.kind(err) {
				t.Errorf("%v has another kind", err)
			}
			h.is(before)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.m.Setup(ctx, request("b", "8091->80")); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		h.is(before)
	})
	t.Run("addresses exhausted", func(t *testing.T) {
		for i := range 4 {
			h.start(strings.Repeat("x", i+1))
		}
		full := h.count()
		want := `no available IPv4 addresses on this network's address pools: bridge \([0-9a-f]{64}\)`
		if _, err := h.m.Setup(t.Context(), request("b")); err == nil || !regexp.MustCompile("^"+want+"$").MatchString(err.Error()) {
			t.Errorf("got %v", err)
		}
		h.is(full)
		if err := h.m.Teardown(t.Context(), first.ID, first.Endpoints); err != nil {
			t.Fatal(err)
		}
		h.start("b")
	})
}

func TestTeardownIsIdempotentAndLeavesTheNextStartAlone(t *testing.T) {
	h := newHost(t)
	a := h.start("a", "8080->80")
	for _, f := range a.Held {
		f.Close()
	}
	if err := h.m.Unpublish(t.Context(), a.ID, a.Endpoints); err != nil {
		t.Fatal(err)
	}
	h.is(count{links: 1, handles: 1, tables: 1, bridges: 1})
	// The container starts again before its last run was taken down.
	again := h.start("a", "8080->80")
	again.serve("tcp", ":80")
	for range 2 {
		if err := h.m.Teardown(t.Context(), a.ID, a.Endpoints); err != nil {
			t.Fatal(err)
		}
		if err := h.m.Teardown(t.Context(), a.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	h.is(count{links: 1, handles: 1, elements: 1, tables: 1, bridges: 1})
	h.here().reaches("tcp", "127.0.0.1:8080", "a", "172.17.0.1")
	if info, _ := h.m.Inspect("bridge"); info.Containers[a.ID].EndpointID != again.Endpoints[0].EndpointID {
		t.Errorf("Inspect: %+v", info)
	}
}

func TestFirstPacketIsNotLost(t *testing.T) {
	if os.Getenv("ESCALE_TEST_SLOW") != "" {
		t.Skip("needs a machine at full speed: what was lost is told by the time it took")
	}
	h := newHost(t)
	l, err := net.ListenPacket("udp4", ":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 30 { // each is the first on the bridge, which was without carrier
		s, err := h.m.Setup(t.Context(), numbered(i, false))
		if err != nil {
			t.Fatal(err)
		}
		ns, err := netns.Open(s.Path)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{t: t, name: "box", ns: ns}
		n.must(func() error {
			c, err := net.Dial("udp4", s.Endpoints[0].Gateway+":7000")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
		// Neighbours that did not answer are asked again after a second.
		_ = l.SetReadDeadline(time.Now().Add(900 * time.Millisecond))
		if _, _, err := l.ReadFrom(make([]byte, 10)); err != nil {
			t.Errorf("start %d: %v", i, err)
		}
		ns.Close()
		if err := h.m.Teardown(t.Context(), s.ID, s.Endpoints); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	h := newHost(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for i := range 40 {
		wg.Go(func() {
			s, err := h.m.Setup(t.Context(), numbered(i, true))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			if seen[s.Endpoints[0].IP] {
				t.Errorf("address %s twice", s.Endpoints[0].IP)
			}
			seen[s.Endpoints[0].IP] = true
			mu.Unlock()
			for _, f := range s.Held {
				f.Close()
			}
			if i%2 == 0 {
				return
			}
			if err := h.m.Teardown(t.Context(), s.ID, s.Endpoints); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h.is(count{links: 20, handles: 20, elements: 20, tables: 1, bridges: 1})
}

func TestConfig(t *testing.T) {
	good := network.DefaultConfig()
	good.NetnsDir = "/run/x"
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*network.Config){
		"instance":      func(c *network.Config) { c.Instance = "a b" },
		"no instance":   func(c *network.Config) { c.Instance = "" },
		"bridge":        func(c *network.Config) { c.BridgeName = "a-name-that-is-too-long" },
		"bip subnet":    func(c *network.Config) { c.BIP = netip.MustParsePrefix("10.0.0.0/24") },
		"bip broadcast": func(c *network.Config) { c.BIP = netip.MustParsePrefix("10.0.0.255/24") },
		"mtu":           func(c *network.Config) { c.MTU = 12 },
		"pool":          func(c *network.Config) { c.Pools[0].Size = 3 },
		"folder":        func(c *network.Config) { c.NetnsDir = "run" },
	} {
		c := network.DefaultConfig()
		c.NetnsDir = "/run/x"
		change(&c)
		if err := c.Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for instance, want := range map[string]string{"escale": "escale0", "t1": "esc-t1", "eleven-char": "esc-eleven-char"} {
		c := network.Config{Instance: instance}
		if got := c.Bridge(); got != want {
			t.Errorf("%s: bridge %s, want %s", instance, got, want)
		}
	}
	long := network.Config{Instance: strings.Repeat("x", 40)}
	if b := long.Bridge(); len(b) != 15 {
		t.Errorf("bridge %s", b)
	}
	if err := network.NewManager(network.Config{Instance: "/"}).Open(t.Context()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Open with a bad instance: %v", err)
	}
}
