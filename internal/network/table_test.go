package network

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// Who removes a network that another removes waits until that is over: a name that is
// then taken for another network is free, and that other one stays.
func TestRemovedByTwo(t *testing.T) {
	for _, c := range []struct {
		name string
		over func(t *table, a *attached)
		want func(err error) bool // nil: it becomes the second's to remove
	}{
		{"gone", (*table).drop, errdefs.IsNotFound},
		{"exchanged", func(t *table, a *attached) {
			t.drop(a)
			t.put(&attached{info: Info{Name: "lan", ID: "2"}})
		}, errdefs.IsNotFound},
		{"stays", (*table).stay, nil},
		{"never over", func(*table, *attached) {}, errdefs.IsUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				tab := newTable()
				tab.put(&attached{info: Info{Name: "lan", ID: "1"}})
				a, err := tab.leave(ctx, "lan")
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				go func() {
					time.Sleep(time.Second)
					c.over(tab, a)
				}()
				second, err := tab.leave(ctx, "lan")
				if c.want == nil && (err != nil || second != a) || c.want != nil && !c.want(err) {
					t.Errorf("%v, %v", second, err)
				}
				if time.Since(begun) < time.Second {
					t.Errorf("answered after %s", time.Since(begun))
				}
				if b, err := tab.find("lan"); c.name == "exchanged" && (err != nil || b.going) {
					t.Errorf("the other one: %+v, %v", b, err)
				}
			})
		})
	}
}

// Who asks for an address of a container that has ended gets it when all is over, not
// sooner; nobody waits for one of a container that runs, nor for ever.
func TestAddressOfWhoLeaves(t *testing.T) {
	ep := Endpoint{Network: "lan", NetworkID: "1", EndpointID: "e", IP: "10.1.0.9", IP6: "fd00::9"}
	v4, v6 := netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00::9")
	for _, c := range []struct {
		name  string
		addr  netip.Addr
		ended bool // the container
		over  time.Duration
		cut   time.Duration
		want  time.Duration
	}{
		{"runs", v4, false, time.Second, time.Minute, 0},
		{"another", netip.MustParseAddr("10.1.0.8"), true, time.Second, time.Minute, 0},
		{"none asked for", netip.Addr{}, true, time.Second, time.Minute, 0},
		{"ended", v4, true, time.Second, time.Minute, 2 * time.Second},
		{"ended, IPv6", v6, true, time.Second, time.Minute, 2 * time.Second},
		{"cut", v4, true, time.Second, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"never over", v4, true, time.Hour, time.Minute, leavePatience},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.cut)
				defer cancel()
				tab := newTable()
				a := &attached{info: Info{Name: "lan", ID: "1"}, containers: map[string]Endpoint{"c": ep}}
				tab.put(a)
				if c.ended {
					tab.part("c", []Endpoint{ep})
				}
				go func() {
					time.Sleep(c.over)
					if !tab.forget("c", ep) || tab.forget("c", ep) {
						t.Error("its addresses are not to be given back once")
					}
					time.Sleep(time.Second) // somebody gives them back
					tab.released(a, ep)
				}()
				begun := time.Now()
				err := tab.await(ctx, a, netip.Addr{}, c.addr)
				if took := time.Since(begun); took != c.want || (err != nil) != (c.want == c.cut) {
					t.Errorf("%v after %s, want %s", err, took, c.want)
				}
				time.Sleep(2 * time.Hour)
				tab.mu.Lock()
				defer tab.mu.Unlock()
				if len(a.leaving) != 0 {
					t.Errorf("%v is left", a.leaving)
				}
			})
		})
	}
}
