package network_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/none"
	"github.com/containerd/errdefs"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
)

// make makes a network, which goes when the test ends.
func (h *host) make(c network.Create) network.Info {
	h.t.Helper()
	info, err := h.m.Create(h.t.Context(), c)
	if err != nil {
		h.t.Fatal(err)
	}
	return info
}

// on is a request of a container on these networks.
func on(name string, networks ...string) network.Request {
	r := request(name)
	r.Networks = map[string]*settings{}
	for _, n := range networks {
		r.Networks[n] = &settings{}
	}
	if len(networks) > 0 {
		r.Main = networks[0]
	}
	return r
}

func bridgeOf(info network.Info) string { return "br-" + info.ID[:12] }

// gone fails the test while a link is there.
func (h *host) gone(link string) {
	h.t.Helper()
	if _, err := netlink.LinkByName(link); err == nil {
		h.t.Errorf("link %s is there", link)
	}
}

func (h *host) recordsLeft() int {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.cfg.Dir, "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return len(files)
}

func TestUserNetwork(t *testing.T) {
	h := newHost(t)
	info := h.make(network.Create{Name: "front", Labels: map[string]string{"a": "b"}})
	if info.Subnet(false).Prefix != netip.MustParsePrefix("172.18.0.0/16") || info.Subnet(false).Gateway != netip.MustParseAddr("172.18.0.1") || info.Labels["a"] != "b" ||
		info.Driver != "bridge" || !info.EnableIPv4 || info.EnableIPv6 || info.Predefined() {
		t.Errorf("network %+v", info)
	}
	a, b := h.startAs(on("a", "front")), h.startAs(on("b", "front"))
	c := h.start("c")
	b.serve("tcp", ":80")
	a.reaches("tcp", b.ip()+":80", "b", a.ip())
	c.blocked("tcp", b.ip()+":80")
	a.blocked("tcp", c.ip()+":80")
	if names := strings.Join(a.Endpoints[0].DNSNames, " "); names != "a "+a.ID[:12] {
		t.Errorf("names %q", names)
	}
	if err := h.m.Remove(t.Context(), "front"); !errdefs.IsPermissionDenied(err) || !strings.HasPrefix(err.Error(), "error while removing network: network front has active endpoints (name:\"a\" id:\"") {
		t.Errorf("Remove with containers: %v", err)
	}
	h.stop(a)
	h.stop(b)
	for _, ref := range []string{info.ID[:8]} {
		if err := h.m.Remove(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	h.gone(bridgeOf(info))
	if n := h.recordsLeft(); n != 0 {
		t.Errorf("%d records are left", n)
	}
	if _, err := h.m.Setup(t.Context(), on("d", "front")); !errdefs.IsNotFound(err) || err.Error() != "network front not found" {
		t.Errorf("Setup on a removed network: %v", err)
	}
}

// Every refusal has Docker's words and kind, and leaves nothing behind.
func TestCreateRefuses(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "there", IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "10.55.0.0/24"}}}})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	lan, err := netlink.LinkByName("lan0")
	if err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(lan)
	addr, _ := netlink.ParseAddr("10.66.0.5/24")
	if err := netlink.AddrAdd(lan, addr); err != nil {
		t.Fatal(err)
	}
	subnet := func(s ...network.CreateSubnet) *network.CreateIPAM { return &network.CreateIPAM{Config: s} }
	before := h.recordsLeft()
	for _, c := range []struct {
		c     network.Create
		kind  func(error) bool
		words string
	}{
		{network.Create{Name: "bridge"}, errdefs.IsPermissionDenied, "operation is not permitted on predefined bridge network "},
		{network.Create{Name: " "}, errdefs.IsInvalidArgument, "invalid name: name is empty"},
		{network.Create{Name: "there"}, errdefs.IsConflict, "network with name there already exists"},
		{network.Create{Name: "x", Driver: "nosuch"}, errdefs.IsNotFound, `plugin "nosuch" not found`},
		{network.Create{Name: "x", Driver: "null"}, errdefs.IsPermissionDenied, `only one instance of "null" network is allowed`},
		{network.Create{Name: "x", Driver: "host"}, errdefs.IsPermissionDenied, `only one instance of "host" network is allowed`},
		{network.Create{Name: "x", Driver: "overlay"}, errdefs.IsPermissionDenied, "This node is not a swarm manager."},
		{network.Create{Name: "x", Scope: "swarm"}, errdefs.IsPermissionDenied, "cannot create a swarm scoped network when swarm is not active"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.1"})}, errdefs.IsInvalidArgument, "invalid network config:\ninvalid subnet 10.1: invalid CIDR block notation"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.1.2.3/16", Gateway: "10.2.0.1"})}, errdefs.IsInvalidArgument,
			"invalid network config:\n* invalid subnet 10.1.2.3/16: it should be 10.1.0.0/16\n* invalid gateway 10.2.0.1: parent subnet 10.1.2.3/16 doesn't contain this address"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.1.0.0/16", IPRange: "10.2.0.0/24"})}, errdefs.IsInvalidArgument, "parent subnet 10.1.0.0/16 doesn't contain ip-range"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.1.0.0/16", Aux: map[string]string{"r": "nine"}})}, errdefs.IsInvalidArgument, "invalid auxiliary address r: invalid address"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.55.0.0/25"})}, errdefs.IsPermissionDenied, "invalid pool request: Pool overlaps with other one on this address space"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.66.0.0/16"})}, errdefs.IsPermissionDenied, "Pool overlaps with other one on this address space"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.1.0.0/24"}, network.CreateSubnet{Subnet: "10.2.0.0/24"})}, errdefs.IsPermissionDenied, "bridge driver doesn't support multiple subnets"},
		{network.Create{Name: "x", IPAM: subnet(network.CreateSubnet{Subnet: "10.1.0.0/24", Gateway: "10.1.0.255"})}, errdefs.IsInternal, "failed to allocate gateway (10.1.0.255): Address already in use"},
		{network.Create{Name: "x", Options: map[string]string{"com.docker.network.bridge.enable_icc": "maybe"}}, errdefs.IsInvalidArgument, "failed to parse com.docker.network.bridge.enable_icc value: maybe"},
		{network.Create{Name: "x", Options: map[string]string{"com.docker.network.bridge.name": "there is no such name"}}, errdefs.IsInvalidArgument, "failed to parse com.docker.network.bridge.name value"},
		{network.Create{Name: "x", Options: map[string]string{"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}}, errdefs.IsInvalidArgument, "gateway mode 'isolated' can only be used for an internal network"},
		{network.Create{Name: "x", Options: map[string]string{"com.docker.network.enable_ipv6": "x"}}, errdefs.IsInvalidArgument, `driver-opt "com.docker.network.enable_ipv6" is not a valid bool`},
		{network.Create{Name: "x", ConfigOnly: true, Internal: true}, errdefs.IsPermissionDenied, "configuration network can only contain network specific fields."},
		{network.Create{Name: "x", ConfigFrom: "nosuch"}, errdefs.IsNotFound, `configuration network "nosuch" does not exist`},
	} {
		info, err := h.m.Create(t.Context(), c.c)
		if err == nil || !c.kind(err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%+v: %+v, %v", c.c, info, err)
		}
	}
	if after := h.recordsLeft(); after != before {
		t.Errorf("%d records, %d before", after, before)
	}
	h.is(count{tables: 1, bridges: 2})
}

func TestConfigNetworks(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "conf", ConfigOnly: true, IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "10.60.0.0/24"}}}, Labels: map[string]string{"l": "1"}})
	if _, err := h.m.Setup(t.Context(), on("a", "conf")); !errdefs.IsPermissionDenied(err) {
		t.Errorf("Setup: %v", err)
	}
	user := h.make(network.Create{Name: "user", ConfigFrom: "conf", Internal: true})
	if user.Subnet(false).Prefix.String() != "10.60.0.0/24" || user.Labels["l"] != "1" || user.ConfigFrom != "conf" || !user.Internal {
		t.Errorf("%+v", user)
	}
	if err := h.m.Remove(t.Context(), "conf"); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), `configuration network "conf" is in use`) {
		t.Errorf("Remove: %v", err)
	}
	for _, n := range []string{"user", "conf"} {
		if err := h.m.Remove(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
}

// Addresses come from the range, none that is another's, and those asked for are
// left to who asks.
func TestAddresses(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "n", EnableIPv6: yes(), IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{
		{Subnet: "10.61.0.0/24", IPRange: "10.61.0.64/29", Gateway: "10.61.0.254", Aux: map[string]string{"router": "10.61.0.64"}},
		{Subnet: "fd00:61::/64"},
	}}})
	kept := map[string]*settings{"n": {IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.61.0.65")}}}
	h.m.Keep("b", kept)
	a := h.startAs(on("a", "n"))
	if ep := a.Endpoints[0]; ep.IP != "10.61.0.66" || ep.PrefixLen != 24 || ep.Gateway != "10.61.0.254" || ep.IP6 != "fd00:61::2" || ep.Gateway6 != "fd00:61::1" {
		t.Errorf("%+v", ep)
	}
	r := on("b", "n")
	r.Networks = kept
	b := h.startAs(r)
	if b.Endpoints[0].IP != "10.61.0.65" {
		t.Errorf("%+v", b.Endpoints[0])
	}
	r.ContainerID = strings.Repeat("9", 64)
	if _, err := h.m.Setup(t.Context(), r); err == nil || err.Error() != "Address already in use" {
		t.Errorf("an address that is taken: %v", err)
	}
	for want, words := range map[string]string{"10.62.0.1": "no configured subnet or ip-range contain the IP address 10.62.0.1", "0.0.0.0": "invalid IPv4 address: 0.0.0.0"} {
		r.Networks = map[string]*settings{"n": {IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(want)}}}
		if _, err := h.m.Setup(t.Context(), r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), words) {
			t.Errorf("address %s: %v", want, err)
		}
	}
	h.make(network.Create{Name: "auto"})
	r.Networks = map[string]*settings{"auto": {IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("172.18.0.9")}}}
	if _, err := h.m.Setup(t.Context(), r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "supported only when connecting to networks with user configured subnets") {
		t.Errorf("an address of a chosen subnet: %v", err)
	}
	b.serve("tcp6", ":80")
	a.reaches("tcp6", "[fd00:61::3]:80", "b", "fd00:61::2")
}

