package network_test

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/lb"
	"escale.dev/escale/internal/network/none"
	"escale.dev/escale/internal/network/overlay"
)

// services are those of a network with one address that some serve.
func services(vip string, backends ...string) network.Services {
	s := lb.Service{VIP: netip.MustParseAddr(vip)}
	for _, b := range backends {
		s.Backends = append(s.Backends, netip.MustParseAddr(b))
	}
	return network.Services{Names: map[string][]netip.Addr{"web": {s.VIP}}, Balanced: []lb.Service{s}}
}

func (h *host) tell(id string, s network.Services) {
	h.t.Helper()
	if err := h.m.SetServices(h.t.Context(), id, s); err != nil {
		h.t.Errorf("services of network %s: %v", id, err)
	}
}

// net is a network with addresses that are known.
func (h *host) net(name, subnet string) network.Info {
	h.t.Helper()
	return h.make(network.Create{Name: name, IPAM: &network.CreateIPAM{Config: []network.CreateSubnet{{Subnet: subnet}}}})
}

// What could not be told to a container is told again; and what an engine before this one has
// told is not taken for what is.
func TestServices(t *testing.T) {
	h := newHost(t)
	front := h.net("front", "10.66.0.0/24")
	server, client := h.startAs(on("server", "front")), h.startAs(on("client", "front"))
	server.serve("tcp", ":80")
	list := services("10.66.0.200", server.ip())

	if err := os.Rename(client.Path, client.Path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := h.m.SetServices(t.Context(), front.ID, list); err == nil || !strings.Contains(err.Error(), client.Sandbox.ID) {
		t.Errorf("a container that cannot be told: %v", err)
	}
	if err := os.Rename(client.Path+".away", client.Path); err != nil {
		t.Fatal(err)
	}
	h.tell(front.ID, list)
	client.reaches("tcp", "10.66.0.200:80", "server", client.ip())
	if addrs, known := h.m.Names(client.Sandbox.ID).Addrs("web"); !known || len(addrs) != 1 || addrs[0].String() != "10.66.0.200" {
		t.Errorf("the name of the service is %v", addrs)
	}

	live := map[string][]network.Endpoint{}
	for _, b := range []*box{server, client} {
		live[b.Sandbox.ID] = b.Endpoints
	}
	h.again(live)
	h.tell(front.ID, network.Services{}) // the service has gone while no engine was there
	client.blocked("tcp", "10.66.0.200:80")
}

// A container starts though its namespace cannot be told of services, and is told with the
// next word.
func TestServicesThatCannotBe(t *testing.T) {
	h := newHost(t)
	front := h.net("front", "10.66.0.0/24")
	server := h.startAs(on("server", "front"))
	server.serve("tcp", ":80")
	wrong := network.Services{Balanced: []lb.Service{{Backends: []netip.Addr{netip.MustParseAddr("fd00::1")}}}} // of no address
	if err := h.m.SetServices(t.Context(), front.ID, wrong); err == nil {
		t.Error("a service without an address was set")
	}
	client := h.startAs(on("client", "front"))
	late := h.start("late")
	h.connect(late, "front", &settings{})
	h.tell(front.ID, services("10.66.0.200", server.ip()))
	client.reaches("tcp", "10.66.0.200:80", "server", client.ip())
	if got, err := late.ask("tcp", "10.66.0.200:80", patience); err != nil || !strings.HasPrefix(got, "server ") {
		t.Errorf("one that was connected: %q, %v", got, err)
	}
}

// Services and names go with the network, and for a container when it leaves.
func TestServicesOfWhoLeaves(t *testing.T) {
	h := newHost(t)
	front, back := h.net("front", "10.66.0.0/24"), h.net("back", "10.67.0.0/24")
	server, client := h.startAs(on("server", "back")), h.startAs(on("client", "back", "front"))
	server.serve("tcp", ":80")
	// The address is of the other network, so that only the balancing decides who answers.
	h.tell(front.ID, services("10.67.0.200", server.ip()))
	if _, err := client.ask("tcp", "10.67.0.200:80", patience); err != nil {
		t.Errorf("on both networks: %v", err)
	}
	h.disconnect(client, "front")
	client.blocked("tcp", "10.67.0.200:80")
	if _, known := h.m.Names(client.Sandbox.ID).Addrs("web"); known {
		t.Error("the name is known to who has left the network")
	}
	if err := h.m.Remove(t.Context(), "front"); err != nil {
		t.Fatal(err)
	}
	again := h.net("front", "10.66.0.0/24")
	h.connect(client, "front", &settings{})
	if _, known := h.m.Names(client.Sandbox.ID).Addrs("web"); known {
		t.Error("the name is known on another network of the same name")
	}
	h.tell(again.ID, network.Services{})
	client.blocked("tcp", "10.67.0.200:80")
	if back.ID == again.ID {
		t.Error("two networks of one id")
	}
}

// cluster gives out the addresses of one network; so long as it is asked for subnets, what
// else happens has time.
type cluster struct {
	network.Addresses
	asked func()
}

func (c cluster) Find(context.Context, string) (network.Spanned, error) { return spanned(), nil }

func (c cluster) Pools(_ context.Context, ask network.PoolRequest) ([]network.Subnet, error) {
	if c.asked != nil {
		c.asked()
	}
	return ask.Subnets, nil
}

func (c cluster) Drop(context.Context, string) {}

func spanned() network.Spanned {
	return network.Spanned{
		ID: strings.Repeat("5e", 32), Name: "wide", Driver: "overlay", IPv4: true, Options: map[string]string{overlay.OptionVNI: "4096"},
		Subnets: []network.Subnet{{Prefix: netip.MustParsePrefix("10.68.0.0/24"), Gateway: netip.MustParseAddr("10.68.0.1")}},
	}
}

// Two containers that are the first on a network of the cluster's find it both.
func TestSpanAtOnce(t *testing.T) {
	first, second := make(chan struct{}), make(chan error, 1)
	told := false
	c := cluster{asked: func() {
		if told {
			return
		}
		told = true
		close(first)
		select {
		case err := <-second: // it did not wait
			second <- err
		case <-time.After(200 * time.Millisecond):
		}
	}}
	h := newHost(t, func(cfg *network.Config) { cfg.Spanning = c })
	bridges := bridge.New(h.cfg)
	m := network.NewManager(h.cfg, bridges, none.New(), none.Host(), overlay.New(h.cfg, bridges))
	if err := h.m.Close(); err != nil {
		t.Fatal(err)
	}
	h.m = m
	if err := m.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	one := make(chan error, 1)
	go func() { one <- m.Span(t.Context(), spanned()) }()
	<-first
	go func() { second <- m.Span(t.Context(), spanned()) }()
	for i, done := range []chan error{one, second} {
		if err := <-done; err != nil {
			t.Errorf("container %d: %v", i+1, err)
		}
	}
	if err := m.Remove(t.Context(), "wide"); err != nil {
		t.Error(err)
	}
}
