package network_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/none"
	apinetwork "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

func (b *box) ip6() string { return b.Endpoints[0].IP6 }

// six makes a network of both families, with options.
func (h *host) six(name, subnet6 string, options map[string]string) network.Info {
	h.t.Helper()
	yes := true
	return h.make(network.Create{Name: name, EnableIPv6: &yes, Options: options,
		IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: subnet6}}}})
}

// publishing is a request of a container on these networks with published ports.
func publishing(name string, networks []string, bindings ...string) network.Request {
	r := on(name, networks...)
	r.Bindings = request(name, bindings...).Bindings
	return r
}

func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

// A port is reached at every address of the host, of both families, by whoever can
// reach the host; where the kernel translates, with the client's own address.
func TestTrafficOfBothFamilies(t *testing.T) {
	bridgeNetfilter(t, func(t *testing.T) {
		h := newHost(t)
		out := h.outside()
		h.six("six", "fd00:6::/64", nil)
		h.make(network.Create{Name: "other"})
		a := h.startAs(publishing("a", []string{"six"}, "8080->80", "8080->80/udp", "[::1]:8081->80", hostIP6+":8082->80"))
		b, c := h.startAs(on("b", "six")), h.startAs(on("c", "other"))
		gw, gw6 := a.Endpoints[0].Gateway, a.Endpoints[0].Gateway6
		for _, proto := range []string{"tcp", "udp"} {
			proto6 := proto + "6"
			a.serve(proto, ":80")
			a.serve(proto6, ":80")
			out.serve(proto6, ":70")
			b.reaches(proto6, at(a.ip6(), 80), "a", b.ip6())
			a.reaches(proto6, at(outsideIP6, 70), "outside", hostIP6)
			out.reaches(proto, at(hostIP, 8080), "a", outsideIP)
			out.reaches(proto6, at(hostIP6, 8080), "a", outsideIP6)
			h.here().reaches(proto, "127.0.0.1:8080", "a", gw)
			h.here().reaches(proto6, "[::1]:8080", "a", gw6)
			h.here().reaches(proto6, at(hostIP6, 8080), "a", hostIP6)
			b.reaches(proto6, at(hostIP6, 8080), "a", gw6)
			b.reaches(proto6, at(gw6, 8080), "a", gw6)
			a.reaches(proto6, at(hostIP6, 8080), "a", gw6) // itself
			c.reaches(proto, at(hostIP, 8080), "a", gw)    // as with Docker, what leaves its network bears the host's address
			b.reaches(proto, at(hostIP, 8080), "a", gw)
		}
		h.here().reaches("tcp6", "[::1]:8081", "a", gw6)
		out.blocked("tcp6", at(hostIP6, 8081))
		out.reaches("tcp6", at(hostIP6, 8082), "a", outsideIP6)
		h.here().blocked("tcp6", "[::1]:8082")
	})
}

// A container that has IPv4 only is reached by IPv6 all the same.
func TestForwardedToIPv4(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	a := h.start("a", "8080->80", "8080->80/udp", "[::1]:8081->80")
	gw := a.Endpoints[0].Gateway
	for _, proto := range []string{"tcp", "udp"} {
		a.serve(proto, ":80")
		out.reaches(proto+"6", at(hostIP6, 8080), "a", gw)
		h.here().reaches(proto+"6", "[::1]:8080", "a", gw)
		h.here().reaches(proto+"6", at(hostIP6, 8080), "a", gw)
	}
	h.here().reaches("tcp6", "[::1]:8081", "a", gw)
	out.blocked("tcp6", at(hostIP6, 8081))
	got := fmt.Sprint(a.Endpoints[0].Ports[apinetwork.MustParsePort("80/udp")])
	if got != "[{0.0.0.0 8080} {:: 8080}]" {
		t.Errorf("ports %s", got)
	}
	// A new engine goes on with the sockets that the monitor held.
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints})
	h.here().reaches("tcp", "127.0.0.1:8080", "a", gw)
	h.takeUp(a)
	h.here().reaches("tcp6", "[::1]:8080", "a", gw)
	h.here().reaches("udp6", "[::1]:8080", "a", gw)
	if err := h.m.Unpublish(t.Context(), a.ID, a.Endpoints); err != nil {
		t.Fatal(err)
	}
	h.here().blocked("tcp6", "[::1]:8080")
}

