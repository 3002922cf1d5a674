package overlay

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A kernel that encrypts is asked once, another one again after a while.
func TestAbility(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		no := errors.New("no")
		answer := no
		a := ability{probe: func() error { asked++; return answer }}
		want := func(when string, err error, n int) {
			t.Helper()
			if got := a.now(); got != err || asked != n {
				t.Errorf("%s: %v, asked %d times; want %v, %d", when, got, asked, err, n)
			}
		}
		want("at first", no, 1)
		answer = nil // somebody loads a module
		want("at once", no, 1)
		time.Sleep(2 * time.Minute)
		want("later", nil, 2)
		answer = no
		time.Sleep(time.Hour)
		want("once it was yes", nil, 2)
	})
}

// What is encrypted fits into packets between hosts, and one byte more would not.
func TestSealedMTU(t *testing.T) {
	for _, family := range []struct{ header, overhead int }{{20, overhead4}, {40, overhead6}} {
		for link := 1280; link < 1600; link++ {
			long := func(inner int) int {
				carried := 8 + 8 + 14 + inner + 2 // UDP, VXLAN, the frame's header, ESP's trailer
				return family.header + 8 + 8 + (carried+3)/4*4 + 16
			}
			mtu := sealedMTU(link - family.overhead)
			if long(mtu) > link || long(mtu+1) <= link {
				t.Errorf("by a link of %d: %d inside are %d outside, and one more %d", link, mtu, long(mtu), long(mtu+1))
			}
		}
	}
	if v4, v6 := sealedMTU(1500-overhead4), sealedMTU(1500-overhead6); v4 != 1416 || v6 != 1396 {
		t.Errorf("of 1500: %d over IPv4, %d over IPv6", v4, v6)
	}
}
