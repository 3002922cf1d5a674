package firewall

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"escale.dev/escale/internal/sys/nft"
)

var update = flag.Bool("update", false, "write the golden files")

// kernel is a second pair of eyes.
var kernel nft.Conn

func TestMain(m *testing.M) { netnstest.Main(m) }

var one = []Network{{Bridge: "escale0", V4: family("172.17.0.0/16", true), ICC: true}}

func family(subnet string, masquerade bool) Family {
	return Family{Subnet: netip.MustParsePrefix(subnet), Masquerade: masquerade}
}

var goldens = []struct {
	name     string
	networks []Network
}{
	{"none", nil},
	{"default", one},
	{"strict", []Network{{Bridge: "escale0", V4: family("192.168.16.0/20", false)}}},
	{"several", append(one[:1:1], Network{Bridge: "br-2", V4: family("10.1.2.0/24", true), ICC: true})},
}

func TestRulesGolden(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			file := filepath.Join("testdata", g.name+".nft")
			got := Rules("escale", g.networks).String()
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
			out, err := exec.Command(list, "list", "table", "ip", "escale-escale").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if want := Rules("escale", g.networks).String(); string(out) != want {
				t.Errorf("the kernel holds\n%s\nwant\n%s", out, want)
			}
		})
	}
}

func newFirewall(t testing.TB) *Firewall {
	t.Helper()
	f := New("escale", slog.New(slog.DiscardHandler))
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
	for _, e := range left[ports.Name] {
		k, _ := nft.Fields(e.Key, ports.Key...)
		v, _ := nft.Fields(e.Value, ports.Value...)
		out[Port{Proto: k[0].(uint8), Host: netip.AddrPortFrom(netip.IPv4Unspecified(), k[1].(uint16)), To: netip.AddrPortFrom(v[0].(netip.Addr), v[1].(uint16))}] = true
	}
	for _, e := range left[hostPorts.Name] {
		k, _ := nft.Fields(e.Key, hostPorts.Key...)
		v, _ := nft.Fields(e.Value, hostPorts.Value...)
		out[Port{Proto: k[1].(uint8), Host: netip.AddrPortFrom(k[0].(netip.Addr), k[2].(uint16)), To: netip.AddrPortFrom(v[0].(netip.Addr), v[1].(uint16))}] = true
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
	if err := again.Sync([]Port{moved, c}); err != nil {
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
		if err := kernel.Delete(TableName("escale")); err != nil {
			t.Fatal(err)
		}
		_ = f.Remove(b)
		if name == "remove" {
			_ = f.Add(b)
			if err := kernel.Delete(TableName("escale")); err != nil {
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
	if err := f.Sync(many); err != nil {
		t.Fatal(err)
	}
	again := newFirewall(t)
	if err := again.Open(one); err != nil {
		t.Fatal(err)
	}
	same(t, many...)
	if err := again.Sync(nil); err != nil {
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
			if err := f.Sync(many); err != nil {
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