// takeUp gives a new engine what the monitor of a container holds.
func (h *host) takeUp(b *box) {
	h.t.Helper()
	if _, err := h.m.TakeUp(h.t.Context(), network.Survivor{ContainerID: b.ID, Endpoints: b.Endpoints, Held: b.Held}); err != nil {
		h.t.Fatal(err)
	}
}

func TestWithoutForwarder(t *testing.T) {
	h := newHost(t, func(c *network.Config) { c.Forward = false })
	a := h.start("a", "8080->80")
	if got := fmt.Sprint(a.Endpoints[0].Ports); got != "map[80/tcp:[{0.0.0.0 8080}]]" {
		t.Errorf("ports %s", got)
	}
	_, err := h.m.Setup(t.Context(), request("b", "[::1]:8081->80"))
	if want := "Cannot map from IPv6 to an IPv4-only container because the userland proxy is disabled"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v", err)
	}
}

func TestPublishDefault(t *testing.T) {
	h := newHost(t, func(c *network.Config) {
		c.Publish = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	})
	out := h.outside()
	h.make(network.Create{Name: "bound", Options: map[string]string{"com.docker.network.bridge.host_binding_ipv4": hostIP}})
	a := h.start("a", "8080->80", "0.0.0.0:8081->80")
	b := h.startAs(publishing("b", []string{"bound"}, "8082->80"))
	a.serve("tcp", ":80")
	b.serve("tcp", ":80")
	gw := a.Endpoints[0].Gateway
	h.here().reaches("tcp", "127.0.0.1:8080", "a", gw)
	h.here().reaches("tcp6", "[::1]:8080", "a", gw)
	out.blocked("tcp", at(hostIP, 8080))
	out.blocked("tcp6", at(hostIP6, 8080))
	out.reaches("tcp", at(hostIP, 8081), "a", outsideIP)
	out.reaches("tcp", at(hostIP, 8082), "b", outsideIP)
	h.here().blocked("tcp", "127.0.0.1:8082")
	if got := fmt.Sprint(b.Endpoints[0].Ports); got != "map[80/tcp:[{"+hostIP+" 8082}]]" {
		t.Errorf("ports %s", got)
	}
}

// Links of the host that a network trusts reach its published ports at the containers'
// own addresses, and nothing else; others reach none.
func TestTrustedLinks(t *testing.T) {
	const trusted = "com.docker.network.bridge.trusted_host_interfaces"
	h := newHost(t)
	out := h.outside()
	out.must(func() error {
		for dst, via := range map[string]string{"172.16.0.0/12": hostIP, "fd00::/8": hostIP6} {
			if err := route(dst, via); err != nil {
				return err
			}
		}
		return nil
	})
	h.six("near", "fd00:1::/64", map[string]string{trusted: "nosuch0:out0"})
	h.six("far", "fd00:2::/64", map[string]string{trusted: "nosuch0"})
	if _, err := h.m.Create(t.Context(), network.Create{Name: "bad", Options: map[string]string{trusted: "a b"}}); err == nil {
		t.Error("a name of no link is taken")
	}
	boxes := map[string]*box{}
	for i, name := range []string{"near", "far"} {
		b := h.startAs(publishing(name, []string{name}, fmt.Sprintf("127.0.0.1:%d->80", 8080+i), fmt.Sprintf("[::1]:%d->80", 8080+i), fmt.Sprintf("127.0.0.1:%d->80", 9080+i)))
		for _, p := range []string{"tcp", "tcp6"} {
			b.serve(p, ":80")
			b.serve(p, ":81")
		}
		boxes[name] = b
	}
	near, far := boxes["near"], boxes["far"]
	check := func() {
		t.Helper()
		out.reaches("tcp", at(near.ip(), 80), "near", outsideIP)
		out.blocked("tcp", at(near.ip(), 81))
		out.blocked("tcp", at(far.ip(), 80))
		out.blocked("tcp6", at(far.ip6(), 80))
	}
	check()
	h.again(map[string][]network.Endpoint{near.ID: near.Endpoints, far.ID: far.Endpoints})
	check()
	ip := near.ip()
	h.stop(near)
	h.stop(far)
	next := h.startAs(on("next", "near"))
	if next.ip() == ip {
		t.Log("the address is used again")
	}
	next.serve("tcp", ":80")
	out.blocked("tcp", at(next.ip(), 80))
	h.is(count{links: 1, handles: 1, tables: 1, bridges: 3})
}

