package simulation

import (
	"fmt"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/scheduler"
	"escale.dev/escale/internal/cluster/store"
)

// A leader that comes while nodes are lost, which it does not know yet, puts what is new on those
// that have come to it, and gets it to run before it knows.
func TestNewLeader(t *testing.T) {
	const grace = 4500 * time.Millisecond
	for seed := range uint64(20) {
		w := newWorld(t, seed, 0)
		w.join("a1", "b1", "c1", "d1", "e1")
		begin, comes := w.now, map[string]time.Duration{}
		for i, n := range []string{"a1", "b1", "c1", "d1", "e1"} {
			comes[n] = time.Duration(w.rng.IntN(900)) * time.Millisecond
			if i == int(seed%5) {
				w.away, comes[n] = n, time.Hour
			}
		}
		for i, l := range w.loops {
			if _, ok := l.(scheduler.Loop); ok {
				w.loops[i] = scheduler.Loop{Heard: func(node string) bool { return w.now.Sub(begin) >= min(comes[node], grace) }}
			}
		}
		w.watch = func() {
			for _, task := range store.List[*cluster.Task](w.s.View()) {
				if task.Node != "" && w.now.Sub(begin) < comes[task.Node] {
					t.Fatalf("seed %d: after %s a task is on %s, which nobody has heard\n%s", seed, w.now.Sub(begin), task.Node, w.describe())
				}
			}
		}
		pass := func(until func() bool) {
			for !until() && w.now.Sub(begin) < grace-100*time.Millisecond {
				for range 10 {
					for _, l := range w.loops {
						for _, key := range l.All(w.s.View()) {
							w.decide(l, key)
						}
					}
					for _, task := range store.List[*cluster.Task](w.s.View()) {
						w.act(task)
					}
				}
				w.now = w.now.Add(50 * time.Millisecond)
			}
		}
		w.service("web", spec(good, 1, 3))
		pass(func() bool { up, _ := w.running("web"); return up[1] == 3 })
		if up, _ := w.running("web"); up[1] != 3 || w.now.Sub(begin) > time.Second {
			t.Fatalf("seed %d: after %s %v run\n%s", seed, w.now.Sub(begin), up, w.describe())
		}
		// What can be on the lost one alone waits until that is known, and is told then.
		alone := spec(good, 1, 1)
		alone.Task.Placement.Constraints = []string{"node.id == " + w.away}
		w.service("alone", alone)
		pass(func() bool { return false })
		w.node(w.away, func(n *cluster.Node) { n.Status.Ready = false })
		w.settle()
		s, err := store.Named[*cluster.Service](w.s.View(), "alone")
		if err != nil {
			t.Fatal(err)
		}
		task := store.List[*cluster.Task](w.s.View(), store.Owner(s.ID))[0]
		if want := "no suitable node (node not available on 1 node; scheduling constraints not satisfied on 4 nodes)"; task.Status.Err != want {
			t.Fatalf("seed %d: %s", seed, fmt.Sprintf("%q, want %q", task.Status.Err, want))
		}
	}
}
