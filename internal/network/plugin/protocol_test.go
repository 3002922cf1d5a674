package plugin

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/plugin"
	"github.com/containerd/errdefs"
)

// TestJoinAnswers: what a plugin says about a link is checked before the kernel hears it.
func TestJoinAnswers(t *testing.T) {
	for _, c := range []struct{ text, err string }{
		{`{}`, ""},
		{`{"InterfaceName":{"SrcName":"v0","DstPrefix":"eth"},"Gateway":"10.0.0.1","GatewayIPv6":"fd00::1","StaticRoutes":[{"Destination":"10.1.0.0/16","RouteType":1},{"Destination":"fd01::/64","NextHop":"fd00::2"}]}`, ""},
		{`{"InterfaceName":{"SrcName":"v0"}}`, ""},
		{`{"InterfaceName":{"SrcName":"a/b"}}`, `names a link "a/b"`},
		{`{"InterfaceName":{"SrcName":"v0","DstPrefix":"waytoolongprefix"}}`, "names links in containers"},
		{`{"Gateway":"fd00::1"}`, "names a gateway"},
		{`{"GatewayIPv6":"10.0.0.1"}`, "names a gateway"},
		{`{"Gateway":"0.0.0.0"}`, "names a gateway"},
		{`{"Gateway":"x"}`, "names a gateway"},
		{`{"StaticRoutes":[{"Destination":"x"}]}`, "a route to"},
		{`{"StaticRoutes":[{"Destination":"10.0.0.0/8","NextHop":"fd00::1"}]}`, "a route to 10.0.0.0/8"},
		{`{"StaticRoutes":[{"Destination":"10.0.0.0/8","RouteType":7}]}`, "of kind 7"},
	} {
		var a joinAnswer
		if err := json.Unmarshal([]byte(c.text), &a); err != nil {
			t.Fatal(err)
		}
		_, err := a.parse()
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.text, err, c.err)
		}
	}
}

// TestEndpointAnswers: a plugin fills what it was not given, and changes nothing.
func TestEndpointAnswers(t *testing.T) {
	full := network.Join{IP: netip.MustParsePrefix("10.0.0.5/24"), MAC: []byte{2, 2, 2, 2, 2, 2}}
	for _, c := range []struct {
		f    face
		j    network.Join
		want string
	}{
		{face{Address: "10.0.0.9/24", AddressIPv6: "fd00::9/64", MacAddress: "02:00:00:00:00:01"}, network.Join{}, ""},
		{face{}, full, ""},
		{face{Address: "10.0.0.9/24"}, full, "endpoint interface IP present (10.0.0.5/24). Cannot be modified with 10.0.0.9/24."},
		{face{MacAddress: "02:00:00:00:00:01"}, full, "endpoint interface MAC address present (02:02:02:02:02:02). Cannot be modified with 02:00:00:00:00:01."},
		{face{Address: "fd00::1/64"}, network.Join{}, "names an address"},
		{face{Address: "10.0.0.9"}, network.Join{}, "names an address"},
		{face{MacAddress: "02:00"}, network.Join{}, "names a MAC address"},
	} {
		err := c.f.merge(&c.j)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.f, err, c.want)
		}
		if c.want == "" && c.f.Address != "" && (c.j.IP.String() != c.f.Address || c.j.IP6.String() != c.f.AddressIPv6 || c.j.MAC.String() != c.f.MacAddress) {
			t.Errorf("merged %+v", c.j)
		}
	}
}

// TestIPAMErrors: IPAM drivers tell errors by another name.
func TestIPAMErrors(t *testing.T) {
	for text, want := range map[string]string{`{"Error":"full"}`: "full", `{"Err":""}`: "", `{}`: ""} {
		err := decode([]byte(text), nil)
		if (err != nil) != (want != "") || err != nil && (err.Error() != want || !isRemote(err)) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if isRemote(plugin.ErrUnreachable) {
		t.Error("unreachable is no answer")
	}
}

// TestNotes: a note of another engine is read, one of none left alone, one of a newer
// engine refused.
func TestNotes(t *testing.T) {
	id := strings.Repeat("a", 64)
	if n, err := parseNote(id, []byte(`{"Version":1,"ID":"`+id+`","Driver":"loom","Joined":true}`)); err != nil || !n.Joined || n.empty() {
		t.Errorf("%+v, %v", n, err)
	}
	for _, text := range []string{`{`, `{"Version":1,"ID":"b"}`, `{"Version":1,"ID":"` + id + `","Network":"../x"}`, `{"Version":1,"ID":"` + id + `","Pools":[{"ID":"x"}]}`} {
		if _, err := parseNote(id, []byte(text)); err == nil {
			t.Errorf("%s is read", text)
		}
	}
	if _, err := parseNote(id, []byte(`{"Version":2,"ID":"`+id+`"}`)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a newer engine: %v", err)
	}
}

func FuzzDriverAnswer(f *testing.F) {
	f.Add([]byte(`{"InterfaceName":{"SrcName":"v0","DstPrefix":"eth"},"Gateway":"10.0.0.1","StaticRoutes":[{"Destination":"10.1.0.0/16","RouteType":1}]}`))
	f.Add([]byte(`{"Interface":{"Address":"10.0.0.9/24","MacAddress":"02:00:00:00:00:01"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a joinAnswer
		if decode(b, &a) == nil {
			if got, err := a.parse(); err == nil && got.src != "" && (!network.ValidLink(got.src) || !network.ValidLink(got.prefix+"0")) {
				t.Errorf("%+v passes", got)
			}
		}
		var e struct{ Interface *face }
		if decode(b, &e) == nil && e.Interface != nil {
			var j network.Join
			if e.Interface.merge(&j) == nil && (j.IP.IsValid() && !j.IP.Addr().Is4() || j.IP6.IsValid() && !j.IP6.Addr().Is6()) {
				t.Errorf("%+v passes", j)
			}
		}
	})
}

func FuzzIPAMAnswer(f *testing.F) {
	f.Add([]byte(`{"PoolID":"a","Pool":"10.0.0.0/24","Data":{"com.docker.network.gateway":"10.0.0.1/24"}}`), "10.0.0.7/24")
	f.Add([]byte(`{"Error":"no"}`), "")
	f.Fuzz(func(t *testing.T, b []byte, address string) {
		var g granted
		if decode(b, &g) != nil {
			return
		}
		pool, gateway, err := g.parse(false)
		if err != nil {
			return
		}
		if !pool.Addr().Is4() || gateway.IsValid() && !pool.Contains(gateway) {
			t.Errorf("pool %s, gateway %s", pool, gateway)
		}
		if a, err := parseAddress(address, pool); err == nil && !pool.Contains(a.Addr()) {
			t.Errorf("address %s of pool %s", a, pool)
		}
	})
}

func FuzzNote(f *testing.F) {
	id := strings.Repeat("a", 64)
	f.Add([]byte(`{"Version":1,"ID":"` + id + `","Driver":"loom","IPAM":"x","Addresses":[{"PoolID":"p"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := parseNote(id, b); err == nil && n.ID != id {
			t.Errorf("%+v", n)
		}
	})
}
