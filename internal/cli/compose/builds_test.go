package compose

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What does not need another is done at once, as far as it may; what needs others, after
// them.
func TestInOrder(t *testing.T) {
	needs := map[string][]string{"d": {"a", "c"}, "e": {"d", "not there"}}
	for limit, want := range map[int]struct {
		most int
		took time.Duration
	}{1: {1, 5}, 2: {2, 4}, 9: {3, 3}} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			now, most := 0, 0
			var done []string
			begun := time.Now()
			err := inOrder(t.Context(), []string{"a", "b", "c", "d", "e"}, func(n string) []string { return needs[n] }, limit, func(_ context.Context, name string) error {
				mu.Lock()
				now++
				most = max(most, now)
				for _, n := range needs[name] {
					if n != "not there" && !slices.Contains(done, n) {
						t.Errorf("%s before %s", name, n)
					}
				}
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				defer mu.Unlock()
				now--
				done = append(done, name)
				return nil
			})
			if took := time.Since(begun) / time.Second; err != nil || most != want.most || took > want.took || len(done) != 5 {
				t.Errorf("limit %d: %v; %d at once, in %d s, done %v", limit, err, most, took, done)
			}
		})
	}
}

// The first failure calls off the rest, and is what is told.
func TestInOrderFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("no way")
		var mu sync.Mutex
		var begun []string
		err := inOrder(t.Context(), []string{"a", "b", "c"}, func(n string) []string { return map[string][]string{"c": {"a"}}[n] }, 9, func(ctx context.Context, name string) error {
			mu.Lock()
			begun = append(begun, name)
			mu.Unlock()
			if name == "a" {
				time.Sleep(time.Second)
				return bad
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if slices.Sort(begun); err != bad || !slices.Equal(begun, []string{"a", "b"}) {
			t.Errorf("%v, begun %v", err, begun)
		}
	})
}

// Lines of several stay whole, and say whose they are.
func TestMarked(t *testing.T) {
	var out bytes.Buffer
	one := new(sync.Mutex)
	a, b := &marked{to: &out, one: one, before: "a | "}, &marked{to: &out, one: one}
	for _, text := range []string{"#1 be", "gin\n\n#1 ", "end"} {
		for _, l := range []*marked{a, b} {
			if _, err := l.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.end()
	b.end()
	if got := strings.Split(out.String(), "\n"); !slices.Equal(got, []string{"a | #1 begin", "#1 begin", "", "a | #1 end", "#1 end", ""}) {
		t.Errorf("%q", got)
	}
}
