package port

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/sys/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

var container = netip.MustParseAddr("172.17.0.2")

func binding(ip, port string) network.PortBinding {
	b := network.PortBinding{HostPort: port}
	if ip != "" {
		b.HostIP = netip.MustParseAddr(ip)
	}
	return b
}

func ports(t testing.TB, m map[string][]network.PortBinding) network.PortMap {
	t.Helper()
	out := network.PortMap{}
	for p, b := range m {
		out[network.MustParsePort(p)] = b
	}
	return out
}

func TestSpecs(t *testing.T) {
	for _, c := range []struct {
		name     string
		bindings map[string][]network.PortBinding
		exposed  []string
		all      bool
		want     string
		kind     func(error) bool
	}{
		{name: "nothing", want: ""},
		{name: "one", bindings: map[string][]network.PortBinding{"80/tcp": {binding("", "8080")}}, want: "0.0.0.0:8080-8080:80/tcp"},
		{name: "address", bindings: map[string][]network.PortBinding{"80": {binding("127.0.0.1", "8080")}}, want: "127.0.0.1:8080-8080:80/tcp"},
		{name: "mapped address", bindings: map[string][]network.PortBinding{"80": {binding("::ffff:127.0.0.1", "1")}}, want: "127.0.0.1:1-1:80/tcp"},
		{name: "any port", bindings: map[string][]network.PortBinding{"53/udp": {binding("", "")}}, want: "0.0.0.0:0-0:53/udp"},
		{name: "zero is any port", bindings: map[string][]network.PortBinding{"53/udp": {binding("", "0")}}, want: "0.0.0.0:0-0:53/udp"},
		{name: "range", bindings: map[string][]network.PortBinding{"80": {binding("", "8000-8010")}}, want: "0.0.0.0:8000-8010:80/tcp"},
		{name: "choices last", bindings: map[string][]network.PortBinding{"80": {binding("", "8000-8010")}, "81": {binding("", "")}, "82": {binding("", "8000")}},
			want: "0.0.0.0:8000-8000:82/tcp 0.0.0.0:8000-8010:80/tcp 0.0.0.0:0-0:81/tcp"},
		{name: "all exposed", bindings: map[string][]network.PortBinding{"80": {binding("", "1")}}, exposed: []string{"80", "81", "53/udp"}, all: true,
			want: "0.0.0.0:1-1:80/tcp 0.0.0.0:0-0:53/udp 0.0.0.0:0-0:81/tcp"},
		{name: "exposed only", exposed: []string{"80"}, want: ""},
		{name: "no port", bindings: map[string][]network.PortBinding{"80": {binding("", "http")}}, kind: errdefs.IsInvalidArgument},
		{name: "too large", bindings: map[string][]network.PortBinding{"80": {binding("", "65536")}}, kind: errdefs.IsInvalidArgument},
		{name: "backwards", bindings: map[string][]network.PortBinding{"80": {binding("", "9-8")}}, kind: errdefs.IsInvalidArgument},
		{name: "open range", bindings: map[string][]network.PortBinding{"80": {binding("", "9-")}}, kind: errdefs.IsInvalidArgument},
		{name: "range from zero", bindings: map[string][]network.PortBinding{"80": {binding("", "0-9")}}, kind: errdefs.IsInvalidArgument},
		{name: "container port zero", bindings: map[string][]network.PortBinding{"0": {binding("", "9")}}, kind: errdefs.IsInvalidArgument},
		{name: "protocol", bindings: map[string][]network.PortBinding{"80/icmp": {binding("", "9")}}, kind: errdefs.IsInvalidArgument},
		{name: "exposed protocol", exposed: []string{"80/icmp"}, all: true, kind: errdefs.IsInvalidArgument},
		{name: "IPv6", bindings: map[string][]network.PortBinding{"80": {binding("::1", "9")}}, kind: errdefs.IsNotImplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			exposed := network.PortSet{}
			for _, e := range c.exposed {
				exposed[network.MustParsePort(e)] = struct{}{}
			}
			specs, err := Specs(ports(t, c.bindings), exposed, c.all)
			if c.kind != nil {
				if !c.kind(err) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range specs {
				got = append(got, fmt.Sprintf("%s:%d-%d:%s", s.HostIP, s.First, s.Last, s.Container))
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), c.want)
			}
		})
	}
}