// What each gateway mode lets in from a machine that routes to the containers.
func TestGatewayModes(t *testing.T) {
	const mode4, mode6 = "com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"
	h := newHost(t)
	out := h.outside()
	out.must(func() error {
		for dst, via := range map[string]string{"172.16.0.0/12": hostIP, "fd00::/8": hostIP6} {
			if err := route(dst, via); err != nil {
				return err
			}
		}
		return nil
	})
	h.six("nat", "fd00:1::/64", nil)
	h.six("routed", "fd00:2::/64", map[string]string{mode4: "routed", mode6: "routed"})
	h.six("open", "fd00:3::/64", map[string]string{mode4: "nat-unprotected", mode6: "nat-unprotected"})
	h.six("half", "fd00:4::/64", map[string]string{mode6: "routed"})
	boxes := map[string]*box{}
	for i, name := range []string{"nat", "routed", "open", "half"} {
		b := h.startAs(publishing(name, []string{name}, fmt.Sprintf("%d->80", 8080+i)))
		for _, p := range []string{"tcp", "tcp6"} {
			b.serve(p, ":80")
			b.serve(p, ":81")
		}
		boxes[name] = b
	}
	nat, routed, open, half := boxes["nat"], boxes["routed"], boxes["open"], boxes["half"]
	for _, b := range []*box{nat, routed, half} {
		out.blocked("tcp", at(b.ip(), 81))
		out.blocked("tcp6", at(b.ip6(), 81))
	}
	out.blocked("tcp", at(nat.ip(), 80))
	out.blocked("tcp6", at(nat.ip6(), 80))
	out.reaches("tcp", at(hostIP, 8080), "nat", outsideIP)
	out.reaches("tcp", at(routed.ip(), 80), "routed", outsideIP)
	out.reaches("tcp6", at(routed.ip6(), 80), "routed", outsideIP6)
	out.blocked("tcp", at(hostIP, 8081))
	if got := fmt.Sprint(routed.Endpoints[0].Ports); got != "map[80/tcp:[{0.0.0.0 } {:: }]]" {
		t.Errorf("routed: ports %s", got)
	}
	for _, port := range []int{80, 81} {
		out.reaches("tcp", at(open.ip(), port), "open", outsideIP)
		out.reaches("tcp6", at(open.ip6(), port), "open", outsideIP6)
		nat.blocked("tcp", at(open.ip(), port))
	}
	out.reaches("tcp", at(hostIP, 8083), "half", outsideIP)
	out.reaches("tcp6", at(half.ip6(), 80), "half", outsideIP6)
	out.blocked("tcp", at(half.ip(), 80))
	out.serve("tcp", ":70")
	out.serve("tcp6", ":70")
	routed.reaches("tcp", at(outsideIP, 70), "outside", routed.ip())
	open.reaches("tcp", at(outsideIP, 70), "outside", hostIP)
	half.reaches("tcp6", at(outsideIP6, 70), "outside", half.ip6())
	nat.reaches("tcp", at(routed.ip(), 80), "routed", routed.Endpoints[0].Gateway) // published is open to all
	nat.blocked("tcp", at(routed.ip(), 81))
}

