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

// A global service has one task on each node that will have it, and follows them.
func TestGlobal(t *testing.T) {
	w := newWorld(t, 3, 4)
	s := spec(good, 1, 0)
	s.Mode = cluster.Mode{Global: true}
	s.Task.Placement.Constraints = []string{"node.hostname != n3"}
	w.service("agent", s)
	w.settle()
	want := func(number uint64, n int) {
		t.Helper()
		if up, live := w.running("agent"); up[number] != n || live != n {
			t.Fatalf("%v up, %d live, want %d\n%s", up, live, n, w.describe())
		}
	}
	node := func(i int, f func(*cluster.Node)) {
		t.Helper()
		n := store.Copy(store.List[*cluster.Node](w.s.View(), store.LabelIs("n", fmt.Sprint(i)))[0])
		f(n)
		w.commit(store.Update(n))
		w.settle()
	}
	want(1, 3)
	node(0, func(n *cluster.Node) { n.Spec.Availability = cluster.Drain })
	want(1, 2)
	node(0, func(n *cluster.Node) { n.Spec.Availability = cluster.Active })
	want(1, 3)
	node(1, func(n *cluster.Node) { n.Spec.Availability = cluster.Paused })
	want(1, 3)
	w.change("agent", func(s *cluster.ServiceSpec) { s.Task.Force++ })
	w.settle()
	want(2, 3)
	for _, task := range store.List[*cluster.Task](w.s.View()) {
		if task.Status.State == cluster.TaskRunning {
			w.status(task, cluster.TaskFailed, false)
		}
	}
	w.settle()
	want(2, 3)
	w.change("agent", func(s *cluster.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.hostname == n3"} })
	w.settle()
	want(2, 1)
}

// A job is done so many times, never more of it at once than may be, and again for
// each new spec.
func TestJobs(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed, 2)
		s := spec(unsure, 1, 0)
		s.Task.Restart = cluster.RestartPolicy{Condition: cluster.RestartOnFailure, Delay: time.Second}
		s.Mode = cluster.Mode{Job: &cluster.Job{Total: 7, Concurrent: 3}}
		w.service("job", s)
		w.watch = func() {
			if _, live := w.running("job"); live > 3 {
				t.Fatalf("seed %d: %d at once\n%s", seed, live, w.describe())
			}
		}
		w.settle()
		w.done("job", 1, 7)
		w.watch = func() {}
		w.change("job", func(s *cluster.ServiceSpec) { s.Task.Force++ })
		w.settle()
		w.done("job", 2, 7)
		s.Mode = cluster.Mode{GlobalJob: true}
		w.service("everywhere", s)
		w.settle()
		w.done("everywhere", 1, 2)
	}
	w := newWorld(t, 1, 1)
	s := spec(broken, 1, 0)
	s.Task.Restart = cluster.RestartPolicy{Condition: cluster.RestartOnFailure, Attempts: 2}
	s.Mode = cluster.Mode{Job: &cluster.Job{Total: 1}}
	w.service("hopeless", s)
	w.settle()
	if n := len(store.List[*cluster.Task](w.s.View())); n != 3 {
		t.Errorf("it was tried %d times, want 3\n%s", n, w.describe())
	}
}

// done fails unless so many places have come to a good end.
func (w *world) done(name string, number uint64, want int) {
	w.t.Helper()
	o, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, slot := range cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(o.ID))) {
		if c := slot.Current(); c.SpecNumber == number && c.Status.State == cluster.TaskComplete {
			n++
		}
	}
	if n != want {
		w.t.Fatalf("%d places are done, want %d\n%s", n, want, w.describe())
	}
}

// A schedule runs when it is due and never two at once; what was missed is one run.
func TestSchedule(t *testing.T) {
	w := newWorld(t, 5, 1)
	w.now = time.Date(2026, 1, 1, 12, 0, 30, 0, time.UTC)
	s := spec(ends, 1, 0)
	s.Task.Restart.Condition = cluster.RestartNone
	s.Mode = cluster.Mode{Job: &cluster.Job{Total: 1}, Schedule: "*/10 * * * *"}
	w.service("backup", s)
	runs := func(until time.Time) uint64 {
		for range 1000 {
			w.again = time.Time{}
			busy := false
			for _, l := range w.loops {
				for _, key := range l.All(w.s.View()) {
					busy = w.decide(l, key) || busy
				}
			}
			for _, task := range store.List[*cluster.Task](w.s.View()) {
				busy = w.act(task) || busy
			}
			switch {
			case busy:
			case w.again.IsZero() || w.again.After(until):
				w.now = until
				o, err := store.Named[*cluster.Service](w.s.View(), "backup")
				if err != nil {
					t.Fatal(err)
				}
				return o.Spec.Number - 1
			default:
				w.now = w.again
			}
		}
		t.Fatal("it does not come to rest")
		return 0
	}
	if n := runs(w.now.Add(9 * time.Minute)); n != 0 {
		t.Errorf("%d runs before it was due", n)
	}
	if n := runs(w.now.Add(30 * time.Minute)); n != 3 {
		t.Errorf("%d runs in 39 minutes, want 3", n)
	}
	w.now = w.now.Add(24 * time.Hour) // nobody looked
	if n := runs(w.now.Add(10 * time.Second)); n != 4 {
		t.Errorf("%d runs after a day without an engine, want 4", n)
	}
	// A run that takes long leaves the next ones out.
	w.change("backup", func(s *cluster.ServiceSpec) { s.Task.Container = &container.Config{Image: good} })
	before := runs(w.now.Add(11 * time.Minute))
	if n := runs(w.now.Add(60 * time.Minute)); n != before {
		t.Errorf("%d runs beside one that works", n-before)
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
		w.resume()
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
	switch w.rng.IntN(13) {
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
	case 12:
		if len(tasks) > 0 {
			w.halt(tasks[w.rng.IntN(len(tasks))], w.rng.IntN(3) > 0)
		}
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
// run and of one spec, unless one is about to take the other's place on another node.
func (w *world) placesAreHeld(seed uint64) {
	for _, s := range store.List[*cluster.Service](w.s.View()) {
		for _, slot := range cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(s.ID))) {
			wanted, moved := map[uint64]int{}, 0
			for _, t := range slot.Tasks {
				if t.Live() {
					wanted[t.SpecNumber]++
				}
				if t.Toward != "" {
					moved = 1
				}
			}
			for number, n := range wanted {
				if n > 1+moved {
					w.t.Fatalf("seed %d: %d tasks of number %d are to run in one place\n%s", seed, n, number, w.describe())
				}
			}
		}
	}
}
