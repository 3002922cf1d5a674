package simulation

import (
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// What a client has stopped is left so, however long, and is replaced by nothing; the
// others of its service are none the worse for it. Started again, all is as before.
func TestHalted(t *testing.T) {
	w := newWorld(t, 5, 2)
	w.service("web", spec(good, 1, 4))
	w.settle()
	before := map[string]bool{}
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		before[task.ID] = true
		w.halt(task, task.Slot <= 2)
	}
	w.settle()
	w.now = w.now.Add(24 * time.Hour)
	w.settle()
	if up, live := w.running("web"); up[1] != 2 || live != 4 {
		t.Fatalf("%v are up of %d\n%s", up, live, w.describe())
	}
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		if task.Slot == 3 {
			w.status(task, cluster.TaskFailed, false) // a fault beside it is healed
		}
	}
	w.settle()
	if up, live := w.running("web"); up[1] != 2 || live != 4 {
		t.Fatalf("after a fault %v are up of %d\n%s", up, live, w.describe())
	}
	w.resume()
	w.settle()
	up, live := w.running("web")
	if up[1] != 4 || live != 4 {
		t.Fatalf("started again, %v are up of %d\n%s", up, live, w.describe())
	}
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		if !before[task.ID] && task.Slot <= 2 {
			t.Errorf("place %d has another task", task.Slot)
		}
	}
}

// A new specification of a service whose tasks are stopped takes their places; scaling
// it down and removing it do not wait for them.
func TestHaltedGivesWay(t *testing.T) {
	w := newWorld(t, 6, 1)
	w.service("web", spec(good, 1, 3))
	w.settle()
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		w.halt(task, true)
	}
	w.settle()
	w.change("web", func(s *cluster.ServiceSpec) { s.Task.Force++ })
	w.settle()
	if up, live := w.running("web"); up[2] != 3 || live != 3 {
		t.Fatalf("%v are up of %d\n%s", up, live, w.describe())
	}
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		w.halt(task, true)
	}
	w.change("web", func(s *cluster.ServiceSpec) { s.Mode.Replicated.Replicas = 1 })
	w.settle()
	if up, live := w.running("web"); len(up) != 0 || live != 1 {
		t.Fatalf("scaled down, %v are up of %d\n%s", up, live, w.describe())
	}
	o, err := store.Named[*cluster.Service](w.s.View(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.commit(store.Delete(o))
	w.settle()
	if left := store.List[*cluster.Task](w.s.View()); len(left) != 0 {
		t.Errorf("%d tasks are left\n%s", len(left), w.describe())
	}
}