func hold(t *testing.T, a *Allocator, spec string) ([]Mapping, error) {
	t.Helper()
	host, cp, _ := strings.Cut(spec, "->")
	ip, hp, _ := strings.Cut(host, ":")
	specs, err := Specs(ports(t, map[string][]network.PortBinding{cp: {binding(ip, hp)}}), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	m, files, err := a.Hold(specs, container)
	t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
	})
	return m, err
}

func mustHold(t *testing.T, a *Allocator, spec, want string) []Mapping {
	t.Helper()
	m, err := hold(t, a, spec)
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	if got := m[0].Host.String(); got != want {
		t.Errorf("%s: got %s, want %s", spec, got, want)
	}
	return m
}

func TestConflicts(t *testing.T) {
	netnstest.Root(t) // a host of its own has all ports free
	a := NewAllocator()
	mustHold(t, a, "0.0.0.0:8080->80", "0.0.0.0:8080")
	mustHold(t, a, "127.0.0.1:8081->80", "127.0.0.1:8081")
	mustHold(t, a, "0.0.0.0:8080->80/udp", "0.0.0.0:8080")
	for spec, want := range map[string]string{
		"0.0.0.0:8080->80":   "Bind for 0.0.0.0:8080 failed: port is already allocated",
		"127.0.0.1:8080->80": "Bind for 127.0.0.1:8080 failed: port is already allocated",
		"0.0.0.0:8081->80":   "Bind for 0.0.0.0:8081 failed: port is already allocated",
		"10.9.9.9:8082->80":  "failed to bind host port for 10.9.9.9:8082:172.17.0.2:80/tcp: cannot assign requested address",
	} {
		if _, err := hold(t, a, spec); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", spec, err, want)
		}
	}
	if a.Len() != 3 {
		t.Errorf("%d ports taken, want 3", a.Len())
	}
}

func TestHostHasThePort(t *testing.T) {
	netnstest.Root(t)
	l, err := net.Listen("tcp4", "0.0.0.0:8090")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := NewAllocator()
	want := "failed to bind host port for 0.0.0.0:8090:172.17.0.2:80/tcp: address already in use"
	if _, err := hold(t, a, "0.0.0.0:8090->80"); err == nil || err.Error() != want || !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("%v, want %s", err, want)
	}
	mustHold(t, a, "0.0.0.0:8090-8091->80", "0.0.0.0:8091")
	if a.Len() != 1 {
		t.Errorf("%d ports taken, want 1", a.Len())
	}
}

func TestRangesAndAnyPort(t *testing.T) {
	netnstest.Root(t)
	a := NewAllocator()
	a.local = func() (uint16, uint16) { return 40000, 40002 }
	mustHold(t, a, ":9000-9001->80", "0.0.0.0:9000")
	mustHold(t, a, ":9000-9001->80", "0.0.0.0:9001")
	if _, err := hold(t, a, ":9000-9001->80"); err == nil || err.Error() != "all ports are allocated" {
		t.Errorf("a range that is full: %v", err)
	}
	first := mustHold(t, a, ":->80", "0.0.0.0:40000")
	mustHold(t, a, ":->80", "0.0.0.0:40001")
	a.Free(first)
	mustHold(t, a, ":->81", "0.0.0.0:40002") // 40000 is not taken again at once
}

func TestAllOrNothing(t *testing.T) {
	netnstest.Root(t)
	a := NewAllocator()
	specs, err := Specs(ports(t, map[string][]network.PortBinding{"80": {binding("", "8100")}, "81": {binding("", "8100")}}), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Hold(specs, container); err == nil {
		t.Fatal("one host port was given twice")
	}
	if a.Len() != 0 {
		t.Errorf("%d ports are left", a.Len())
	}
	l, err := net.Listen("tcp4", "0.0.0.0:8100")
	if err != nil {
		t.Fatalf("the socket was left: %v", err)
	}
	l.Close()
}

// While it is held nobody gets a port, not even with SO_REUSEADDR, which
// net.Listen sets; once the last copy is closed, everybody may.
func TestHeldPortIsRefusedToOthers(t *testing.T) {
	netnstest.Root(t)
	check := func(t *testing.T, port int) {
		a := NewAllocator()
		specs := []Spec{{Container: network.MustParsePort("80"), HostIP: netip.IPv4Unspecified(), First: uint16(port), Last: uint16(port)}}
		_, files, err := a.Hold(specs, container)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{"tcp4 0.0.0.0", "tcp4 127.0.0.1", "tcp6 [::]", "tcp [::]", "tcp6 [::1]"} {
			n, host, _ := strings.Cut(at, " ")
			if l, err := net.Listen(n, fmt.Sprintf("%s:%d", host, port)); err == nil {
				l.Close()
				t.Errorf("%s could be taken by another", at)
			}
		}
		if c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			t.Error("the held socket takes connections")
		}
		for _, f := range files {
			f.Close()
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatalf("after the sockets were closed: %v", err)
		}
		l.Close()
	}
	t.Run("fresh port", func(t *testing.T) { check(t, 8110) })
	t.Run("port in TIME_WAIT", func(t *testing.T) {
		l, err := net.Listen("tcp4", "127.0.0.1:8111")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				c.Close() // the server closes first: its side waits
			}
		}()
		c, err := net.Dial("tcp4", "127.0.0.1:8111")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1))
		c.Close()
		l.Close()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 8111}); !errors.Is(err, unix.EADDRINUSE) {
			t.Fatalf("no connection is waiting: %v", err)
		}
		check(t, 8111)
	})
}

