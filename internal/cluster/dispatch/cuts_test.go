package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/storetest"
)

// history is what the store has had of tasks, and what nodes were told that it has.
type history struct {
	mu      sync.Mutex
	written map[string]bool // "task message"
	acked   []string
}

// watch notes all that is written of tasks.
func (h *history) watch(ctx context.Context, w *world, done chan<- struct{}) {
	defer close(done)
	watch, err := w.s.Watch(0, cluster.KindTask)
	for err == nil {
		var list []store.Commit
		list, err = watch.Next(ctx)
		h.mu.Lock()
		for _, c := range list {
			for _, e := range c.Events {
				if t, ok := e.New.(*cluster.Task); ok {
					h.written[t.ID+" "+t.Status.Message] = true
				}
			}
		}
		h.mu.Unlock()
	}
	if ctx.Err() == nil {
		w.Error(err)
	}
}

// work takes a node's tasks forward, as an agent does, until ctx ends.
func (h *history) work(ctx context.Context, node string, r *Remote, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	next := map[cluster.TaskState]cluster.TaskState{
		cluster.TaskAssigned: cluster.TaskAccepted, cluster.TaskAccepted: cluster.TaskPreparing, cluster.TaskPreparing: cluster.TaskReady,
		cluster.TaskReady: cluster.TaskStarting, cluster.TaskStarting: cluster.TaskRunning, cluster.TaskRunning: cluster.TaskFailed,
	}
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		list := store.List[*cluster.Task](r.View(), store.OnNode(node))
		if len(list) == 0 {
			continue
		}
		t := store.Copy(list[rng.IntN(len(list))])
		to, ok := next[t.Status.State]
		if t.Desired.Stops() && !t.Status.State.Ended() {
			to, ok = cluster.TaskShutdown, true
		}
		if !ok || to == cluster.TaskFailed && rng.IntN(4) > 0 {
			continue
		}
		message := fmt.Sprintf("%s %d", node, n)
		t.Status.State, t.Status.Message = to, message
		if _, err := r.Commit(ctx, store.Update(t)); err == nil {
			h.mu.Lock()
			h.acked = append(h.acked, t.ID+" "+message)
			h.mu.Unlock()
		}
	}
}

// disturb changes the cluster's store and cuts wires.
func (w *world) disturb(rng *rand.Rand, nodes []string, term *uint64) {
	ids := store.List[*cluster.Task](w.s.View())
	switch n := rng.IntN(12); {
	case n < 4:
		s, _ := store.Find[*cluster.Service](w.s.View(), fmt.Sprintf("s%d", rng.IntN(4)))
		w.task(fmt.Sprintf("t%d", rng.Uint64()), s, nodes[rng.IntN(len(nodes))], uses(fmt.Sprintf("x%d", rng.IntN(3))))
	case n < 6 && len(ids) > 0:
		storetest.Change(w, w.s, ids[rng.IntN(len(ids))].ID, func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
	case n == 6 && len(ids) > 0:
		for {
			t, err := store.Find[*cluster.Task](w.s.View(), ids[0].ID)
			if err != nil {
				return
			}
			if _, err := w.s.Commit(w.Context(), store.Delete(t)); err == nil {
				return
			}
		}
	case n == 7:
		storetest.Change(w, w.s, fmt.Sprintf("s%d", rng.IntN(4)), func(s *cluster.Service) {
			s.Spec.Number++
			s.Spec.Ports = nil
			if rng.IntN(2) == 0 {
				s.Spec.Ports = []cluster.Port{{Target: 80, Published: 80}}
			}
		})
	case n == 8:
		storetest.Change(w, w.s, fmt.Sprintf("id-x%d", rng.IntN(3)), func(s *cluster.Secret) { s.Spec.Data = []byte(fmt.Sprint(rng.Uint64())) })
	case n == 9:
		w.cut(nodes[rng.IntN(len(nodes))])
	case n == 10:
		w.silence(nodes[rng.IntN(len(nodes))], rng.IntN(2) == 0)
	case n == 11 && rng.IntN(10) == 0:
		*term++
		w.elect([]string{"a:1", "b:1"}[rng.IntN(2)], *term)
	}
}

// Whatever is cut and whoever leads: what a node was told is written was written, and in the
// end every node has exactly what one has that comes new.
func TestCuts(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { cuts(t, seed) })
		})
	}
}

