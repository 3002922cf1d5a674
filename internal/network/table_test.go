package network

import (
	"context"
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