func TestSCTP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err == nil {
		unix.Close(fd)
		t.Skip("this kernel has SCTP: nothing to refuse")
	}
	a := NewAllocator()
	if _, err := hold(t, a, ":8120->80/sctp"); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "sctp is not supported") {
		t.Errorf("%v", err)
	}
}

func TestAdopt(t *testing.T) {
	a := NewAllocator()
	m := []Mapping{{Proto: network.TCP, Host: netip.MustParseAddrPort("0.0.0.0:80"), To: netip.MustParseAddrPort("172.17.0.2:80")}}
	a.Adopt(m)
	a.Adopt(m)
	if a.Len() != 1 {
		t.Errorf("%d ports taken, want 1", a.Len())
	}
	if _, err := hold(t, a, ":80->80"); err == nil || !strings.Contains(err.Error(), "already allocated") {
		t.Errorf("an adopted port: %v", err)
	}
	a.Free(m)
	a.Free(m)
	if a.Len() != 0 {
		t.Errorf("%d ports taken, want 0", a.Len())
	}
}

func TestPortMapRoundTrip(t *testing.T) {
	want := []Mapping{
		{Proto: network.TCP, Host: netip.MustParseAddrPort("0.0.0.0:8080"), To: netip.AddrPortFrom(container, 80)},
		{Proto: network.UDP, Host: netip.MustParseAddrPort("127.0.0.1:53"), To: netip.AddrPortFrom(container, 5353)},
	}
	m := PortMap(want, network.PortSet{network.MustParsePort("80"): {}, network.MustParsePort("443"): {}})
	if b, ok := m[network.MustParsePort("443")]; !ok || len(b) != 0 {
		t.Errorf("the exposed port: %v, %v", b, ok)
	}
	got, err := Mappings(container, m)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	m[network.MustParsePort("80")] = []network.PortBinding{{HostPort: "1-2"}}
	if _, err := Mappings(container, m); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a range in a record: %v", err)
	}
}

func FuzzSpecs(f *testing.F) {
	f.Add("80", "8000-8010", "127.0.0.1")
	f.Add("53/udp", "", "")
	f.Add("9/sctp", "0", "::1")
	f.Add("0", "70000", "::ffff:1.2.3.4")
	f.Fuzz(func(t *testing.T, cp, hp, ip string) {
		p, err := network.ParsePort(cp)
		if err != nil {
			return
		}
		b := network.PortBinding{HostPort: hp}
		b.HostIP, _ = netip.ParseAddr(ip)
		specs, err := Specs(network.PortMap{p: {b}}, nil, false)
		if err != nil {
			return
		}
		s := specs[0]
		if len(specs) != 1 || s.Container.Num() == 0 || !s.HostIP.Is4() || s.Last < s.First || (s.First == 0) != (s.Last == 0) {
			t.Errorf("%q %q %q became %+v", cp, hp, ip, specs)
		}
	})
}

func BenchmarkHold(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: a host of its own")
	}
	a := NewAllocator()
	specs := []Spec{{Container: network.MustParsePort("80"), HostIP: netip.IPv4Unspecified(), First: 8080, Last: 8080}}
	for b.Loop() {
		m, files, err := a.Hold(specs, container)
		if err != nil {
			b.Fatal(err)
		}
		a.Free(m)
		for _, f := range files {
			f.Close()
		}
	}
}