func cuts(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	nodes := []string{"n1", "n2", "n3", "n4"}
	w.machines(nodes...)
	for i := range 3 {
		w.secret(fmt.Sprintf("x%d", i))
	}
	for i := range 4 {
		w.service(fmt.Sprintf("s%d", i))
	}
	term := uint64(1)
	w.elect("a:1", term)
	h := &history{written: map[string]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go h.watch(ctx, w, watched)
	work, rest := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	remotes := map[string]*Remote{}
	for i, n := range nodes {
		r, _ := w.node(n, "")
		remotes[n] = r
		workers.Go(func() { h.work(work, n, r, seed*100+uint64(i)) })
	}
	for range 800 {
		time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		w.disturb(rng, nodes, &term)
	}
	for _, n := range nodes {
		w.silence(n, false)
	}
	time.Sleep(3 * lastPause)
	rest()
	workers.Wait()
	time.Sleep(Grace)
	synctest.Wait()
	cancel()
	<-watched
	for _, a := range h.acked {
		if !h.written[a] {
			t.Errorf("%s: it was said to be written, and is not", a)
		}
	}
	if len(h.acked) < 100 {
		t.Errorf("only %d were written: there was no work", len(h.acked))
	}
	text := func(r *Remote) string {
		var b strings.Builder
		if err := store.Save(&b, r.View()); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(b.String(), "\n") // after the revision, which is the node's own
		return rest
	}
	for _, n := range nodes {
		if !remotes[n].Connected() {
			t.Errorf("%s is not connected", n)
		}
		r, _ := w.node(n, "") // in its place
		settle()
		old, now := strings.Split(text(remotes[n]), "\n"), strings.Split(text(r), "\n")
		for what, c := range map[string][2][]string{"has": {old, now}, "has not": {now, old}} {
			for _, line := range c[0] {
				if !slices.Contains(c[1], line) && !strings.Contains(line, `"ID":"`+n+`"`) { // itself has been written anew
					t.Errorf("unlike one that comes new %s %s %.400s", n, what, line)
				}
			}
		}
	}
}

// Any bytes are read as a kept view, and any message of a manager or a node is taken or
// refused, and leaves a view that can be written.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"Format":1,"Node":"n1","Term":3,"Whole":true,"Objects":[{"Kind":"task","Print":4,"Raw":{"ID":"t1","Node":"n1"}}]}`))
	f.Add([]byte(`{"Term":3,"Objects":[{"Kind":"task","Print":4,"Raw":{"ID":"t1","Node":"n1"}}],"Gone":[{"Kind":"task","ID":"t1"},{"Kind":"task","ID":"t2"}],"Synced":true}`))
	f.Add([]byte(`{"Seq":3,"Reports":[{"Task":"t1","Status":{"State":"running"}}],"Node":{"Ready":true}}`))
	f.Add([]byte(`{"Seq":4,"Reports":[{"Task":"t1","Halted":true}]}`))
	f.Add([]byte(`{"Gone":[{"Kind":"x","ID":""}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if k, writes, err := parseKept(raw); err == nil && k.Node == "n1" {
			if err := store.NewState().Fill(1, writes); err != nil {
				t.Errorf("a view that was read: %v", err)
			}
		}
		var d Down
		if decode(raw, &d) == nil {
			r, err := Open(Config{Node: "n1", Log: quiet})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				_ = r.take([]Down{d}) // refused or not
			}
			if err := store.Save(new(strings.Builder), r.View()); err != nil {
				t.Error(err)
			}
		}
		var up Up
		if decode(raw, &up) == nil {
			state := store.NewState()
			g := state.Stage()
			_, err := g.Add([]store.Change{
				store.Create(&cluster.Node{Meta: cluster.Meta{ID: "n1"}}), store.Create(&cluster.Task{Meta: cluster.Meta{ID: "t1"}, Node: "n1", Status: cluster.TaskStatus{State: cluster.TaskAssigned}}),
				store.Create(&cluster.Task{Meta: cluster.Meta{ID: "t2"}, Node: "n2", Status: cluster.TaskStatus{State: cluster.TaskAssigned}}),
			})
			if err != nil {
				t.Fatal(err)
			}
			g.Apply()
			w := writing{v: state.View(), at: time.Now(), objects: map[string]cluster.Object{}}
			if w.add(job{node: "n1", reports: up.Reports, status: up.Node}) != nil {
				return
			}
			for _, c := range w.changes {
				if id := c.Object.Base().ID; id != "n1" && id != "t1" {
					t.Errorf("it writes %s", id)
				}
			}
			g = state.Stage()
			if _, err := g.Add(w.changes); err != nil {
				t.Errorf("what was let through: %v", err)
			}
		}
	})
}

func decode(raw []byte, to any) error { return json.Unmarshal(raw, to) }
