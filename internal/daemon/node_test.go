package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestGenerics(t *testing.T) {
	for _, c := range []struct{ asked, want string }{
		{"", "map[] map[]"},
		{"ssd=3", "map[ssd:3] map[]"},
		{"gpu=a;gpu=b;ssd=0", "map[gpu:2 ssd:0] map[gpu:[a b]]"},
		{"gpu", "want KIND=NUMBER"}, {"=3", "want KIND=NUMBER"}, {"gpu=", "want KIND=NUMBER"}, {"gpu=a,b", "want KIND=NUMBER"}, {"g u=1", "want KIND=NUMBER"},
		{"ssd=-1", "less than nothing"}, {"ssd=1;ssd=2", "a kind is counted once"}, {"ssd=0;ssd=a", "a kind is counted once"}, {"ssd=a;ssd=1", "a kind is counted once"}, {"ssd=a;ssd=a", "it is there twice"},
	} {
		var asked []string
		if c.asked != "" {
			asked = strings.Split(c.asked, ";")
		}
		counts, named, err := generics(asked)
		if got := fmt.Sprint(counts, named); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s %v, want %s", c.asked, got, err, c.want)
		}
	}
}

// A node tells where it reaches to by itself, each place once, and nothing of its engine's.
func TestRoutes(t *testing.T) {
	prefixes := func(s string) (out []netip.Prefix) {
		for _, p := range strings.Fields(s) {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	got := routes(prefixes("192.0.2.7/32 192.0.2.7/24 127.0.0.1/8 172.17.0.0/16 172.17.0.1/32 10.0.1.0/24 10.0.0.0/8 ::1/128 2001:db8::7/64"), prefixes("172.17.0.0/16 10.0.1.0/25"))
	if want := "[10.0.0.0/8 192.0.2.0/24 2001:db8::/64]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// Where a node reaches to is looked at once a minute, however often it is asked.
func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reach
		n, wrong := 0, error(nil)
		look := func() ([]netip.Prefix, error) {
			n++
			return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n)}), 8)}, wrong
		}
		for _, c := range []struct {
			wait  time.Duration
			wrong error
			want  string
		}{{0, nil, "[1.0.0.0/8] 1"}, {looked, nil, "[1.0.0.0/8] 1"}, {time.Second, nil, "[2.0.0.0/8] 2"}, {2 * looked, errors.New("no"), "[2.0.0.0/8] 3"}} {
			time.Sleep(c.wait)
			wrong = c.wrong
			if got := fmt.Sprint(r.now(look), n); got != c.want {
				t.Errorf("after %s: %s, want %s", c.wait, got, c.want)
			}
		}
	})
}
