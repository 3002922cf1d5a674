package simulation

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
)

// A service comes up, is scaled, loses tasks, and goes.
func TestReplicas(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.service("web", spec(good, 1, 5))
	w.settle()
	want := func(n int) {
		t.Helper()
		if up, live := w.running("web"); up[1] != n || live != n {
			t.Fatalf("%d up, %d live, want %d\n%s", up[1], live, n, w.describe())
		}
	}
	want(5)
	for _, n := range []uint64{250, 3, 0, 4} {
		w.change("web", func(s *cluster.ServiceSpec) { s.Mode.Replicated.Replicas = n })
		w.settle()
		want(int(n))
	}
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		if task.Status.State == cluster.TaskRunning {
			w.status(task, cluster.TaskFailed, false)
		}
	}
	w.settle()
	want(4)
	o, err := store.Named[*cluster.Service](w.s.View(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.commit(store.Delete(o))
	w.settle()
	if left := store.List[*cluster.Task](w.s.View()); len(left) != 0 {
		t.Errorf("%d tasks of a service that has gone", len(left))
	}
}

// What may be missing during an update is what its Rollout allows, and no more.
func TestUpdateKeepsTheServiceUp(t *testing.T) {
	for _, c := range []struct {
		startFirst   bool
		parallelism  uint64
		fewest, most int
	}{{false, 1, 4, 5}, {false, 2, 3, 5}, {true, 1, 5, 6}, {true, 2, 5, 7}, {false, 0, 0, 5}, {true, 0, 5, 10}} {
		t.Run(fmt.Sprintf("startFirst=%t,parallelism=%d", c.startFirst, c.parallelism), func(t *testing.T) {
			for seed := range uint64(20) {
				w := newWorld(t, seed, 2)
				s := spec(good, 1, 5)
				s.Update = &cluster.Rollout{Parallelism: c.parallelism, StartFirst: c.startFirst, Delay: 2 * time.Second}
				w.service("web", s)
				w.settle()
				w.watch = func() {
					up, _ := w.running("web")
					if n := up[1] + up[2]; n < c.fewest || n > c.most {
						t.Fatalf("seed %d: %d are up, %d to %d should be\n%s", seed, n, c.fewest, c.most, w.describe())
					}
				}
				w.change("web", func(s *cluster.ServiceSpec) { s.Task.Force++ })
				for range 50 {
					w.some()
					for _, task := range store.List[*cluster.Task](w.s.View()) {
						if w.rng.IntN(3) == 0 {
							w.act(task)
						}
					}
					w.now = w.now.Add(time.Duration(w.rng.IntN(500)) * time.Millisecond)
				}
				w.settle()
				if up, _ := w.running("web"); up[2] != 5 || w.rollout("web") != cluster.UpdateCompleted {
					t.Fatalf("seed %d: %v %s\n%s", seed, up, w.rollout("web"), w.describe())
				}
			}
		})
	}
}

// A spec that fails is paused, or goes back by itself, and what was there stays up.
func TestFailingUpdate(t *testing.T) {
	for _, image := range []string{broken, missing, ill} {
		for _, startFirst := range []bool{false, true} {
			for _, action := range []cluster.FailureAction{cluster.FailurePause, cluster.FailureRollback, cluster.FailureContinue} {
				t.Run(fmt.Sprintf("%s,startFirst=%t,%s", image, startFirst, action), func(t *testing.T) {
					w := newWorld(t, 7, 1)
					s := spec(good, 1, 4)
					s.Task.Restart.Attempts = 3
					s.Update = &cluster.Rollout{Parallelism: 1, StartFirst: startFirst, OnFailure: action, Monitor: 10 * time.Second}
					w.service("web", s)
					w.settle()
					w.change("web", func(s *cluster.ServiceSpec) { s.Task.Container = &container.Config{Image: image} })
					w.settle()
					up, _ := w.running("web")
					want, least := cluster.UpdatePaused, 3
					switch action {
					case cluster.FailureRollback:
						want, least = cluster.RollbackCompleted, 4
					case cluster.FailureContinue:
						want, least = w.rollout("web"), 0 // it goes through with it, to the bitter end
					}
					if startFirst {
						least = 4 // what is not up takes nobody's place
					}
					if up[1] < least || w.rollout("web") != want {
						t.Fatalf("%v are up, want %d of 1; %s, want %s\n%s", up, least, w.rollout("web"), want, w.describe())
					}
				})
			}
		}
	}
}

// Whatever happens, in whatever order: once it rests, what is is what was asked.
func TestHistories(t *testing.T) {
	histories := uint64(100)
	if n, err := strconv.ParseUint(os.Getenv("ESCALE_HISTORIES"), 10, 64); err == nil {
		histories = n
	}
	for seed := range histories {
		w := newWorld(t, seed, 1+int(seed%3))
		names := []string{"a", "b"}
		for _, n := range names {
			s := spec(good, 1, 1+uint64(w.rng.IntN(4)))
			s.Update = &cluster.Rollout{Parallelism: uint64(w.rng.IntN(3)), StartFirst: w.rng.IntN(2) == 0, OnFailure: []cluster.FailureAction{cluster.FailurePause, cluster.FailureRollback, cluster.FailureContinue}[w.rng.IntN(3)]}
			w.service(n, s)
		}
		w.watch = func() { w.placesAreHeld(seed) }
		for range 60 {
			w.step(names)
		}
		for _, n := range names {
			w.change(n, func(s *cluster.ServiceSpec) {
				s.Task.Container = &container.Config{Image: good}
				s.Task.Force++
			})
		}
		w.settle()
		for _, n := range names {
			o, err := store.Named[*cluster.Service](w.s.View(), n)
			if err != nil {
				t.Fatal(err)
			}
			up, live := w.running(n)
			want := int(o.Spec.Mode.Replicated.Replicas)
			if up[o.Spec.Number] != want || live != want {
				t.Fatalf("seed %d: of %s %v are up and %d live, want %d of number %d\n%s", seed, n, up, live, want, o.Spec.Number, w.describe())
			}
		}
		for _, task := range store.List[*cluster.Task](w.s.View()) {
			if task.Desired == cluster.TaskRemove {
				t.Fatalf("seed %d: a task that is to be removed stays", seed)
			}
		}
	}
}

// step is something that happens.
func (w *world) step(names []string) {
	tasks := store.List[*cluster.Task](w.s.View())
	name := names[w.rng.IntN(len(names))]
	switch w.rng.IntN(12) {
	case 0:
		w.change(name, func(s *cluster.ServiceSpec) {
			s.Task.Container = &container.Config{Image: []string{good, good, ill, broken, missing}[w.rng.IntN(5)]}
			s.Task.Force++
		})
	case 1:
		w.change(name, func(s *cluster.ServiceSpec) { s.Mode.Replicated.Replicas = uint64(w.rng.IntN(6)) })
	case 2:
		if len(tasks) > 0 {
			if task := tasks[w.rng.IntN(len(tasks))]; task.Status.State == cluster.TaskRunning {
				w.status(task, cluster.TaskFailed, false)
			}
		}
	case 3:
		w.now = w.now.Add(time.Duration(w.rng.IntN(8000)) * time.Millisecond)
	case 4, 5, 6, 7:
		for _, task := range tasks {
			if w.rng.IntN(2) == 0 {
				w.act(task)
			}
		}
	default:
		w.some()
	}
}

// placesAreHeld: no place ever has more than two tasks that live, nor two that are to
// run and of one spec.
func (w *world) placesAreHeld(seed uint64) {
	for _, s := range store.List[*cluster.Service](w.s.View()) {
		for _, slot := range cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(s.ID))) {
			wanted := map[uint64]int{}
			for _, t := range slot.Tasks {
				if t.Live() {
					wanted[t.SpecNumber]++
				}
			}
			for number, n := range wanted {
				if n > 1 {
					w.t.Fatalf("seed %d: %d tasks of number %d are to run in one place\n%s", seed, n, number, w.describe())
				}
			}
		}
	}
}
