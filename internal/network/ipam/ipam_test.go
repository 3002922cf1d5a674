package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
)

func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }
func pre(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func newPool(t testing.TB, subnet, gateway string) *Pool {
	t.Helper()
	p, err := New(pre(subnet), netip.Prefix{}, addr(gateway))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNextFit(t *testing.T) {
	p := newPool(t, "172.17.0.0/16", "172.17.0.1")
	for _, want := range []string{"172.17.0.2", "172.17.0.3", "172.17.0.4"} {
		if got, err := p.Next(); err != nil || got.String() != want {
			t.Fatalf("got %v, %v, want %s", got, err, want)
		}
	}
	p.Release(addr("172.17.0.3"))
	if got, _ := p.Next(); got != addr("172.17.0.5") {
		t.Errorf("got %s: an address is reused at once", got)
	}
}

func TestExhaustion(t *testing.T) {
	p := newPool(t, "10.0.0.0/29", "10.0.0.1") // 2 to 6 are for containers
	seen := map[netip.Addr]bool{}
	for range 5 {
		a, err := p.Next()
		if err != nil || seen[a] {
			t.Fatalf("%v, %v", a, err)
		}
		seen[a] = true
	}
	if _, err := p.Next(); !errors.Is(err, ErrExhausted) {
		t.Fatalf("a full pool answers %v", err)
	}
	p.Release(addr("10.0.0.4"))
	p.Release(addr("10.0.0.4"))
	if p.Used() != 4 {
		t.Errorf("%d used after a double release, want 4", p.Used())
	}
	if a, err := p.Next(); err != nil || a != addr("10.0.0.4") {
		t.Errorf("%v, %v", a, err)
	}
}

func TestTakeRefuses(t *testing.T) {
	p := newPool(t, "10.0.0.0/24", "10.0.0.254")
	if err := p.Take(addr("10.0.0.9")); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.0.0.9", "10.0.0.0", "10.0.0.255", "10.0.0.254"} {
		if err := p.Take(addr(a)); !errors.Is(err, ErrTaken) {
			t.Errorf("Take(%s): %v", a, err)
		}
	}
	if err := p.Take(addr("10.0.1.9")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an address of another subnet: %v", err)
	}
	for _, a := range []string{"10.0.0.0", "10.0.0.255", "10.0.0.254", "10.0.1.9"} {
		p.Release(addr(a))
	}
	if p.Used() != 1 {
		t.Errorf("%d used, want 1", p.Used())
	}
	if err := p.Take(addr("10.0.0.254")); !errors.Is(err, ErrTaken) {
		t.Errorf("the gateway could be released: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct{ subnet, gateway string }{{"10.0.0.0/32", "10.0.0.0"}, {"10.0.0.0/4", "10.0.0.1"}, {"10.0.0.0/24", "10.0.1.1"}, {"fd00::/127", "fd00::1"}, {"fd00::/64", "10.0.0.1"}} {
		if _, err := New(pre(c.subnet), netip.Prefix{}, addr(c.gateway)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		used []string
		want string
	}{
		{nil, "172.17.0.0/16"},
		{[]string{"172.17.5.0/24"}, "172.18.0.0/16"},
		{[]string{"172.16.0.0/12"}, "192.168.0.0/20"},
		{[]string{"172.16.0.0/12", "192.168.0.0/24", "192.168.20.7/32"}, "192.168.32.0/20"},
		{[]string{"172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/16"}, "172.21.0.0/16"},
		{[]string{"172.16.0.0/12", "192.168.0.0/16"}, ""},
	} {
		var used []netip.Prefix
		for _, u := range c.used {
			used = append(used, pre(u))
		}
		got, err := Choose(Default(), used)
		if c.want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v: %v, %v", c.used, got, err)
			}
			continue
		}
		if err != nil || got != pre(c.want) {
			t.Errorf("%v: %v, %v, want %s", c.used, got, err, c.want)
		}
	}
	if _, err := Choose([]Range{{Base: pre("10.0.0.0/16"), Size: 8}}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a subnet larger than its range: %v", err)
	}
}

func TestRange(t *testing.T) {
	p, err := New(pre("10.0.0.0/16"), pre("10.0.5.0/30"), addr("10.0.5.1"))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.First(); got != addr("10.0.5.0") {
		t.Errorf("the first is %s", got)
	}
	for _, who := range []string{"a", "b", "a"} {
		p.Keep(addr("10.0.5.2"), who)
	}
	if err := p.Take(addr("10.0.9.9")); err != nil {
		t.Errorf("an address outside the range, asked for: %v", err)
	}
	for _, want := range []string{"10.0.5.0", "10.0.5.3"} { // .1 is the gateway's, .2 is kept
		if got, err := p.Next(); err != nil || got != addr(want) {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	if a, err := p.Next(); !errors.Is(err, ErrExhausted) {
		t.Errorf("a kept address was given out: %v, %v", a, err)
	}
	if err := p.Take(addr("10.0.5.2")); err != nil {
		t.Errorf("a kept address, asked for: %v", err)
	}
	p.Release(addr("10.0.5.2"))
	for range 2 {
		p.Unkeep(addr("10.0.5.2"), "b")
		p.Unkeep(addr("10.0.5.2"), "nobody")
	}
	if a, err := p.Next(); !errors.Is(err, ErrExhausted) {
		t.Errorf("an address that is kept for another: %v, %v", a, err)
	}
	p.Unkeep(addr("10.0.5.2"), "a")
	if a, err := p.Next(); err != nil || a != addr("10.0.5.2") {
		t.Errorf("%v, %v", a, err)
	}
	if _, err := New(pre("10.0.0.0/16"), pre("10.1.0.0/24"), addr("10.0.0.1")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a range outside its subnet: %v", err)
	}
}

func TestVersion6(t *testing.T) {
	p := newPool(t, "fd00:1::/64", "fd00:1::1")
	for _, want := range []string{"fd00:1::2", "fd00:1::3"} {
		if got, err := p.Next(); err != nil || got != addr(want) {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	if err := p.Take(addr("fd00:1::ffff:ffff:ffff:ffff")); err != nil {
		t.Errorf("the last address: %v", err)
	}
	if err := p.Take(addr("fd00:1::")); !errors.Is(err, ErrTaken) {
		t.Errorf("the address of all routers: %v", err)
	}
	r := Local("one")
	if r != Local("one") || r == Local("two") || !pre("fd00::/8").Contains(r.Base.Addr()) || r.Base.Bits() != 48 || r.Size != 64 {
		t.Errorf("local range %v", r)
	}
	first, err := Choose([]Range{r}, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Choose([]Range{r}, []netip.Prefix{first})
	if err != nil || second.Overlaps(first) || second.Addr() != Last(first).Next() {
		t.Errorf("subnets %v and %v, %v", first, second, err)
	}
}

// FuzzPool plays random histories against a plain set.
func FuzzPool(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 2, 1, 3, 0, 0, 2, 9})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := newPool(t, "10.0.0.0/28", "10.0.0.3")
		model := map[netip.Addr]bool{}
		at := func(b byte) netip.Addr { return addr(fmt.Sprintf("10.0.0.%d", b%20)) }
		usable := func(a netip.Addr) bool {
			return pre("10.0.0.0/28").Contains(a) && a != addr("10.0.0.0") && a != addr("10.0.0.3") && a != addr("10.0.0.15")
		}
		for i := 0; i < len(ops); i++ {
			switch op := ops[i] % 3; {
			case op == 0:
				a, err := p.Next()
				if (err != nil) != (len(model) == 13) {
					t.Fatalf("Next with %d taken: %v", len(model), err)
				}
				if err == nil && (model[a] || !usable(a)) {
					t.Fatalf("Next gave %s", a)
				}
				if err == nil {
					model[a] = true
				}
			case i+1 < len(ops):
				i++
				a := at(ops[i])
				if op == 1 {
					err := p.Take(a)
					if (err == nil) != (usable(a) && !model[a]) {
						t.Fatalf("Take(%s): %v", a, err)
					}
					if err == nil {
						model[a] = true
					}
				} else {
					p.Release(a)
					delete(model, a)
				}
			}
			if p.Used() != len(model) {
				t.Fatalf("%d used, want %d", p.Used(), len(model))
			}
		}
	})
}
