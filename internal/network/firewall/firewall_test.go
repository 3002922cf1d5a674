package firewall

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"escale.dev/escale/internal/sys/nft"
)

var update = flag.Bool("update", false, "write the golden files")

// kernel is a second pair of eyes.
var kernel nft.Conn

func TestMain(m *testing.M) { netnstest.Main(m) }

var one = []Network{{Bridge: "escale0", V4: family("172.17.0.0/16", true), ICC: true}}

func in(m Mode, subnet, source string) Family {
	f := Family{Subnet: netip.MustParsePrefix(subnet), Mode: m, Masquerade: true}
	if source != "" {
		f.Source = netip.MustParseAddr(source)
	}
	return f
}

func together(ports []Port) groups {
	g := groups{}
	for _, p := range ports {
		g = g.with(p)
	}
	return g
}

func family(subnet string, masquerade bool) Family {
	return Family{Subnet: netip.MustParsePrefix(subnet), Masquerade: masquerade}
}

var goldens = []struct {
	name     string
	networks []Network
	shared   []Port
	mesh     Mesh
	sealed   []Sealed
}{
	{name: "none"},
	{name: "default", networks: one},
	{name: "strict", networks: []Network{{Bridge: "escale0", V4: family("192.168.16.0/20", false)}}},
	{name: "several", networks: append(one[:1:1], Network{Bridge: "br-2", V4: family("10.1.2.0/24", true), ICC: true})},
	{name: "both", networks: []Network{{Bridge: "escale0", V4: family("172.17.0.0/16", true), V6: family("fd00:17::/64", true), ICC: true}}},
	{name: "six", networks: []Network{{Bridge: "br-6", V6: family("fd00:17::/60", false)}}},
	{name: "internal", networks: []Network{{Bridge: "br-i", V4: family("10.1.2.0/24", true), V6: family("fd00:17::/64", true), ICC: true, Internal: true}}},
	{name: "modes", networks: []Network{
		{Bridge: "br-1", V4: in(NAT, "10.1.0.0/24", "192.0.2.1"), V6: in(Routed, "2001:db8:1::/64", ""), ICC: true},
		{Bridge: "br-2", V4: in(Routed, "10.2.0.0/24", ""), V6: in(NATUnprotected, "2001:db8:2::/64", "2001:db8::1")},
		{Bridge: "br-3", V4: in(NATUnprotected, "10.3.0.0/24", ""), V6: in(Isolated, "2001:db8:3::/64", "")},
	}},
	{name: "trusted", networks: []Network{
		{Bridge: "br-1", V4: in(NAT, "10.1.0.0/24", ""), V6: in(NAT, "2001:db8:1::/64", ""), ICC: true, Trusted: []string{"eth1", "vxlan.1"}},
		{Bridge: "br-2", V4: in(Routed, "10.2.0.0/24", ""), Trusted: []string{"eth1"}},
	}},
	{name: "groups", networks: one, shared: []Port{
		port(6, "0.0.0.0:80", "172.17.0.2:8080"), port(6, "0.0.0.0:80", "172.17.0.3:8080"), port(6, "0.0.0.0:80", "172.17.0.4:8080"),
		port(6, "[::]:80", "[fd00:17::2]:8080"), port(17, "192.0.2.1:53", "172.17.0.2:53"), port(17, "[2001:db8::1]:53", "[fd00:17::2]:53"),
	}},
	{name: "sealed", networks: one, sealed: []Sealed{{VNI: 4099, From: 53251, To: 4789}, {VNI: 0xabcdef, From: 60000, To: 4800}}},
	{name: "mesh", networks: append(one[:1:1], Network{Bridge: "br-in", V4: in(NAT, "10.0.0.0/24", ""), V6: in(NAT, "fd00:10::/64", ""), ICC: true}),
		shared: []Port{port(6, "0.0.0.0:80", "172.17.0.2:8080")},
		mesh: Mesh{
			Ports: []Port{
				port(6, "0.0.0.0:80", "10.0.0.7:8080"), port(6, "0.0.0.0:80", "10.0.0.9:8080"), port(6, "[::]:80", "[fd00:10::7]:8080"),
				port(17, "0.0.0.0:53", "10.0.0.8:53"), port(132, "0.0.0.0:53", "10.0.0.8:53"),
			},
			Far: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00:10::7"), netip.MustParseAddr("10.0.0.9")},
		}},
}

func TestRulesGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			file := filepath.Join("testdata", g.name+".nft")
			got := rules("escale", g.networks, together(g.shared), g.mesh, g.sealed).String()
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("rules differ from %s:\n%s", file, got)
			}
		})
	}
}

// What the golden files say must be what the kernel was told: nft(8) reads it
// back from the kernel in the same syntax.
func TestKernelHoldsTheGolden(t *testing.T) {
	netnstest.Root(t)
	list, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft(8), which reads the rules back from the kernel")
	}
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			f := newFirewall(t)
			if err := f.Open(g.networks); err != nil {
				t.Fatal(err)
			}
			for i := range g.shared {
				g.shared[i].Group = "g"
			}
			if err := errors.Join(f.Add(g.shared...), f.SetMesh(g.mesh), f.SetSealed(g.sealed)); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(list, "list", "table", "inet", "escale-escale").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			differ(t, string(out), rules("escale", g.networks, together(g.shared), g.mesh, g.sealed).String())
		})
	}
}

// differ tells the lines in which two texts differ.
func differ(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		a, b := "", ""
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Errorf("line %d: the kernel holds\n%s\nwant\n%s", i+1, a, b)
		}
	}
}

func newFirewall(t testing.TB) *Firewall {
	t.Helper()
	f := New(Config{Instance: "escale", Links: "veth1234", Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		if err := f.Delete(); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func port(proto uint8, host, to string) Port {
	return Port{Proto: proto, Host: netip.MustParseAddrPort(host), To: netip.MustParseAddrPort(to)}
}

// held reads the published ports back from the kernel.
func held(t testing.TB) map[Port]bool {
	t.Helper()
	left, err := kernel.Read(Rules("escale", nil))
	if err != nil {
		t.Fatal(err)
	}
	out := map[Port]bool{}
	for _, p := range []publication{published4, published6} {
		all := netip.IPv4Unspecified()
		if p.ports.Value[0] == nft.Addr6 {
			all = netip.IPv6Unspecified()
		}
		for _, e := range left[p.ports.Name] {
			k, _ := nft.Fields(e.Key, p.ports.Key...)
			v, _ := nft.Fields(e.Value, p.ports.Value...)
			out[Port{Proto: k[0].(uint8), Host: netip.AddrPortFrom(all, k[1].(uint16)), To: netip.AddrPortFrom(v[0].(netip.Addr), v[1].(uint16))}] = true
		}
		for _, e := range left[p.hostPorts.Name] {
			k, _ := nft.Fields(e.Key, p.hostPorts.Key...)
			v, _ := nft.Fields(e.Value, p.hostPorts.Value...)
			out[Port{Proto: k[1].(uint8), Host: netip.AddrPortFrom(k[0].(netip.Addr), k[2].(uint16)), To: netip.AddrPortFrom(v[0].(netip.Addr), v[1].(uint16))}] = true
		}
	}
	return out
}

func same(t *testing.T, want ...Port) {
	t.Helper()
	got := held(t)
	if len(got) != len(want) {
		t.Errorf("the kernel holds %v, want %v", got, want)
	}
	for _, p := range want {
		if !got[p] {
			t.Errorf("the kernel lacks %v", p)
		}
	}
}

func TestPorts(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	if err := f.Open(one); err != nil {
		t.Fatal(err)
	}
	a := port(6, "0.0.0.0:80", "172.17.0.2:8080")
	b := port(17, "127.0.0.1:53", "172.17.0.3:53")
	c := port(6, "0.0.0.0:81", "172.17.0.3:81")
	if err := f.Add(a, b); err != nil {
		t.Fatal(err)
	}
	same(t, a, b)
	if err := f.Add(c, port(6, "0.0.0.0:80", "172.17.0.9:80")); err == nil {
		t.Error("a port was published twice")
	}
	same(t, a, b)
	if err := f.Remove(port(6, "0.0.0.0:80", "172.17.0.9:80"), port(6, "0.0.0.0:9", "172.17.0.9:9")); err != nil {
		t.Error("removing what is not there:", err)
	}
	same(t, a, b)
	if err := f.Remove(a, b); err != nil {
		t.Fatal(err)
	}
	same(t)
	if f.Ports() != 0 {
		t.Errorf("%d ports counted, want 0", f.Ports())
	}
}

// An engine that comes back keeps what the kernel holds, then takes only the
// difference to what lives.
func TestOpenKeepsAndSyncDiffs(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	if err := f.Open(one); err != nil {
		t.Fatal(err)
	}
	a, b, c := port(6, "0.0.0.0:80", "172.17.0.2:80"), port(6, "127.0.0.1:81", "172.17.0.2:81"), port(17, "0.0.0.0:82", "172.17.0.3:82")
	if err := f.Add(a, b); err != nil {
		t.Fatal(err)
	}
	again := newFirewall(t)
	if err := again.Open(one); err != nil {
		t.Fatal(err)
	}
	same(t, a, b)
	moved := port(6, "0.0.0.0:80", "172.17.0.7:80")
	if err := again.Sync([]Port{moved, c}, nil); err != nil {
		t.Fatal(err)
	}
	same(t, moved, c)
	if again.Ports() != 2 {
		t.Errorf("%d ports counted, want 2", again.Ports())
	}
}

func TestChangeHealsAFlushedTable(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	if err := f.Open(one); err != nil {
		t.Fatal(err)
	}
	a, b := port(6, "0.0.0.0:80", "172.17.0.2:80"), port(6, "0.0.0.0:81", "172.17.0.2:81")
	if err := f.Add(a); err != nil {
		t.Fatal(err)
	}
	for name, act := range map[string]func() error{
		"add":    func() error { return f.Add(b) },
		"check":  f.Check,
		"remove": func() error { return f.Remove(b) },
	} {
		if err := kernel.Delete(Rules("escale", nil).Ref()); err != nil {
			t.Fatal(err)
		}
		_ = f.Remove(b)
		if name == "remove" {
			_ = f.Add(b)
			if err := kernel.Delete(Rules("escale", nil).Ref()); err != nil {
				t.Fatal(err)
			}
		}
		if err := act(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !held(t)[a] {
			t.Errorf("%s: the table was not made anew", name)
		}
	}
}

func TestManyPorts(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	if err := f.Open(one); err != nil {
		t.Fatal(err)
	}
	var many []Port
	for i := range 3000 {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 17, byte(i >> 8), byte(i)}), 80)
		many = append(many, Port{Proto: 6, Host: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(20000+i)), To: to})
	}
	if err := f.Sync(many, nil); err != nil {
		t.Fatal(err)
	}
	again := newFirewall(t)
	if err := again.Open(one); err != nil {
		t.Fatal(err)
	}
	same(t, many...)
	if err := again.Sync(nil, nil); err != nil {
		t.Fatal(err)
	}
	same(t)
}

