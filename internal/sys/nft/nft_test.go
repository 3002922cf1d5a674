package nft

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

var numbers = Map{Name: "numbers", Key: []Type{Proto, Port}, Value: []Type{Addr4, Port}}

func small(rules ...Rule) Table {
	return Table{Family: IPv4, Name: "escale-nfttest", Maps: []Map{numbers}, Chains: []Chain{
		{Name: "in", Base: &Base{Type: "filter", Hook: "input", Priority: 5}, Rules: rules},
	}}
}

func element(proto uint8, port uint16, to string) Element {
	a := netip.MustParseAddrPort(to)
	return Element{Key: Bytes(proto, port), Value: Bytes(a.Addr(), a.Port())}
}

func TestFieldsAreTheReverseOfBytes(t *testing.T) {
	want := []any{netip.MustParseAddr("10.1.2.3"), uint8(17), uint16(51234), netip.MustParseAddr("fd00::1"), "escale0", uint32(7)}
	got, ok := Fields(Bytes(want...), Addr4, Proto, Port, Addr6, Link, Mark)
	if !ok || !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, ok := Fields("abc", Addr4); ok {
		t.Error("three bytes were taken for an address")
	}
}

func TestString(t *testing.T) {
	got := small(Rule{IIf("eth0"), NotFrom(netip.MustParsePrefix("10.1.2.3/20")), To(netip.MustParsePrefix("9.9.9.9/32")), Drop()}).String()
	want := `table ip escale-nfttest {
	map numbers {
		type inet_proto . inet_service : ipv4_addr . inet_service
	}

	chain in {
		type filter hook input priority 5; policy accept;
		iifname "eth0" ip saddr != 10.1.0.0/20 ip daddr 9.9.9.9 drop
	}
}
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSetChangeRead(t *testing.T) {
	netnstest.Root(t)
	var c Conn
	defer c.Close()
	tab := small()
	t.Cleanup(func() {
		if err := c.Delete(tab.Ref()); err != nil {
			t.Error(err)
		}
	})
	if got, err := c.Read(tab); err != nil || len(got) != 0 {
		t.Fatalf("Read without a table: %v, %v", got, err)
	}
	a, b, d := element(6, 80, "10.0.0.1:80"), element(17, 53, "10.0.0.2:53"), element(6, 81, "10.0.0.3:81")
	for range 2 { // twice: it replaces
		if err := c.Set(tab, Elements{"numbers": {a, b}}, true); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...Element) {
		t.Helper()
		got, err := c.Read(tab)
		if err != nil {
			t.Fatal(err)
		}
		if len(got["numbers"]) != len(want) {
			t.Errorf("%d elements, want %d", len(got["numbers"]), len(want))
		}
		for _, w := range want {
			if !slices.Contains(got["numbers"], w) {
				t.Errorf("no element %q", w)
			}
		}
	}
	check(a, b)
	if err := c.Change(tab, tab, Elements{"numbers": {a}}, Elements{"numbers": {d}}); err != nil {
		t.Fatal(err)
	}
	check(b, d)
	// A transaction that fails changes nothing, and the connection works on.
	if err := c.Change(tab, tab, Elements{"numbers": {b, a}}, nil); err == nil {
		t.Error("an element that is not there was deleted")
	}
	check(b, d)
	other := b
	other.Value = Bytes(netip.MustParseAddr("10.9.9.9"), uint16(1))
	if err := c.Change(tab, tab, nil, Elements{"numbers": {a, other}}); err == nil {
		t.Error("a key got a second value")
	}
	check(b, d)
	for range 2 {
		if err := c.Delete(tab.Ref()); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := c.Exists(tab.Ref()); ok || err != nil {
		t.Errorf("after Delete: %v, %v", ok, err)
	}
}

func TestWatcherTells(t *testing.T) {
	netnstest.Root(t)
	w, err := Watch()
	if err != nil {
		t.Fatal(err)
	}
	var c, other Conn
	defer c.Close()
	defer other.Close()
	if _, err := other.Exists(Ref{}); err != nil {
		t.Fatal(err)
	}
	tab := small(Rule{IIf("eth9"), Drop()})
	if err := c.Set(tab, nil, true); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(tab.Ref()); err != nil {
		t.Fatal(err)
	}
	seen := map[Kind]bool{}
	timeout := time.AfterFunc(10*time.Second, func() { w.Close() })
	defer timeout.Stop()
	for !seen[Rules] || !seen[Deleted] {
		events, err := w.Next()
		if err != nil {
			t.Fatalf("seen only %v: %v", seen, err)
		}
		for _, e := range events {
			if e.Table != tab.Name {
				continue
			}
			seen[e.Kind] = true
			if e.Family != IPv4 || !c.Made(e) || other.Made(e) {
				t.Errorf("%+v is said to be another's", e)
			}
		}
	}
	w.Close()
	if _, err := w.Next(); err == nil {
		t.Error("Next goes on after Close")
	}
}

func FuzzEvent(f *testing.F) {
	f.Add(uint16(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE), []byte{unix.NFPROTO_IPV4, 0, 0, 0, 7, 0, 1, 0, 'a', 'b', 0, 0})
	f.Add(uint16(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE), []byte{unix.NFPROTO_IPV4, 0, 0, 0, 200, 0, 1, 0})
	f.Add(uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		e, ok := event(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: data})
		if ok && e.Kind == Lost {
			t.Errorf("%v out of one message", e)
		}
	})
}

// list is the table as nft(8) shows it, which is a second pair of eyes.
func list(t *testing.T, tab Table) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft(8), which reads the rules back from the kernel")
	}
	out, err := exec.Command(path, "list", "table", tab.Family.String(), tab.Name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// inet is a table with all that tables are made of.
func inet(links ...string) Table {
	by := Map{Name: "by", Key: []Type{Link}, Value: []Type{Verdict}}
	tab := Table{Family: Inet, Name: "escale-nfttest", Kept: "user", Chains: []Chain{
		{Name: "user"},
		{Name: "in", Base: &Base{Type: "filter", Hook: "input", Priority: 20}, Rules: []Rule{{Jump("user")}, {IIfVerdict(by)}}},
	}}
	for _, l := range links {
		by.Fixed = append(by.Fixed, Element{Key: Bytes(l), Value: "jump from-" + l})
		tab.Chains = append(tab.Chains, Chain{Name: "from-" + l, Rules: []Rule{{NotFrom(netip.MustParsePrefix("fd00::/60")), Drop()}}})
	}
	tab.Maps = []Map{by, {Name: "set", Key: []Type{Addr6, Proto, Port}}}
	return tab
}

// Whatever stands in the kernel, Set and Change end in the table that was asked
// for, with what is the administrator's in its place.
func TestWhateverIsThere(t *testing.T) {
	netnstest.Root(t)
	var c Conn
	defer c.Close()
	a, ab, b := inet("a"), inet("a", "b"), inet("b")
	t.Cleanup(func() {
		if err := c.Delete(a.Ref(), Ref{IPv4, "escale-nfttest"}); err != nil {
			t.Error(err)
		}
	})
	shows := func(name string, want Table) {
		t.Helper()
		text := strings.Replace(want.String(), "chain user {\n", "chain user {\n\t\tip daddr 9.9.9.9 drop\n", 1)
		if got := list(t, want); got != text {
			t.Errorf("%s: the kernel holds\n%s\nwant\n%s", name, got, text)
		}
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %s", args, out)
		}
	}
	if err := c.Set(small(), nil, true); err != nil {
		t.Fatal(err)
	}
	list(t, small())
	if err := c.Set(a, nil, true, Ref{IPv4, "escale-nfttest"}); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.Exists(Ref{IPv4, "escale-nfttest"}); ok || err != nil {
		t.Errorf("the table that was to go: %v, %v", ok, err)
	}
	run("add", "rule", "inet", "escale-nfttest", "user", "ip", "daddr", "9.9.9.9", "drop")
	shows("Set", a)
	if err := c.Change(a, ab, nil, nil); err != nil {
		t.Fatal(err)
	}
	shows("one more", ab)
	if err := c.Change(ab, b, nil, nil); err != nil {
		t.Fatal(err)
	}
	shows("one less", b)
	run("flush", "chain", "inet", "escale-nfttest", "in")
	run("add", "chain", "inet", "escale-nfttest", "stranger", "{ type filter hook output priority 7; }")
	run("add", "rule", "inet", "escale-nfttest", "stranger", "jump", "from-b")
	if err := c.Set(a, nil, false); err != nil {
		t.Fatal(err)
	}
	if got := list(t, a); !strings.Contains(got, "stranger") || !strings.Contains(got, `"b" : jump from-b`) {
		t.Errorf("what an earlier engine left is gone:\n%s", got)
	}
	if err := c.Set(a, nil, true); err != nil {
		t.Fatal(err)
	}
	shows("exact", a)
	other := a // the same names for other things
	other.Maps = []Map{a.Maps[0], {Name: "set", Key: []Type{Addr4}}}
	other.Chains = append([]Chain(nil), a.Chains...)
	other.Chains[1].Base = &Base{Type: "filter", Hook: "forward", Priority: 6}
	if err := c.Set(other, nil, false); err != nil {
		t.Fatal(err)
	}
	got := list(t, other)
	for _, part := range []string{"set set {\n\t\ttype ipv4_addr\n", "hook forward priority filter + 6;", "ip daddr 9.9.9.9 drop", "iifname vmap @by"} {
		if !strings.Contains(got, part) {
			t.Errorf("other types: no %q in\n%s", part, got)
		}
	}
}

func FuzzSets(f *testing.F) {
	f.Add([]byte{unix.NFPROTO_INET, 0, 0, 0, 7, 0, 2, 0, 'a', 'b', 0, 0, 8, 0, 4, 0, 0, 0, 0, 41})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, _ = readShape(data)
		if text := verdictText(data); strings.HasPrefix(text, " ") {
			t.Errorf("verdict %q", text)
		}
	})
}
