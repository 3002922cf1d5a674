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
		{name: "one", bindings: map[string][]network.PortBinding{"80/tcp": {binding("", "8080")}}, want: "*:8080-8080:80/tcp"},
		{name: "address", bindings: map[string][]network.PortBinding{"80": {binding("127.0.0.1", "8080")}}, want: "127.0.0.1:8080-8080:80/tcp"},
		{name: "mapped address", bindings: map[string][]network.PortBinding{"80": {binding("::ffff:127.0.0.1", "1")}}, want: "127.0.0.1:1-1:80/tcp"},
		{name: "any port", bindings: map[string][]network.PortBinding{"53/udp": {binding("", "")}}, want: "*:0-0:53/udp"},
		{name: "zero is any port", bindings: map[string][]network.PortBinding{"53/udp": {binding("", "0")}}, want: "*:0-0:53/udp"},
		{name: "range", bindings: map[string][]network.PortBinding{"80": {binding("", "8000-8010")}}, want: "*:8000-8010:80/tcp"},
		{name: "choices last", bindings: map[string][]network.PortBinding{"80": {binding("", "8000-8010")}, "81": {binding("", "")}, "82": {binding("", "8000")}},
			want: "*:8000-8000:82/tcp *:8000-8010:80/tcp *:0-0:81/tcp"},
		{name: "all exposed", bindings: map[string][]network.PortBinding{"80": {binding("", "1")}}, exposed: []string{"80", "81", "53/udp"}, all: true,
			want: "*:1-1:80/tcp *:0-0:53/udp *:0-0:81/tcp"},
		{name: "exposed only", exposed: []string{"80"}, want: ""},
		{name: "no port", bindings: map[string][]network.PortBinding{"80": {binding("", "http")}}, kind: errdefs.IsInvalidArgument},
		{name: "too large", bindings: map[string][]network.PortBinding{"80": {binding("", "65536")}}, kind: errdefs.IsInvalidArgument},
		{name: "backwards", bindings: map[string][]network.PortBinding{"80": {binding("", "9-8")}}, kind: errdefs.IsInvalidArgument},
		{name: "open range", bindings: map[string][]network.PortBinding{"80": {binding("", "9-")}}, kind: errdefs.IsInvalidArgument},
		{name: "range from zero", bindings: map[string][]network.PortBinding{"80": {binding("", "0-9")}}, kind: errdefs.IsInvalidArgument},
		{name: "container port zero", bindings: map[string][]network.PortBinding{"0": {binding("", "9")}}, kind: errdefs.IsInvalidArgument},
		{name: "protocol", bindings: map[string][]network.PortBinding{"80/icmp": {binding("", "9")}}, kind: errdefs.IsInvalidArgument},
		{name: "exposed protocol", exposed: []string{"80/icmp"}, all: true, kind: errdefs.IsInvalidArgument},
		{name: "IPv6", bindings: map[string][]network.PortBinding{"80": {binding("::1", "9")}}, want: "::1:9-9:80/tcp"},
		{name: "zone", bindings: map[string][]network.PortBinding{"80": {binding("fe80::1%eth0", "9")}}, want: "fe80::1:9-9:80/tcp"},
		{name: "all of IPv4", bindings: map[string][]network.PortBinding{"80": {binding("0.0.0.0", "9")}}, want: "0.0.0.0:9-9:80/tcp"},
		{name: "without bindings", bindings: map[string][]network.PortBinding{"80": nil}, all: true, want: "*:0-0:80/tcp"},
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
				host := fmt.Sprint(s.Host)
				if !s.Host.IsValid() {
					host = "*"
				}
				got = append(got, fmt.Sprintf("%s:%d-%d:%s", host, s.First, s.Last, s.Container))
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
	m, files, err := a.Hold(specs, To{V4: container, Forwarded: true}, "")
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
	if _, _, err := a.Hold(specs, To{V4: container, Forwarded: true}, ""); err == nil {
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
		specs := []Spec{{Container: network.MustParsePort("80"), First: uint16(port), Last: uint16(port)}}
		_, files, err := a.Hold(specs, To{V4: container, Forwarded: true}, "")
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
	a.Adopt(m, nil)
	a.Adopt(m, nil)
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

var container6 = netip.MustParseAddr("fd00::2")

// at is where a spec was published, and where that leads.
func at(list []Mapping) string {
	var out []string
	for _, m := range list {
		out = append(out, fmt.Sprintf("%s>%s", m.Host, m.To))
	}
	return strings.Join(out, " ")
}

func TestFamilies(t *testing.T) {
	netnstest.Root(t)
	v4, v6 := To{V4: container}, To{V6: container6}
	forwarded, both := To{V4: container, Forwarded: true}, To{V4: container, V6: container6}
	for _, c := range []struct {
		name, ip, port string
		to             To
		want           string
		files          int
		err            string
	}{
		{"all, forwarded", "", "8200", forwarded, "0.0.0.0:8200>172.17.0.2:80 [::]:8200>172.17.0.2:80", 2, ""},
		{"all, not forwarded", "", "8200", v4, "0.0.0.0:8200>172.17.0.2:80", 1, ""},
		{"all, both", "", "8200", both, "0.0.0.0:8200>172.17.0.2:80 [::]:8200>[fd00::2]:80", 2, ""},
		{"all, IPv6 only", "", "8200", v6, "[::]:8200>[fd00::2]:80", 1, ""},
		{"all of IPv4", "0.0.0.0", "8200", both, "0.0.0.0:8200>172.17.0.2:80", 1, ""},
		{"all of IPv6", "::", "8200", both, "[::]:8200>[fd00::2]:80", 1, ""},
		{"::1", "::1", "8200", forwarded, "[::1]:8200>172.17.0.2:80", 1, ""},
		{"::1, not forwarded", "::1", "8200", v4, "", 0, "Cannot map from IPv6 to an IPv4-only container because the userland proxy is disabled"},
		{"IPv4 to IPv6", "127.0.0.1", "8200", v6, "", 0, "cannot lead to a container that has only IPv6"},
		{"any port", "", "", forwarded, "0.0.0.0:40000>172.17.0.2:80 [::]:40000>172.17.0.2:80", 2, ""},
		{"routed", "", "8200", To{V4: container, V6: container6, Routed6: true}, "0.0.0.0:8200>172.17.0.2:80 [::]:0>[fd00::2]:80", 1, ""},
		{"both routed", "", "8200", To{V4: container, V6: container6, Routed4: true, Routed6: true}, "0.0.0.0:0>172.17.0.2:80 [::]:0>[fd00::2]:80", 0, ""},
		{"bad address", "2001:db8::1", "8200", both, "", 0, "failed to bind host port for [2001:db8::1]:8200:[fd00::2]:80/tcp: cannot assign requested address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := NewAllocator()
			a.local = func() (uint16, uint16) { return 40000, 40002 }
			specs, err := Specs(ports(t, map[string][]network.PortBinding{"80": {binding(c.ip, c.port)}}), nil, false)
			if err != nil {
				t.Fatal(err)
			}
			got, files, err := a.Hold(specs, c.to, "")
			defer closeAll(files)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || a.Len() != 0 {
					t.Fatalf("%v, want %s; %d ports taken", err, c.err, a.Len())
				}
				return
			}
			if err != nil || at(got) != c.want || len(files) != c.files || a.Len() != c.files {
				t.Fatalf("got %s, %d files, %d taken, %v; want %s, %d files", at(got), len(files), a.Len(), err, c.want, c.files)
			}
			again, err := Mappings(c.to, PortMap(got, nil), "")
			if err != nil || len(again) != len(got) {
				t.Errorf("out of the record came %s, %v", at(again), err)
			}
			for _, m := range got {
				if (Find(files, m) == nil) != (m.Host.Port() == 0) {
					t.Errorf("the socket of %s: %v", m.Host, Find(files, m))
				}
			}
			for range 2 {
				a.Free(got)
			}
			if a.Len() != 0 {
				t.Errorf("%d ports are left", a.Len())
			}
		})
	}
}