// BenchmarkAdd and BenchmarkRemove publish and take back one port among others.
func BenchmarkAdd(b *testing.B)    { benchmark(b, true) }
func BenchmarkRemove(b *testing.B) { benchmark(b, false) }

func benchmark(b *testing.B, adding bool) {
	netnstest.Root(b)
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("among %d", n), func(b *testing.B) {
			f := newFirewall(b)
			if err := f.Open(one); err != nil {
				b.Fatal(err)
			}
			var many []Port
			for i := range n {
				many = append(many, Port{Proto: 6, Host: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(60000+i)), To: netip.MustParseAddrPort("172.17.0.2:80")})
			}
			if err := f.Sync(many, nil); err != nil {
				b.Fatal(err)
			}
			i := 0
			other := f.Add
			act := f.Remove
			if adding {
				act, other = other, act
			}
			for b.Loop() {
				p := many[0]
				p.Host = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(i%50000))
				i++
				if !adding {
					b.StopTimer()
					_ = other(p)
					b.StartTimer()
				}
				if err := act(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Engines before this one had a table of the family ip: its ports stay published
// while the new one takes its place.
func TestTakesOverTheTableOfBefore(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	a, b := port(6, "0.0.0.0:80", "172.17.0.2:80"), port(17, "127.0.0.1:53", "172.17.0.3:53")
	left := nft.Elements{}
	for _, p := range []Port{a, b} {
		name, e := p.place(nil)
		left[name] = append(left[name], e)
	}
	old := f.former()
	old.Chains = []nft.Chain{{Name: "prerouting", Base: &nft.Base{Type: "nat", Hook: "prerouting", Priority: -100},
		Rules: []nft.Rule{{nft.Translate(published4.ports)}}}}
	if err := kernel.Set(old, left, true); err != nil {
		t.Fatal(err)
	}
	if err := f.Open(one); err != nil {
		t.Fatal(err)
	}
	same(t, a, b)
	if ok, err := kernel.Exists(old.Ref()); ok || err != nil {
		t.Errorf("the table of before is there: %v, %v", ok, err)
	}
	if err := f.Sync([]Port{a}, nil); err != nil {
		t.Fatal(err)
	}
	same(t, a)
}

// What the administrator wrote outlives networks that come and go, engines that
// end, and what we do about somebody who changed our own rules.
func TestUserChainIsTheAdministrators(t *testing.T) {
	netnstest.Root(t)
	list, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft(8), as administrators do")
	}
	// Written before any engine, as from /etc/nftables.conf.
	in := "table inet escale-escale {\n set user-bad { type ipv4_addr; elements = { 10.9.9.9 }; }\n chain user { ip saddr @user-bad drop; jump user-web; }\n chain user-web { tcp dport 81 drop; }\n}\n"
	cmd := exec.Command(list, "-f", "-")
	cmd.Stdin = strings.NewReader(in)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := newFirewall(t)
	check := func(when string) {
		t.Helper()
		out, err := exec.Command(list, "list", "table", "inet", "escale-escale").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, part := range []string{"elements = { 10.9.9.9 }", "ip saddr @user-bad drop\n\t\tjump user-web", "tcp dport 81 drop", "jump user\n\t\tiifname vmap @out"} {
			if !strings.Contains(string(out), part) {
				t.Errorf("%s: no %q in\n%s", when, part, out)
			}
		}
	}
	for _, networks := range [][]Network{one, goldens[3].networks, one} {
		if err := f.Open(networks); err != nil {
			t.Fatal(err)
		}
		check("networks")
	}
	if err := f.Sync(nil, nil); err != nil {
		t.Fatal(err)
	}
	check("Sync")
	if out, err := exec.Command(list, "flush", "chain", "inet", "escale-escale", "forward").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	check("Check")
	again := newFirewall(t)
	if err := again.Open(one); err != nil {
		t.Fatal(err)
	}
	if err := again.Sync(nil, nil); err != nil {
		t.Fatal(err)
	}
	check("a new engine")
}

// Until Sync nothing of an earlier engine goes, though the networks come one by
// one; after it only what is wanted is there.
func TestNetworksOneByOne(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	two := goldens[3].networks
	shared := port(6, "0.0.0.0:80", "172.17.0.2:80")
	shared.Group = "g"
	if err := f.Open(two); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(shared); err != nil {
		t.Fatal(err)
	}
	again := newFirewall(t)
	holds := func(what ...string) (out []bool) {
		t.Helper()
		left, err := kernel.Read(Rules("escale", nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range what {
			m, value, _ := strings.Cut(w, "=")
			out = append(out, slices.ContainsFunc(left[m], func(e nft.Element) bool { return e.Value == value }))
		}
		return out
	}
	all := []string{"in=jump in-escale0", "in=jump in-br-2", "groups=jump spread4-6-80"}
	if err := again.Open(two[:1]); err != nil {
		t.Fatal(err)
	}
	if got := holds(all...); !slices.Equal(got, []bool{true, true, true}) {
		t.Errorf("before Sync the kernel holds %v of %v", got, all)
	}
	if err := again.Open(two); err != nil {
		t.Fatal(err)
	}
	if err := again.Sync([]Port{shared}, nil); err != nil {
		t.Fatal(err)
	}
	if got := holds(all...); !slices.Equal(got, []bool{true, true, true}) {
		t.Errorf("after Sync the kernel holds %v of %v", got, all)
	}
	if err := again.Open(two[:1]); err != nil {
		t.Fatal(err)
	}
	if err := again.Remove(shared); err != nil {
		t.Fatal(err)
	}
	if got := holds(all...); !slices.Equal(got, []bool{true, false, false}) {
		t.Errorf("in the end the kernel holds %v of %v", got, all)
	}
}

func TestGroups(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	if err := f.Open(one); err != nil {
		t.Fatal(err)
	}
	alone := port(6, "0.0.0.0:80", "172.17.0.9:80")
	a, b := port(6, "0.0.0.0:80", "172.17.0.2:80"), port(6, "0.0.0.0:80", "172.17.0.3:80")
	a.Group, b.Group = "g", "g"
	for range 2 { // a second time changes nothing
		if err := f.Add(a, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Add(alone); err == nil {
		t.Error("a shared port was published by one alone, too")
	}
	if n := f.Ports(); n != 1 {
		t.Errorf("%d ports, want 1", n)
	}
	if err := f.Remove(a, b); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(alone); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(a); err == nil {
		t.Error("a port that one has alone was shared")
	}
	same(t, alone)
}

// frames reads the table of frames back from the kernel with nft(8).
func frames(t *testing.T) string {
	t.Helper()
	list, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft(8), which reads the rules back from the kernel")
	}
	out, err := exec.Command(list, "list", "table", "bridge", "escale-escale").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestHonesty(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	networks := []Network{{Bridge: "escale0", V4: family("172.17.0.0/16", true), V6: family("fd00:17::/64", true)}}
	if err := f.Open(networks); err != nil {
		t.Fatal(err)
	}
	want := Honesty("escale", "veth1234").String()
	if *update {
		if err := os.WriteFile("testdata/frames.nft", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile("testdata/frames.nft")
	if err != nil {
		t.Fatal(err)
	}
	differ(t, want, string(golden))
	differ(t, frames(t), want)
	networks[0].V4.Host = netip.MustParseAddr("172.17.0.1")
	if err := f.Open(networks); err != nil {
		t.Fatal(err)
	}
	a4, a6, b4 := netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("fd00:17::2"), netip.MustParseAddr("172.17.0.3")
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want ...string) {
		t.Helper()
		var got []string
		for _, line := range strings.Split(frames(t), "\n") {
			if _, list, is := strings.Cut(line, "elements = { "); is {
				got = append(got, strings.TrimSuffix(list, " }"))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("the kernel holds %q, want %q", got, want)
		}
	}
	ok(f.Attach("veth1234a", a4, a6, netip.Addr{}))
	holds("172.17.0.1, 172.17.0.2", `"veth1234a" . 172.17.0.2`, "fd00:17::2", `"veth1234a" . fd00:17::2`)
	ok(f.Attach("veth1234b", a4)) // the same for a while, as of the last run and this
	ok(f.Detach("veth1234a"))
	holds("172.17.0.1, 172.17.0.2", `"veth1234b" . 172.17.0.2`)
	ok(f.Attach("veth1234b", b4))
	ok(f.Detach("veth1234a"))
	holds("172.17.0.1, 172.17.0.3", `"veth1234b" . 172.17.0.3`)
	ok(kernel.Delete(Honesty("escale", "").Ref()))
	ok(f.Attach("veth1234a", a4))
	if got := frames(t); !strings.Contains(got, `"veth1234b" . 172.17.0.3`) || !strings.Contains(got, `"veth1234a" . 172.17.0.2`) {
		t.Errorf("made anew it is\n%s", got)
	}
	again := newFirewall(t)
	ok(again.Open(networks))
	if got := frames(t); !strings.Contains(got, `"veth1234a" . 172.17.0.2`) {
		t.Errorf("a new engine forgot who has what:\n%s", got)
	}
	ok(again.Sync(nil, map[string][]netip.Addr{"veth1234b": {b4}}))
	holds("172.17.0.1, 172.17.0.3", `"veth1234b" . 172.17.0.3`)
	networks[0].V4.Host = netip.Addr{}
	ok(again.Open(networks))
	holds("172.17.0.3", `"veth1234b" . 172.17.0.3`)
}

// A mesh is changed in one step, whatever it grows to, and stays when networks and ports of
// containers come and go.
func TestMesh(t *testing.T) {
	netnstest.Root(t)
	f := newFirewall(t)
	mesh := goldens[len(goldens)-1]
	if mesh.name != "mesh" {
		t.Fatal("another golden file")
	}
	if err := errors.Join(f.SetMesh(mesh.mesh), f.Open(one)); err != nil {
		t.Fatal(err)
	}
	big := Mesh{}
	for i := range 2000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		big.Ports = append(big.Ports, Port{Proto: 6, Host: netip.MustParseAddrPort("0.0.0.0:80"), To: netip.AddrPortFrom(a, 80), Group: "g"})
		big.Far = append(big.Far, a)
	}
	if err := errors.Join(f.SetMesh(big), f.Add(mesh.shared...), f.Sync(nil, nil), f.Open(mesh.networks)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.SetMesh(mesh.mesh), f.Check()); err != nil {
		t.Fatal(err)
	}
	if err := f.SetMesh(Mesh{}); err != nil {
		t.Fatal(err)
	}
	if got, want := f.wanted().String(), Rules("escale", mesh.networks).String(); got != want {
		t.Errorf("of a mesh that is no more is left:\n%s", got)
	}
}
