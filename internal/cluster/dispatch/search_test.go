package dispatch

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// come waits until all nodes have a session with who leads, and gives how long that took.
func (w *world) come(nodes ...string) time.Duration {
	w.Helper()
	w.mu.Lock()
	d := w.d
	w.mu.Unlock()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		switch took := time.Since(begin); {
		case !slices.ContainsFunc(nodes, func(n string) bool { return !d.connected(n) }):
			return took
		case took > time.Minute:
			w.Fatal("nodes do not come")
		}
	}
}

// Nodes come to the next leader in a moment, however the one before was lost, and whoever of the other
// managers says nothing.
func TestNextLeader(t *testing.T) {
	for what, lose := range map[string]func(w *world){
		"ended":                func(w *world) { w.elect("", 0); time.Sleep(1500 * time.Millisecond) },
		"frozen":               func(w *world) { w.stand("a:1"); time.Sleep(1500 * time.Millisecond) },
		"frozen for long":      func(w *world) { w.stand("a:1"); time.Sleep(20 * time.Second) },
		"frozen, and one mute": func(w *world) { w.stand("a:1"); w.silenced("c:1"); time.Sleep(1500 * time.Millisecond) },
		"ended, and one mute":  func(w *world) { w.silenced("c:1"); w.elect("", 0); time.Sleep(1500 * time.Millisecond) },
		"elsewhere":            func(w *world) {},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				nodes := []string{"n1", "n2", "n3"}
				w.machines(nodes...)
				w.elect("a:1", 1)
				for _, n := range nodes {
					w.node(n, "")
				}
				settle()
				lose(w)
				w.elect("b:1", 2)
				if took := w.come(nodes...); took > 3*firstPause {
					t.Errorf("it took %v", took)
				}
				time.Sleep(2 * Grace)
				synctest.Wait()
				for _, n := range store.List[*cluster.Node](w.s.View()) {
					if !n.Status.Ready {
						t.Errorf("%s is taken for dead", n.ID)
					}
				}
			})
		})
	}
}

// A node that starts finds the leader, though the manager that it knew as the one takes its call and says nothing.
func TestManagerThatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.silenced("b:1") // which it asks first
		w.elect("a:1", 1)
		w.node("n1", "")
		if took := w.come("n1"); took > early+2*firstPause {
			t.Errorf("it took %v", took)
		}
	})
}

// A leader that is lost before it has said a word to a node keeps that from nobody who leads after it.
func TestLeaderLostAtOnce(t *testing.T) {
	for _, lasts := range []time.Duration{100 * time.Millisecond, time.Second, Dead + Doubt, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.machines("n1")
			w.elect("a:1", 1)
			w.node("n1", "")
			settle()
			w.silenced("c:1")
			w.elect("", 0)
			w.mu.Lock()
			w.lead, w.term = "c:1", 2 // known to all
			w.mu.Unlock()
			time.Sleep(lasts)
			w.elect("b:1", 3)
			if took := w.come("n1"); took > early+2*firstPause {
				t.Errorf("after %v it took %v", lasts, took)
			}
		})
	}
}

// A leader that has stood still and leads anew has its nodes back at once, though the manager that they would
// rather call after that says nothing.
func TestLeaderAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.elect("a:1", 1)
		w.node("n1", "")
		settle()
		w.silenced("c:1")
		w.stand("a:1")
		time.Sleep(Dead + time.Second)
		w.stand("")
		w.elect("a:1", 2)
		if took := w.come("n1"); took > 3*firstPause {
			t.Errorf("it took %v", took)
		}
	})
}

// stand lets a manager stand still; whatever it holds stays open.
func (w *world) stand(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen = addr
}

// silenced lets a manager take connections and say nothing.
func (w *world) silenced(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mute[addr] = true
}