func TestInternalNetwork(t *testing.T) {
	bridgeNetfilter(t, func(t *testing.T) {
		h := newHost(t)
		out := h.outside()
		yes := true
		h.make(network.Create{Name: "in", Internal: true, EnableIPv6: &yes, IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "fd00:9::/64"}}}})
		a, b := h.startAs(publishing("a", []string{"in"}, "8080->80")), h.startAs(on("b", "in"))
		c := h.start("c", "8081->80")
		for _, p := range []string{"tcp", "tcp6"} {
			a.serve(p, ":80")
			out.serve(p, ":70")
		}
		c.serve("tcp", ":80")
		b.reaches("tcp", at(a.ip(), 80), "a", b.ip())
		b.reaches("tcp6", at(a.ip6(), 80), "a", b.ip6())
		h.here().blocked("tcp", "127.0.0.1:8080")
		h.here().reaches("tcp", at(a.ip(), 80), "a", h.address("in", false))
		a.must(func() error { return route("0.0.0.0/0", h.address("in", false)) }) // as root in it could
		a.must(func() error { return route("2000::/3", h.address("in", true)) })
		a.blocked("tcp", at(outsideIP, 70))
		a.blocked("tcp6", at(outsideIP6, 70))
		a.blocked("tcp", at(c.ip(), 80))
		a.blocked("tcp", at(hostIP, 8081))
		c.blocked("tcp", at(a.ip(), 80))
	})
}

// address is the host's on a network.
func (h *host) address(name string, v6 bool) string {
	h.t.Helper()
	info, err := h.m.Inspect(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return info.Subnet(v6).Gateway.String()
}

// A container cannot take another's address, nor the host's, even on one bridge.
func TestOnlyOwnAddresses(t *testing.T) {
	h := newHost(t)
	h.six("six", "fd00:6::/64", nil)
	a, b, victim := h.startAs(on("a", "six")), h.startAs(on("b", "six")), h.startAs(on("victim", "six"))
	for _, p := range []string{"udp", "udp6"} {
		a.serve(p, ":80")
	}
	b.must(func() error {
		return configure("eth0", victim.ip()+"/32", victim.ip6()+"/128", "172.18.99.99/32", h.address("six", false)+"/32")
	})
	heard := func(from, to string, answer bool) bool {
		t.Helper()
		wait := 150 * time.Millisecond
		if answer {
			wait = patience
		}
		var got []byte
		b.must(func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 80})
			if err != nil {
				return err
			}
			defer c.Close()
			for range 3 {
				if _, err := c.Write([]byte("?")); err != nil {
					return err
				}
				_ = c.SetReadDeadline(time.Now().Add(wait))
				buf := make([]byte, 100)
				if n, err := c.Read(buf); err == nil {
					got = buf[:n]
					break
				}
			}
			return nil
		})
		return len(got) > 0
	}
	// Its own first: to ask for a's link in another's name brings no answer either.
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{b.ip(), a.ip(), true}, {"172.18.99.99", a.ip(), true}, {victim.ip(), a.ip(), false}, {h.address("six", false), a.ip(), false}, {b.ip(), a.ip(), true},
		{b.ip6(), a.ip6(), true}, {victim.ip6(), a.ip6(), false}, {b.ip6(), a.ip6(), true},
	} {
		if heard(c.from, c.to, c.want) != c.want {
			t.Errorf("from %s: answered %v", c.from, !c.want)
		}
	}
	// Nor by saying so to others: who asks for the victim still finds it.
	victim.serve("tcp", ":81")
	if busybox, err := exec.LookPath("busybox"); err == nil {
		b.must(func() error {
			_ = exec.Command(busybox, "arping", "-U", "-c", "2", "-I", "eth0", victim.ip()).Run()
			return nil
		})
	}
	a.reaches("tcp", at(victim.ip(), 81), "victim", a.ip())
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints, b.ID: b.Endpoints, victim.ID: victim.Endpoints})
	if heard(victim.ip(), a.ip(), false) {
		t.Error("after a restart of the engine the address is free for all")
	}
}

