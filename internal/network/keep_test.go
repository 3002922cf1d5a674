package network

import (
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/network"
)

// keeper is a Manager without drivers whose networks are the tests' own.
func keeper() *Manager { return &Manager{base: &base{networks: newTable()}} }

// lan makes a network of two subnets with few addresses, 10.1.0.1 to .6 and fd00::1 to ::3.
func (m *Manager) lan(t *testing.T, id string) *attached {
	t.Helper()
	spec := Spec{Name: "lan", ID: id, Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/29")}, {Prefix: netip.MustParsePrefix("fd00::/126")}}}
	if err := (maker{base: m.base}).install(makers{driver: absent("none")}, spec, Info{}, spec.Subnets); err != nil {
		t.Fatal(err)
	}
	a, err := m.networks.find("lan")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// given are the addresses that who does not ask gets, until there are none.
func (a *attached) given(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, p := range a.pools {
		var all []netip.Addr
		for {
			ip, err := p.Next()
			if err != nil {
				break
			}
			all = append(all, ip)
			out[ip.String()] = true
		}
		for _, ip := range all {
			p.Release(ip)
		}
	}
	return out
}

func wants(ref, v4, v6 string) map[string]*network.EndpointSettings {
	c := &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(v4)}
	if v6 != "" {
		c.IPv6Address = netip.MustParseAddr(v6)
	}
	return map[string]*network.EndpointSettings{ref: {IPAMConfig: c}, "other": {}, "none": nil}
}

// What a container asks for is kept by a network that is made after it, and by one that is
// made again; until the container is gone, whenever the network came.
func TestKeptBeforeTheNetwork(t *testing.T) {
	const id1, id2 = "1111", "2222"
	m := keeper()
	free := func(a *attached, want ...bool) {
		t.Helper()
		got := a.given(t)
		for i, ip := range []string{"10.1.0.3", "fd00::3"} {
			if got[ip] != want[i] || !got["10.1.0.4"] {
				t.Errorf("%s is given out: %t, in %v", ip, got[ip], got)
			}
		}
	}
	m.Keep("a", wants("lan", "10.1.0.3", "fd00::3"))
	m.Keep("far", wants("elsewhere", "10.1.0.4", ""))
	a := m.lan(t, id1)
	free(a, false, false)
	m.Keep("b", wants("lan", "10.1.0.3", ""))
	m.Keep("b", wants("lan", "10.1.0.3", ""))
	m.Unkeep("a")
	m.Unkeep("a")
	free(a, false, true) // b's

	m.networks.drop(a)
	m.Keep("c", wants("lan", "10.1.0.3", "fd00::3"))
	a = m.lan(t, id2)
	free(a, false, false)
	m.Keep("c", wants("lan", "10.1.0.2", "")) // it wants another now
	free(a, false, true)
	m.Unkeep("b")
	free(a, true, true)
	if a.given(t)["10.1.0.2"] {
		t.Error("10.1.0.2 is given out")
	}
	m.Keep("c", wants(id2, "10.1.0.3", "")) // by its id
	free(a, false, true)
	if !a.given(t)["10.1.0.2"] {
		t.Error("10.1.0.2 is still kept")
	}
	m.Keep("c", nil)
	m.Unkeep("far")
	free(a, true, true)
	if len(m.networks.kept) != 0 {
		t.Errorf("left: %v", m.networks.kept)
	}
}

// A network that comes back with another subnet keeps what is asked for there, one that is
// taken up as it is keeps what it kept.
func TestKeptAsANetworkIsTakenUp(t *testing.T) {
	m := keeper()
	broken := &attached{info: Info{Name: "lan", ID: "1"}, containers: map[string]Endpoint{}}
	m.Keep("a", wants("lan", "10.1.0.3", ""))
	m.networks.put(broken)
	for range 2 {
		if a := m.lan(t, "1"); a != broken || a.given(t)["10.1.0.3"] {
			t.Errorf("%+v", a)
		}
	}
	m.Unkeep("a")
	if !broken.given(t)["10.1.0.3"] {
		t.Error("10.1.0.3 is still kept")
	}
}