// held is a bridge driver that is held up before the links go.
type held struct {
	*bridge.Driver
	begun, free chan struct{}
}

func (d held) Leave(ctx context.Context, ep network.Endpoint) error {
	d.begun <- struct{}{}
	<-d.free
	return d.Driver.Leave(ctx, ep)
}

// An address that a container had which has ended is given to who asks for it once the
// kernel has let go of it; while the container runs he is refused.
func TestAddressOfAnEndedContainer(t *testing.T) {
	h := newHost(t)
	if err := h.m.Close(); err != nil {
		t.Fatal(err)
	}
	d := held{bridge.New(h.cfg), make(chan struct{}, 9), make(chan struct{})}
	h.m = network.NewManager(h.cfg, d, none.New(), none.Host())
	if err := errors.Join(h.m.Open(t.Context()), h.m.Restore(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	h.make(network.Create{Name: "n", EnableIPv6: yes(), IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "10.61.0.0/24"}, {Subnet: "fd00:61::/64"}}}})
	v4, v6 := netip.MustParseAddr("10.61.0.9"), netip.MustParseAddr("fd00:61::9")
	at := func(name string, v4, v6 netip.Addr) network.Request {
		r := on(name)
		r.Networks["n"] = &settings{IPAMConfig: &apinetwork.EndpointIPAMConfig{IPv4Address: v4, IPv6Address: v6}}
		return r
	}
	a := h.startAs(at("a", v4, v6))
	if _, err := h.m.Setup(t.Context(), at("b", v4, netip.Addr{})); err == nil || err.Error() != "Address already in use" {
		t.Errorf("while a runs: %v", err)
	}
	if err := h.m.Unpublish(t.Context(), a.ID, a.Endpoints); err != nil { // it has ended
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.m.Setup(short, at("b", v4, netip.Addr{})); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cut off while it waits: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- h.m.Teardown(t.Context(), a.ID, a.Endpoints) }()
	<-d.begun
	type answer struct {
		of  string
		box *network.Sandbox
		err error
	}
	answers := make(chan answer, 2)
	for _, r := range []network.Request{at("b", v4, netip.Addr{}), at("c", netip.Addr{}, v6)} {
		go func() {
			box, err := h.m.Setup(t.Context(), r)
			answers <- answer{r.Name, box, err}
		}()
	}
	select {
	case got := <-answers:
		t.Errorf("before the kernel has let go of it: %+v", got)
	case <-time.After(100 * time.Millisecond):
	}
	close(d.free)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got := <-answers
		if got.err != nil {
			t.Fatalf("%s: %v", got.of, got.err)
		}
		defer h.m.Teardown(context.WithoutCancel(t.Context()), got.box.ID, got.box.Endpoints)
		if ep := got.box.Endpoints[0]; (ep.IP == v4.String()) != (got.of == "b") || (ep.IP6 == v6.String()) != (got.of == "c") {
			t.Errorf("%s: %s, %s", got.of, ep.IP, ep.IP6)
		}
	}
}

