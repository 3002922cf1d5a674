package network_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	apinetwork "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

// meshed is a host that publishes for its cluster by a network "in".
func meshed(t *testing.T) (*host, network.Info) {
	h := newHost(t, func(c *network.Config) { c.IngressFile = filepath.Join(filepath.Dir(c.NetnsDir), "ingress.json") })
	return h, h.make(network.Create{Name: "in", IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: "10.70.0.0/24"}}}})
}

func backend(b *box) network.Backend { return network.Backend{Addr: netip.MustParseAddr(b.ip())} }

// ports are TCP and UDP port 8080 that lead to port 80 of some.
func ports(list ...network.Backend) []network.IngressPort {
	return []network.IngressPort{
		{Proto: apinetwork.TCP, Port: 8080, To: 80, Group: "web", Backends: list}, {Proto: apinetwork.UDP, Port: 8080, To: 80, Group: "web", Backends: list},
	}
}

func (h *host) ingress(in network.Info, list ...network.IngressPort) {
	h.t.Helper()
	if err := h.m.SetIngress(h.t.Context(), network.Ingress{Network: in.ID, Ports: list}); err != nil {
		h.t.Fatal(err)
	}
}

// who are those who answer some questions in a row.
func (n *node) who(proto, addr string) string {
	n.t.Helper()
	seen := map[string]bool{}
	for range 6 {
		got, err := n.ask(proto, addr, patience)
		if err != nil {
			n.t.Errorf("%s to %s %s: %v", n.name, proto, addr, err)
		}
		name, _, _ := strings.Cut(got, " ")
		seen[name] = true
	}
	var out []string
	for _, name := range []string{"a", "b", "c"} {
		if seen[name] {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// A host answers for its cluster at all its addresses; tasks here see who calls, those on other
// hosts see the host. A new engine goes on with it until it is told otherwise.
func TestIngress(t *testing.T) {
	bridgeNetfilter(t, func(t *testing.T) {
		h, in := meshed(t)
		out := h.outside()
		gw := in.Subnet(false).Gateway.String()
		a, b, other := h.startAs(on("a", "in")), h.startAs(on("b", "in")), h.start("other")
		for _, x := range []*box{a, b} {
			x.serve("tcp", ":80")
			x.serve("udp", ":80")
		}
		far := backend(b)
		far.Far = true // it is here, but packets for it go as to another host
		h.ingress(in, ports(backend(a))...)
		check := func(name, seen, own string) {
			t.Helper()
			for _, proto := range []string{"tcp", "udp"} {
				out.reaches(proto, hostIP+":8080", name, seen)
				h.here().reaches(proto, "127.0.0.1:8080", name, gw)
				h.here().reaches(proto, hostIP+":8080", name, own)
				h.here().reaches(proto+"6", "[::1]:8080", name, gw)
				out.reaches(proto+"6", at(hostIP6, 8080), name, gw)
				other.reaches(proto, hostIP+":8080", name, gw)
				if name == "a" {
					b.reaches(proto, hostIP+":8080", name, gw)
				}
			}
		}
		check("a", outsideIP, hostIP)
		h.ingress(in, ports(far)...)
		check("b", gw, gw)
		h.ingress(in, ports(backend(a), far)...)
		for _, addr := range []string{hostIP + ":8080", at(hostIP6, 8080)} {
			proto := "tcp"
			if strings.HasPrefix(addr, "[") {
				proto = "tcp6"
			}
			if got := out.who(proto, addr); got != "a b" {
				t.Errorf("%s: %s answer", addr, got)
			}
		}
		if _, err := net.Listen("tcp", hostIP+":8080"); err == nil {
			t.Error("a port that is published can be had by another program")
		}
		live := map[string][]network.Endpoint{a.ID: a.Endpoints, b.ID: b.Endpoints, other.ID: other.Endpoints}
		h.again(live)
		if got := out.who("tcp", hostIP+":8080"); got != "a b" {
			t.Errorf("with the next engine %s answer", got)
		}
		if got := h.here().who("tcp6", "[::1]:8080"); got != "a b" {
			t.Errorf("with the next engine %s answer at [::1]", got)
		}
		rests := backend(a)
		rests.Rests = true
		h.ingress(in, ports(rests, far)...)
		check("b", gw, gw)
		h.ingress(in)
		out.blocked("tcp", hostIP+":8080")
		h.here().blocked("tcp6", "[::1]:8080")
		l, err := net.Listen("tcp", "[::]:8080")
		if err != nil {
			t.Fatalf("a port that is not published any more: %v", err)
		}
		l.Close()
	})
}

// A port that somebody has is left to him, and answered once it is free. Who is about to end
// gets nothing new, at once. With the network goes all of it.
func TestIngressBeside(t *testing.T) {
	h, in := meshed(t)
	out := h.outside()
	a, b := h.startAs(on("a", "in")), h.startAs(on("b", "in"))
	a.serve("tcp", ":80")
	b.serve("tcp", ":80")
	h.here().serve("tcp", ":8080")
	list := ports(backend(a), backend(b))[:1]
	elsewhere := list[0]
	elsewhere.Port = 8081
	h.ingress(in, append(list, elsewhere)...)
	out.reaches("tcp", hostIP+":8080", "host", outsideIP)
	if got := out.who("tcp", hostIP+":8081"); got != "a b" {
		t.Errorf("another port: %s answer", got)
	}
	if _, err := h.m.Setup(t.Context(), request("c", "8081->80")); err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("a container that wants a port of the cluster: %v", err)
	}
	h.m.Rotate(t.Context(), b.ID, false)
	if got := out.who("tcp", hostIP+":8081"); got != "a" {
		t.Errorf("one of them is about to end: %s answer", got)
	}
	h.m.Rotate(t.Context(), b.ID, true)
	if got := out.who("tcp", hostIP+":8081"); got != "a b" {
		t.Errorf("it goes on: %s answer", got)
	}
	c := h.startAs(func() network.Request { r := request("c", "8082->80"); r.Balance = "web"; return r }())
	c.serve("tcp", ":80")
	shared := list[0]
	shared.Port = 8082
	h.ingress(in, shared)
	if got := out.who("tcp", hostIP+":8082"); got != "a b c" {
		t.Errorf("beside a container that publishes the port itself: %s answer", got)
	}
	out.blocked("tcp", hostIP+":8081")
	h.stop(a)
	h.stop(b)
	if err := h.m.Remove(t.Context(), "in"); err != nil {
		t.Fatal(err)
	}
	out.reaches("tcp", hostIP+":8082", "c", outsideIP)
	if _, err := os.Stat(h.cfg.IngressFile); err == nil {
		t.Error("what is published is kept")
	}
	if err := h.m.SetIngress(t.Context(), network.Ingress{Network: in.ID, Ports: list}); err == nil {
		t.Error("published by a network that is no more")
	}
}

// A connection stays with its task for as long as that is there; then its client is told.
func TestIngressDrains(t *testing.T) {
	h, in := meshed(t)
	out := h.outside()
	a, b := h.startAs(on("a", "in")), h.startAs(on("b", "in"))
	var l net.Listener
	a.must(func() (err error) { l, err = net.Listen("tcp4", ":81"); return err })
	defer l.Close()
	is := func(list ...network.Backend) {
		t.Helper()
		h.ingress(in, network.IngressPort{Proto: apinetwork.TCP, Port: 8083, To: 81, Group: "web", Backends: list})
	}
	for what, now := range map[string][]network.Backend{"another serves": {backend(b)}, "nobody serves": nil} {
		is(backend(a))
		var c net.Conn
		out.must(func() (err error) { c, err = net.DialTimeout("tcp4", hostIP+":8083", patience); return err })
		defer c.Close()
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		rests := backend(a)
		rests.Rests = true
		is(append(now, rests)...)
		buf := make([]byte, 1)
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
		_ = served.SetDeadline(time.Now().Add(patience))
		if _, err := served.Read(buf); err != nil {
			t.Errorf("%s, and a connection that is open: %v", what, err)
		}
		is(now...)
		_, _ = c.Write(buf)
		if _, err := c.Read(buf); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s, and the task of a connection has ended: %v, want a reset", what, err)
		}
	}
}

// A container that has been stopped and is started again takes what is new as before, though
// nobody says again what is published.
func TestIngressAfterStop(t *testing.T) {
	h, in := meshed(t)
	out := h.outside()
	request := on("a", "in")
	a, b := h.startAs(request), h.startAs(on("b", "in"))
	a.serve("tcp", ":80")
	b.serve("tcp", ":80")
	h.ingress(in, ports(backend(a), backend(b))[:1]...)
	h.m.Rotate(t.Context(), a.ID, false)
	if got := out.who("tcp", hostIP+":8080"); got != "b" {
		t.Errorf("one is about to end: %s answer", got)
	}
	was := a.ip()
	h.stop(a)
	request.Networks["in"].IPAMConfig = &apinetwork.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(was)}
	a = h.startAs(request)
	a.serve("tcp", ":80")
	if a.ip() != was {
		t.Fatalf("it has %s, and had %s", a.ip(), was)
	}
	if got := out.who("tcp", hostIP+":8080"); got != "a b" {
		t.Errorf("it runs again: %s answer", got)
	}
}