// A leader that is slow to answer keeps its nodes as long as no other leads: they ask, and stay.
func TestSlowLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		w.mu.Lock()
		was := w.wires["n1"]
		w.mu.Unlock()
		for range 5 {
			w.stand("a:1")
			time.Sleep(Dead - 2*Beat)
			r.mu.Lock()
			searching := r.searching != nil
			r.mu.Unlock()
			if !searching {
				t.Error("it asks nobody")
			}
			w.stand("")
			time.Sleep(2 * Beat)
			synctest.Wait()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.wires["n1"] != was {
			t.Error("it has left")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.searching != nil {
			t.Error("it asks still")
		}
	})
}

// What a node is told by one that does not lead yet, though others say so, keeps it from nobody: it tries
// again, neither at once nor late.
func TestLeaderNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.elect("a:1", 1)
		w.node("n1", "")
		settle()
		w.elect("", 0)
		w.mu.Lock()
		w.lead, w.term, w.dials = "b:1", 2, 0 // known to all, and serving nobody
		w.mu.Unlock()
		time.Sleep(time.Second)
		w.mu.Lock()
		dials := w.dials
		w.mu.Unlock()
		if dials > 40 {
			t.Errorf("it has tried %d times in a second", dials)
		}
		w.elect("b:1", 2)
		if took := w.come("n1"); took > 3*firstPause {
			t.Errorf("it took %v", took)
		}
	})
}

// How long nodes have to come depends on how long the leader before was missed, and on whether others come.
func TestGrace(t *testing.T) {
	const none = -1
	for _, c := range []struct {
		silence, least, most time.Duration
	}{
		{none, Grace, Grace},
		{0, Dead, Dead},
		{400 * time.Millisecond, Dead - 400*time.Millisecond, Dead - 400*time.Millisecond},
		{1300 * time.Millisecond, Come, Come},
		{time.Hour, Come, Come},
	} {
		t.Run(fmt.Sprint(c.silence), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.machines("n1", "n2")
				w.elect("a:1", 1)
				_, end := w.node("n1", "")
				_, end2 := w.node("n2", "")
				settle()
				w.elect("", 0)
				end()
				end2()
				if c.silence >= 0 {
					w.before = func(d *Dispatcher) { d.Succeed(c.silence) }
				}
				w.elect("b:1", 2)
				time.Sleep(c.least - 10*time.Millisecond)
				if !ready(w, "n1") {
					t.Error("down before its time")
				}
				time.Sleep(c.most - c.least + 2*watched + 20*time.Millisecond)
				synctest.Wait()
				if ready(w, "n1") || ready(w, "n2") {
					t.Error("not known to be down")
				}
			})
		})
	}
}

func ready(w *world, id string) bool {
	w.Helper()
	n, err := store.Find[*cluster.Node](w.s.View(), id)
	if err != nil {
		w.Fatal(err)
	}
	return n.Status.Ready
}

// As long as nodes come, a leader that has many of them to take in waits for the others: not for ever.
func TestNodesComeSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		nodes := []string{"n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9", "none"}
		w.machines(nodes...)
		for _, n := range nodes {
			o, err := store.Find[*cluster.Node](w.s.View(), n)
			if err != nil {
				t.Fatal(err)
			}
			o = store.Copy(o)
			o.Status.Ready = true
			w.commit(store.Update(o))
		}
		w.before = func(d *Dispatcher) { d.Succeed(Dead) }
		w.elect("a:1", 1)
		begin := time.Now()
		for i, n := range nodes[:10] {
			w.node(n, "")
			settle()
			if time.Since(begin) < Grace && !ready(w, "none") {
				t.Errorf("the last one is given up when %d have come", i)
			}
			time.Sleep(coming - 100*time.Millisecond)
		}
		if time.Sleep(3 * watched); ready(w, "none") {
			t.Error("it is waited for for ever")
		}
		for _, n := range nodes[:10] {
			if !ready(w, n) {
				t.Errorf("%s has come", n)
			}
		}
	})
}