func yes() *bool { b := true; return &b }

// TestRecords: networks outlive the engine, and what is in their records outlives
// the machine.
func TestRecords(t *testing.T) {
	h := newHost(t)
	plain, named := h.make(network.Create{Name: "plain"}), h.make(network.Create{Name: "named", EnableIPv6: yes(), Options: map[string]string{"com.docker.network.bridge.name": "br-named"}})
	a := h.startAs(on("a", "plain", "named"))
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints})
	after, err := h.m.Inspect("named")
	if err != nil {
		t.Fatal(err)
	}
	if x, y := asJSON(t, named.IPAM), asJSON(t, after.IPAM); x != y || !after.Created.Equal(named.Created) {
		t.Errorf("%s became %s", x, y)
	}
	b := h.startAs(on("b", "plain"))
	if b.ip() == a.ip() {
		t.Errorf("address %s was given twice", b.ip())
	}
	h.stop(a)
	h.stop(b)
	// As after the power was cut: nothing is in the kernel.
	for _, l := range []string{bridgeOf(plain), "br-named"} {
		link, err := netlink.LinkByName(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
	}
	// And an engine was killed while it made or removed a third: a bridge without a record.
	h.make(network.Create{Name: "half"})
	half, _ := h.m.Inspect("half")
	if err := os.Remove(filepath.Join(h.cfg.Dir, half.ID+".json")); err != nil {
		t.Fatal(err)
	}
	h.again(nil)
	h.gone(bridgeOf(half))
	if _, err := h.m.Inspect("half"); !errdefs.IsNotFound(err) {
		t.Errorf("half a network: %v", err)
	}
	c := h.startAs(on("c", "plain", "named"))
	if len(c.Endpoints) != 2 || c.Endpoints[1].IP6 == "" {
		t.Errorf("%+v", c.Endpoints)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A record that cannot be read is left alone; one of a newer engine stops this one.
func TestDamagedRecords(t *testing.T) {
	h := newHost(t)
	good := h.make(network.Create{Name: "good"})
	bad := filepath.Join(h.cfg.Dir, strings.Repeat("b", 64)+".json")
	for _, text := range []string{"", "{", `{"Format":1}`, fmt.Sprintf(`{"Format":1,"ID":%q,"Name":"bridge","Driver":"bridge"}`, strings.Repeat("b", 64))} {
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.again(nil)
		if _, err := h.m.Inspect(good.ID); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(bad); err != nil || string(b) != text {
			t.Errorf("the record is %q, %v", b, err)
		}
	}
	if err := os.WriteFile(bad, []byte(`{"Format":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	m := managerOf(h.cfg)
	if err := m.Open(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Open with a record of a newer engine: %v", err)
	}
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
}

// stop takes a container's network down before the test ends.
func (h *host) stop(b *box) {
	h.t.Helper()
	if err := h.m.Teardown(context.WithoutCancel(h.t.Context()), b.ID, b.Endpoints); err != nil {
		h.t.Error(err)
	}
}
