package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// seat puts a container on networks; an address of each is made of n.
func place4(x *index, id string, n int, out bool, eps ...Endpoint) {
	for i := range eps {
		eps[i].EndpointID = id + eps[i].Network
		eps[i].IP, eps[i].IP6 = fmt.Sprintf("10.%d.0.%d", i, n), fmt.Sprintf("fd00:%d::%x", i, n)
	}
	x.set(id, eps, out)
}

func TestNames(t *testing.T) {
	m := NewManager(DefaultConfig())
	x := m.names
	place4(x, "web", 2, true, Endpoint{Network: "front", DNSNames: []string{"web", "www", "abcdef"}}, Endpoint{Network: "back", DNSNames: []string{"web"}}, Endpoint{Network: "bridge", DNSNames: []string{"odd"}})
	place4(x, "web2", 3, true, Endpoint{Network: "front", DNSNames: []string{"web2", "www"}})
	place4(x, "asks", 4, true, Endpoint{Network: "front", DNSNames: []string{"asks"}, Links: []string{"web2:mate", "web"}})
	place4(x, "alone", 5, false, Endpoint{Network: "inner", DNSNames: []string{"alone"}})
	ask := func(who, name string) string {
		addrs, known := m.Names(who).Addrs(name)
		if known != (len(addrs) > 0) {
			t.Errorf("%s of %s: %v, known %v", name, who, addrs, known)
		}
		var out []string
		for _, a := range addrs {
			if a.Is4() {
				out = append(out, a.String())
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, c := range []struct{ who, name, want string }{
		{"asks", "web", "10.0.0.2"}, {"asks", "WEB.", "10.0.0.2"}, {"asks", "web.front", "10.0.0.2"}, {"asks", "web.Front.", "10.0.0.2"},
		{"asks", "www", "10.0.0.2 10.0.0.3"}, {"asks", "abcdef", "10.0.0.2"}, {"asks", "mate", "10.0.0.3"}, {"asks", "asks", "10.0.0.4"},
		{"web2", "mate", ""}, {"asks", "web.back", ""}, {"asks", "odd", ""}, {"asks", "nobody", ""}, {"asks", "", ""}, {"asks", ".front", ""},
		{"alone", "web", ""}, {"alone", "alone", "10.0.0.5"}, {"nobody", "web", ""},
	} {
		if got := ask(c.who, c.name); got != c.want {
			t.Errorf("%s asks for %q: %q, want %q", c.who, c.name, got, c.want)
		}
	}
	m.SetHealth(t.Context(), "web", "unhealthy")
	if got := ask("asks", "www"); got != "10.0.0.3" {
		t.Errorf("one of two is ill: %q", got)
	}
	if got := ask("asks", "web"); got != "10.0.0.2" {
		t.Errorf("the only one is ill: %q", got)
	}
	for status, want := range map[string]string{"starting": "10.0.0.3", "healthy": "10.0.0.2 10.0.0.3"} {
		m.SetHealth(t.Context(), "web", status)
		if got := ask("asks", "www"); got != want {
			t.Errorf("one of two is %s: %q", status, got)
		}
	}
	m.SetHealth(t.Context(), "web", "healthy")
	m.Rotate(t.Context(), "web2", false)
	if got := ask("asks", "www"); got != "10.0.0.2" {
		t.Errorf("one of two is being ended: %q", got)
	}
	x.set("web2", x.seats["web2"].eps, true) // as when it gets one more network
	if got := ask("asks", "www") + ask("asks", "mate"); got != "10.0.0.210.0.0.3" {
		t.Errorf("one of two is being ended: %q", got)
	}
	m.Rotate(t.Context(), "web2", true)
	if got := ask("asks", "www"); got != "10.0.0.2 10.0.0.3" {
		t.Errorf("both are there again: %q", got)
	}
	for addr, want := range map[string]string{"10.0.0.2": "web.front", "fd00::3": "web2.front", "::ffff:10.0.0.2": "web.front", "10.1.0.2": "", "9.9.9.9": ""} {
		if got, known := m.Names("asks").Name(netip.MustParseAddr(addr)); got != want || known != (want != "") {
			t.Errorf("name of %s: %q, %v", addr, got, known)
		}
	}
	if m.Names("alone").External() || !m.Names("asks").External() || m.Names("nobody").External() {
		t.Error("External")
	}
	// It leaves; an old run's end does not take the new one's names.
	old := []Endpoint{{Network: "front", EndpointID: "other"}}
	x.drop("web", old)
	if ask("asks", "web") == "" {
		t.Error("names were dropped for another run's endpoints")
	}
	for _, id := range []string{"web", "web2", "asks", "alone"} {
		x.drop(id, x.seats[id].eps)
	}
	if len(x.nets) != 0 || len(x.seats) != 0 {
		t.Errorf("left: %v, %v", x.nets, x.seats)
	}
}

func TestRename(t *testing.T) {
	m := NewManager(DefaultConfig())
	eps := []Endpoint{{Network: "n", EndpointID: "e", IP: "10.0.0.2", DNSNames: []string{"old", "alias", "0123"}}}
	m.names.set("id", eps, true)
	eps = m.Rename("id", "old", "new", eps)
	if got := strings.Join(eps[0].DNSNames, " "); got != "new alias 0123" {
		t.Errorf("names %q", got)
	}
	if _, known := m.Names("id").Addrs("old"); known {
		t.Error("the old name is known")
	}
	if addrs, known := m.Names("id").Addrs("new"); !known || len(addrs) != 1 {
		t.Errorf("the new name: %v, %v", addrs, known)
	}
}

// The choice of who has the default routes follows Docker's.
func TestChooseWays(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	four := func(name string, prio int) way { return way{name: name, priority: prio, v4: v4} }
	for _, c := range []struct {
		ways   []way
		w4, w6 int
	}{
		{nil, -1, -1},
		{[]way{four("b", 0), four("a", 0)}, 1, -1},
		{[]way{four("b", 1), four("a", 0)}, 0, -1},
		{[]way{four("b", 0), four("a", -1)}, 0, -1},
		{[]way{{name: "a", internal: true}, four("b", 0)}, 1, -1},
		{[]way{four("a", 0), {name: "b", v4: v4, v6: v6}}, 1, 1},
		{[]way{four("a", 0), {name: "b", v6: v6}}, 0, 1},
		{[]way{{name: "b", v6: v6}, {name: "a", v6: v6}}, -1, 1},
		{[]way{{name: "a", internal: true}}, -1, -1},
	} {
		if g4, g6 := choose(c.ways); g4 != c.w4 || g6 != c.w6 {
			t.Errorf("%+v: %d, %d, want %d, %d", c.ways, g4, g6, c.w4, c.w6)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"Format":1,"ID":"` + strings.Repeat("a", 64) + `","Name":"n","Driver":"bridge","IPAM":{"Subnets":[{"Prefix":"10.0.0.0/24","Gateway":"10.0.0.1","Range":"10.0.0.128/25","Aux":{"r":"10.0.0.9"}}]}}`))
	f.Add([]byte(`{"Format":2}`))
	f.Add([]byte(`{"Format":1,"IPAM":{"Subnets":[{"Prefix":"::/0"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if pools, err := newPools(r.IPAM.Subnets); err != nil || len(pools) != len(r.IPAM.Subnets) || !networkID.MatchString(r.ID) {
			t.Errorf("%+v: %v", r, err)
		}
	})
}

func FuzzSubnets(f *testing.F) {
	f.Add("10.0.0.0/24", "10.0.0.0/25", "10.0.0.1", "10.0.0.9")
	f.Add("fd00::/64", "", "", "fd00::9")
	f.Add("10.0.0.1/33", "x", "::", "")
	f.Fuzz(func(t *testing.T, subnet, within, gateway, aux string) {
		list, err := readSubnets([]CreateSubnet{{Subnet: subnet, IPRange: within, Gateway: gateway, Aux: map[string]string{"a": aux}}}, true)
		if err != nil {
			return
		}
		for _, s := range list {
			if !s.Prefix.IsValid() || s.Gateway.IsValid() && !s.Prefix.Contains(s.Gateway) || s.Range.IsValid() && !s.Prefix.Overlaps(s.Range) {
				t.Errorf("%+v", s)
			}
		}
	})
}