// shared is a request of a container that shares a port.
func shared(name, group string, bindings ...string) network.Request {
	r := request(name, bindings...)
	r.Balance = group
	return r
}

// askers counts who answers n times.
func (n *node) askers(proto, addr string, times int) map[string]int {
	n.t.Helper()
	out := map[string]int{}
	for range times {
		got, err := n.ask(proto, addr, patience)
		if err != nil {
			got = "nobody"
		}
		out[strings.Fields(got)[0]]++
	}
	return out
}

func TestBalancing(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	boxes := map[string]*box{}
	for _, name := range []string{"a", "b", "c"} {
		boxes[name] = h.startAs(shared(name, "web", "8080->80", "8080->80/udp"))
		boxes[name].serve("tcp", ":80")
		boxes[name].serve("udp", ":80")
	}
	wants := func(want string) {
		t.Helper()
		for _, where := range []struct {
			from        *node
			proto, addr string
		}{{out, "tcp", at(hostIP, 8080)}, {out, "udp", at(hostIP, 8080)}, {h.here(), "tcp", "127.0.0.1:8080"}, {h.here(), "tcp6", "[::1]:8080"}, {boxes["a"].node, "tcp", at(hostIP, 8080)}} {
			if got := fmt.Sprint(where.from.askers(where.proto, where.addr, 6)); got != want {
				t.Errorf("%s at %s %s: %s answered, want %s", where.from.name, where.proto, where.addr, got, want)
			}
		}
	}
	wants("map[a:2 b:2 c:2]")
	_, err := h.m.Setup(t.Context(), request("d", "8080->80"))
	if err == nil || !strings.Contains(err.Error(), "Bind for 0.0.0.0:8080 failed: port is already allocated") {
		t.Errorf("a container of no group: %v", err)
	}
	h.m.SetHealth(t.Context(), boxes["b"].ID, "unhealthy")
	wants("map[a:3 c:3]")
	h.m.SetHealth(t.Context(), boxes["b"].ID, "healthy")
	h.m.SetHealth(t.Context(), boxes["b"].ID, "healthy")
	wants("map[a:2 b:2 c:2]")
	resting := slices.Clone(boxes["c"].Endpoints)
	resting[0].Resting = true
	h.again(map[string][]network.Endpoint{boxes["a"].ID: boxes["a"].Endpoints, boxes["b"].ID: boxes["b"].Endpoints, boxes["c"].ID: resting})
	for _, b := range boxes {
		h.takeUp(b)
	}
	wants("map[a:3 b:3]")
	h.m.SetHealth(t.Context(), boxes["c"].ID, "healthy")
	h.stop(boxes["a"])
	for _, f := range boxes["a"].Held {
		f.Close()
	}
	boxes["a"] = boxes["b"]
	wants("map[b:3 c:3]")
	d := shared("d", "web", "8080->80")
	d.Probed = true
	boxes["d"] = h.startAs(d) // with a socket of those that live through the restart
	boxes["d"].serve("tcp", ":80")
	if got := fmt.Sprint(out.askers("tcp", at(hostIP, 8080), 6)); got != "map[b:3 c:3]" {
		t.Errorf("%s answered before the health check of d", got)
	}
	h.m.SetHealth(t.Context(), boxes["d"].ID, "healthy")
	if got := fmt.Sprint(out.askers("tcp", at(hostIP, 8080), 6)); got != "map[b:2 c:2 d:2]" {
		t.Errorf("%s answered", got)
	}
}

