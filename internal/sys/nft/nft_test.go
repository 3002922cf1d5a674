package nft

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

var numbers = Map{Name: "numbers", Key: []Type{Proto, Port}, Value: []Type{Addr, Port}}

func small(rules ...Rule) Table {
	return Table{Name: "escale-nfttest", Maps: []Map{numbers}, Chains: []Chain{
		{Name: "in", Base: &Base{Type: "filter", Hook: "input", Priority: 5}, Rules: rules},
	}}
}

func element(proto uint8, port uint16, to string) Element {
	a := netip.MustParseAddrPort(to)
	return Element{Key: Bytes(proto, port), Value: Bytes(a.Addr(), a.Port())}
}

func TestFieldsAreTheReverseOfBytes(t *testing.T) {
	want := []any{netip.MustParseAddr("10.1.2.3"), uint8(17), uint16(51234)}
	got, ok := Fields(Bytes(want...), Addr, Proto, Port)
	if !ok || !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, ok := Fields("abc", Addr); ok {
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

func TestReplaceChangeRead(t *testing.T) {
	netnstest.Root(t)
	var c Conn
	defer c.Close()
	tab := small()
	t.Cleanup(func() {
		if err := c.Delete(tab.Name); err != nil {
			t.Error(err)
		}
	})
	if got, err := c.Read(tab); err != nil || len(got) != 0 {
		t.Fatalf("Read without a table: %v, %v", got, err)
	}
	a, b, d := element(6, 80, "10.0.0.1:80"), element(17, 53, "10.0.0.2:53"), element(6, 81, "10.0.0.3:81")
	for range 2 { // twice: it replaces
		if err := c.Replace(tab, Elements{"numbers": {a, b}}); err != nil {
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
	if err := c.Change(tab, Elements{"numbers": {a}}, Elements{"numbers": {d}}); err != nil {
		t.Fatal(err)
	}
	check(b, d)
	// A transaction that fails changes nothing, and the connection works on.
	if err := c.Change(tab, Elements{"numbers": {b, a}}, nil); err == nil {
		t.Error("an element that is not there was deleted")
	}
	check(b, d)
	other := b
	other.Value = Bytes(netip.MustParseAddr("10.9.9.9"), uint16(1))
	if err := c.Change(tab, nil, Elements{"numbers": {a, other}}); err == nil {
		t.Error("a key got a second value")
	}
	check(b, d)
	for range 2 {
		if err := c.Delete(tab.Name); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := c.Exists(tab.Name); ok || err != nil {
		t.Errorf("after Delete: %v, %v", ok, err)
	}
}

func TestWatcherTells(t *testing.T) {
	netnstest.Root(t)
	w, err := Watch()
	if err != nil {
		t.Fatal(err)
	}
	var c Conn
	defer c.Close()
	tab := small(Rule{IIf("eth9"), Drop()})
	if err := c.Replace(tab, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(tab.Name); err != nil {
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
			if e.Table == tab.Name {
				seen[e.Kind] = true
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