// A port that is free for one family only is not taken for the other.
func TestBothFamiliesOrNone(t *testing.T) {
	netnstest.Root(t)
	l, err := net.Listen("tcp6", "[::1]:8300")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := NewAllocator()
	want := "failed to bind host port for [::]:8300:172.17.0.2:80/tcp: address already in use"
	if _, err := hold(t, a, ":8300->80"); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if a.Len() != 0 {
		t.Errorf("%d ports are left", a.Len())
	}
	mustHold(t, a, ":8300-8301->80", "0.0.0.0:8301")
	mustHold(t, a, "0.0.0.0:8300->80", "0.0.0.0:8300") // the IPv4 side was given back
}

func TestGroups(t *testing.T) {
	netnstest.Root(t)
	a := NewAllocator()
	a.local = func() (uint16, uint16) { return 40000, 40009 }
	other := To{V4: netip.MustParseAddr("172.17.0.3"), Forwarded: true}
	hold := func(to To, cp, hp, group string) ([]Mapping, []*os.File, error) {
		t.Helper()
		specs, err := Specs(ports(t, map[string][]network.PortBinding{cp: {binding("", hp)}}), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return a.Hold(specs, to, group)
	}
	first := To{V4: container, Forwarded: true}
	m1, f1, err := hold(first, "80", "8400", "web")
	if err != nil {
		t.Fatal(err)
	}
	m2, f2, err := hold(other, "80", "8400", "web")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ cp, group string }{"none": {"80", ""}, "another group": {"80", "db"}, "another port": {"81", "web"}} {
		if _, _, err := hold(To{V4: netip.MustParseAddr("172.17.0.4")}, c.cp, "8400", c.group); err == nil || err.Error() != "Bind for 0.0.0.0:8400 failed: port is already allocated" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Of a range each has one of its own, which nobody else of the group gets.
	var own []Mapping
	for i, to := range []To{first, other} {
		m, files, err := hold(to, "80", "8400-8402", "web")
		if err != nil || m[0].Host.Port() != uint16(8401+i) || m[0].Group != "" {
			t.Errorf("of a range, %d: %+v, %v", i, m, err)
		}
		defer closeAll(files)
		own = append(own, m...)
	}
	if _, _, err := hold(To{V4: netip.MustParseAddr("172.17.0.4")}, "80", "8400-8402", "web"); err == nil || err.Error() != "all ports are allocated" {
		t.Errorf("of a range that is full: %v", err)
	}
	a.Free(own)
	closeAll(f1)
	a.Free(m1)
	a.Free(m1) // as Unpublish and Teardown do
	if _, err := net.Listen("tcp", ":8400"); err == nil {
		t.Error("the port could be taken from the second of the group")
	}
	if a.Len() != 2 {
		t.Errorf("%d ports taken, want 2", a.Len())
	}
	closeAll(f2)
	a.Free(m2)
	l, err := net.Listen("tcp", ":8400")
	if err != nil {
		t.Fatalf("the group's own copy was left: %v", err)
	}
	l.Close()
	// Whoever leaves the choice gets the port that the group has.
	m1, f1, err = hold(first, "80", "", "web")
	if err != nil {
		t.Fatal(err)
	}
	m2, f2, err = hold(other, "80", "", "web")
	if err != nil || m1[0].Host != m2[0].Host {
		t.Errorf("got %s and %s, %v", at(m1), at(m2), err)
	}
	// A later engine is given the sockets of those that live.
	b := NewAllocator()
	b.Adopt(m1, f1)
	b.Adopt(m2, f2)
	a.Free(m1)
	a.Free(m2)
	specs, _ := Specs(ports(t, map[string][]network.PortBinding{"80": {binding("", "")}}), nil, false)
	m3, f3, err := b.Hold(specs, To{V4: netip.MustParseAddr("172.17.0.4"), Forwarded: true}, "web")
	if err != nil || m3[0].Host != m1[0].Host {
		t.Errorf("after a restart: %s, %v", at(m3), err)
	}
	for _, f := range [][]*os.File{f1, f2, f3} {
		closeAll(f)
	}
	for _, m := range [][]Mapping{m1, m2, m3} {
		b.Free(m)
	}
	if b.Len() != 0 {
		t.Errorf("%d ports are left", b.Len())
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
	got, err := Mappings(To{V4: container}, m, "")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	m[network.MustParsePort("80")] = []network.PortBinding{{HostPort: "1-2"}}
	if _, err := Mappings(To{V4: container}, m, ""); !errdefs.IsInvalidArgument(err) {
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
		if len(specs) != 1 || s.Container.Num() == 0 || s.Host.IsValid() != b.HostIP.IsValid() || s.Last < s.First || (s.First == 0) != (s.Last == 0) {
			t.Errorf("%q %q %q became %+v", cp, hp, ip, specs)
		}
	})
}

func BenchmarkHold(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: a host of its own")
	}
	a := NewAllocator()
	specs := []Spec{{Container: network.MustParsePort("80"), Host: netip.IPv4Unspecified(), First: 8080, Last: 8080}}
	for b.Loop() {
		m, files, err := a.Hold(specs, To{V4: container, Forwarded: true}, "")
		if err != nil {
			b.Fatal(err)
		}
		a.Free(m)
		for _, f := range files {
			f.Close()
		}
	}
}