// Beside a port that a group shares, each container has one of its own of a range: it is served
// whether the container is healthy or not, by a later engine, too, and nobody else gets it.
func TestBalancingBesideRange(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	boxes := map[string]*box{}
	start := func(name string) {
		t.Helper()
		boxes[name] = h.startAs(shared(name, "web", "9000->90", "8080-8082->80", "8080-8082->80/udp"))
		for _, port := range []string{":80", ":90"} {
			boxes[name].serve("tcp", port)
		}
		boxes[name].serve("udp", ":80")
	}
	wants := func(want map[int]string) {
		t.Helper()
		for port, want := range want {
			for _, where := range []struct {
				from        *node
				proto, addr string
			}{{out, "tcp", at(hostIP, port)}, {out, "udp", at(hostIP, port)}, {h.here(), "tcp", at("127.0.0.1", port)}, {h.here(), "tcp6", fmt.Sprintf("[::1]:%d", port)}} {
				if where.proto == "udp" && port == 9000 {
					continue
				}
				if got := fmt.Sprint(where.from.askers(where.proto, where.addr, 4)); got != want {
					t.Errorf("%s at %s %s: %s answered, want %s", where.from.name, where.proto, where.addr, got, want)
				}
			}
		}
	}
	start("a")
	start("b")
	wants(map[int]string{8080: "map[a:4]", 8081: "map[b:4]", 9000: "map[a:2 b:2]"})
	h.m.SetHealth(t.Context(), boxes["b"].ID, "unhealthy")
	wants(map[int]string{8081: "map[b:4]", 9000: "map[a:4]"})
	resting := slices.Clone(boxes["b"].Endpoints)
	resting[0].Resting = true
	h.again(map[string][]network.Endpoint{boxes["a"].ID: boxes["a"].Endpoints, boxes["b"].ID: resting})
	for _, b := range boxes {
		h.takeUp(b)
	}
	wants(map[int]string{8080: "map[a:4]", 8081: "map[b:4]", 9000: "map[a:4]"})
	h.m.SetHealth(t.Context(), boxes["b"].ID, "healthy")
	start("c")
	wants(map[int]string{8081: "map[b:4]", 8082: "map[c:4]"})
	h.stop(boxes["a"])
	for _, f := range boxes["a"].Held {
		f.Close()
	}
	start("d")
	wants(map[int]string{8080: "map[d:4]", 8081: "map[b:4]"})
}

// A container that became healthy after its start can be taken out, and comes back, also
// when it was given another name or its ports lead to it by another network since: its
// record still says what it was at the start.
func TestRotationOutlivesChanges(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	h.make(network.Create{Name: "aa"}) // by which containers lead out once they are on it
	a := h.startAs(shared("a", "web", "8080->80"))
	probed := shared("b", "web", "8080->80", "8090-8091->80")
	probed.Probed = true
	b := h.startAs(probed)
	a.serve("tcp", ":80")
	b.serve("tcp", ":80")
	wants := func(when, want string) {
		t.Helper()
		if got := fmt.Sprint(out.askers("tcp", at(hostIP, 8080), 6)); got != want {
			t.Errorf("%s: %s answered, want %s", when, got, want)
		}
		if got := fmt.Sprint(out.askers("tcp", at(hostIP, 8090), 1), h.here().askers("tcp6", "[::1]:8090", 1)); got != "map[b:1] map[b:1]" {
			t.Errorf("%s: %s answered at the port that is not shared", when, got)
		}
	}
	turns := func(when string) {
		t.Helper()
		wants(when, "map[a:3 b:3]")
		h.m.Rotate(t.Context(), b.ID, false)
		wants(when+", taken out", "map[a:6]")
		h.m.Rotate(t.Context(), b.ID, true)
		wants(when+", put back", "map[a:3 b:3]")
	}
	h.m.SetHealth(t.Context(), b.ID, "healthy")
	turns("healthy")
	b.Endpoints = h.m.Rename(b.ID, "b", "bb", b.Endpoints)
	turns("renamed")
	c, err := h.m.Connect(t.Context(), on("b", "aa"), b.Endpoints)
	if err != nil {
		t.Fatal(err)
	}
	b.Endpoints = c.Endpoints
	turns("on another network, too")
	first := b.Endpoints[0].Network
	if c, err = h.m.Disconnect(t.Context(), b.ID, first, b.Endpoints); err != nil {
		t.Fatal(err)
	}
	b.Endpoints = c.Endpoints
	turns("not on " + first)
}

// A connection stays where it is while others come and go; datagrams of a client
// that goes on follow the rotation.
func TestBalancingLeavesConnectionsAlone(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	a := h.startAs(shared("a", "web", "8080->80", "8080->80/udp"))
	a.serve("udp", ":80")
	var l net.Listener
	a.must(func() (err error) { l, err = net.Listen("tcp4", ":80"); return err })
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			buf := make([]byte, 1)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		}
	}()
	var c net.Conn
	out.must(func() (err error) { c, err = net.DialTimeout("tcp4", at(hostIP, 8080), patience); return err })
	defer c.Close()
	var u *net.UDPConn
	out.must(func() (err error) {
		u, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.ParseIP(hostIP), Port: 8080})
		return err
	})
	defer u.Close()
	echo := func(when string) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	datagram := func() string {
		_, _ = u.Write([]byte("?"))
		_ = u.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 100)
		n, _ := u.Read(buf)
		return strings.TrimSpace(string(buf[:n]))
	}
	echo("alone")
	if got, want := datagram(), "a "+outsideIP; got != want {
		t.Errorf("datagram to %q, want %q", got, want)
	}
	b := h.startAs(shared("b", "web", "8080->80", "8080->80/udp"))
	b.serve("udp", ":80")
	echo("with another")
	h.m.SetHealth(t.Context(), a.ID, "unhealthy")
	echo("unhealthy")
	if got, want := datagram(), "b "+outsideIP; got != want {
		t.Errorf("datagram to %q, want %q", got, want)
	}
	h.stop(b)
	echo("the other gone")
}

// SCTP is refused in words where the kernel has none, and published where it has.
func TestSCTP(t *testing.T) {
	h := newHost(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err == nil {
		unix.Close(fd)
		a := h.start("a", "8080->80/sctp")
		if got := fmt.Sprint(a.Endpoints[0].Ports); got != "map[80/sctp:[{0.0.0.0 8080}]]" {
			t.Errorf("ports %s", got)
		}
		return
	}
	if _, err := h.m.Setup(t.Context(), request("a", "8080->80/sctp")); err == nil || !strings.Contains(err.Error(), "sctp is not supported by the kernel of this host") {
		t.Errorf("error %v", err)
	}
	h.is(count{tables: 1, bridges: 1})
}

// slowly is a bridge driver that is held up before it takes ports back.
type slowly struct {
	*bridge.Driver
	begun, free chan struct{}
}

func (s slowly) Unpublish(ctx context.Context, eps []network.Endpoint) error {
	s.begun <- struct{}{}
	<-s.free
	return s.Driver.Unpublish(ctx, eps)
}

// A port that comes free is nobody else's before the kernel has let go of it.
func TestPortIsFreeOnceItIsGone(t *testing.T) {
	h := newHost(t)
	if err := h.m.Close(); err != nil {
		t.Fatal(err)
	}
	d := slowly{bridge.New(h.cfg), make(chan struct{}, 9), make(chan struct{})}
	h.m = network.NewManager(h.cfg, d, none.New(), none.Host())
	if err := errors.Join(h.m.Open(t.Context()), h.m.Restore(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	a := h.start("a", "8080->80")
	for _, f := range a.Held {
		f.Close()
	}
	done := make(chan error, 1)
	go func() { done <- h.m.Unpublish(t.Context(), a.ID, a.Endpoints) }()
	<-d.begun
	if _, err := h.m.Setup(t.Context(), request("b", "8080->80")); err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("while it is still published: %v", err)
	}
	close(d.free)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h.start("b", "8080->80")
}
