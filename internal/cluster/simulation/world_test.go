package simulation

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/reconcile/allocate"
	"escale.dev/escale/internal/cluster/reconcile/app"
	"escale.dev/escale/internal/cluster/reconcile/cron"
	"escale.dev/escale/internal/cluster/reconcile/depend"
	"escale.dev/escale/internal/cluster/reconcile/enforce"
	"escale.dev/escale/internal/cluster/reconcile/global"
	"escale.dev/escale/internal/cluster/reconcile/job"
	"escale.dev/escale/internal/cluster/reconcile/reaper"
	"escale.dev/escale/internal/cluster/reconcile/replicated"
	"escale.dev/escale/internal/cluster/reconcile/restart"
	"escale.dev/escale/internal/cluster/reconcile/retire"
	"escale.dev/escale/internal/cluster/reconcile/root"
	"escale.dev/escale/internal/cluster/reconcile/update"
	"escale.dev/escale/internal/cluster/scheduler"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// world is a cluster that is made up.
type world struct {
	t     *testing.T
	s     *mem.Store
	now   time.Time
	rng   *rand.Rand
	loops []loop.Loop
	again time.Time
	watch func() // looks at what must always hold
	away  string // a node of which nothing is heard
}

func newWorld(t *testing.T, seed uint64, nodes int) *world {
	w := &world{t: t, now: time.Unix(1e9, 0), rng: rand.New(rand.NewPCG(seed, 0)), watch: func() {}}
	state := store.NewState()
	state.Now(func() time.Time { return w.now })
	w.s = mem.New(state)
	w.loops = all()
	for i := range nodes {
		w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{Name: fmt.Sprint("n", i), Labels: map[string]string{"n": fmt.Sprint(i)}}, Status: cluster.NodeStatus{Ready: true}}))
	}
	return w
}

// all are the loops that a manager runs.
func all() []loop.Loop {
	return []loop.Loop{replicated.Loop{}, global.Loop{}, job.Loop{}, cron.Loop{In: time.UTC}, restart.Loop{}, depend.Loop{}, app.Loop{}, update.Loop{}, enforce.Loop{}, reaper.Loop{}, allocate.Loop{}, root.Loop{}, retire.Loop{}, scheduler.Loop{}, scheduler.Rebalance{}}
}

func (w *world) commit(changes ...store.Change) {
	w.t.Helper()
	if _, err := w.s.Commit(w.t.Context(), changes...); err != nil {
		w.t.Fatal(err)
	}
	w.watch()
}

// decide lets one loop look at one thing.
func (w *world) decide(l loop.Loop, key string) bool {
	d := l.Decide(w.s.View(), key, w.now)
	w.again = loop.Soonest(w.again, d.Again)
	if len(d.Changes) == 0 {
		return false
	}
	if len(d.Changes) > store.MaxChanges {
		d.Changes = d.Changes[:store.MaxChanges]
	}
	if _, err := w.s.Commit(w.t.Context(), d.Changes...); err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
		w.t.Fatalf("loop %s: %v", l.Name(), err)
	}
	w.watch()
	return true
}

// some lets loops look at some things, in any order.
func (w *world) some() {
	for range 1 + w.rng.IntN(6) {
		l := w.loops[w.rng.IntN(len(w.loops))]
		if keys := l.All(w.s.View()); len(keys) > 0 {
			w.decide(l, keys[w.rng.IntN(len(keys))])
		}
	}
}

// settle lets loops and nodes work, and time pass, until nothing changes any more. It
// fails when that does not come.
func (w *world) settle() {
	w.t.Helper()
	for range 5000 {
		changed := false
		w.again = time.Time{}
		for _, l := range w.loops {
			seen := map[string]bool{}
			for _, key := range l.All(w.s.View()) {
				if !seen[key] {
					seen[key] = true
					changed = w.decide(l, key) || changed
				}
			}
		}
		for _, t := range store.List[*cluster.Task](w.s.View()) {
			changed = w.act(t) || changed
		}
		changed = w.clear() || changed
		switch {
		case changed:
		case w.again.IsZero():
			return
		default:
			w.now = w.again
		}
	}
	w.t.Fatalf("it does not come to rest:\n%s", w.describe())
}

// clear takes away the networks and volumes that are to go.
func (w *world) clear() (changed bool) {
	for _, n := range store.List[*cluster.Network](w.s.View()) {
		if n.Spec.Removed {
			w.commit(store.Delete(n))
			changed = true
		}
	}
	for _, v := range store.List[*cluster.Volume](w.s.View()) {
		if v.Spec.Removed {
			w.commit(store.Delete(v))
			changed = true
		}
	}
	return changed
}

// What images do, by name.
const (
	good    = "good"
	ill     = "ill"     // runs, and never gets healthy
	broken  = "broken"  // ends with a failure at once
	missing = "missing" // cannot be had
	ends    = "ends"    // comes to its end, and well
	unsure  = "unsure"  // comes to its end, and well one time of two
)

// act lets a task's node take it one state further.
func (w *world) act(t *cluster.Task) bool {
	if w.away != "" && t.Node == w.away {
		return false
	}
	if t.Node != "" && t.Status.State.Ended() && t.Desired == cluster.TaskRemove && !t.Status.Gone {
		t = store.Copy(t)
		t.Status.Gone = true
		w.commit(store.Update(t))
		return true
	}
	if t.Node == "" || t.Status.State.Ended() {
		return false
	}
	next, healthy := t.Status.State, t.Status.Healthy
	image := t.Spec.Container.Image
	switch {
	case t.Desired.Stops():
		next, healthy = cluster.TaskShutdown, false
	case t.Status.State == cluster.TaskAssigned:
		next = cluster.TaskAccepted
	case t.Status.State == cluster.TaskAccepted && t.Apart():
		return false
	case t.Status.State == cluster.TaskAccepted:
		next = cluster.TaskPreparing
	case t.Status.State == cluster.TaskPreparing:
		if next = cluster.TaskReady; image == missing {
			next = cluster.TaskRejected
		}
	case t.Status.State == cluster.TaskReady && t.Held():
		return false
	case t.Status.State == cluster.TaskReady && w.now.Before(t.NotBefore):
		w.again = loop.Soonest(w.again, t.NotBefore)
		return false
	case t.Status.State == cluster.TaskReady:
		next = cluster.TaskStarting
	case t.Status.State == cluster.TaskStarting:
		next = cluster.TaskRunning
	case t.Status.State == cluster.TaskRunning && t.Halted:
		if !healthy {
			return false
		}
		healthy = false // it has ended, and that is no failure
	case t.Status.State == cluster.TaskRunning && (image == broken || image == unsure && w.rng.IntN(2) == 0):
		next = cluster.TaskFailed
	case t.Status.State == cluster.TaskRunning && (image == ends || image == unsure):
		next = cluster.TaskComplete
	case t.Status.State == cluster.TaskRunning && image == good && !healthy:
		healthy = true
	case t.Status.State == cluster.TaskRunning && image == ill:
		if end := t.Status.At.Add(3 * time.Second); w.now.Before(end) {
			w.again = loop.Soonest(w.again, end)
			return false
		}
		next = cluster.TaskFailed
	default:
		return false
	}
	w.status(t, next, healthy)
	return true
}

// halt lets a client stop a task, or start it again.
func (w *world) halt(t *cluster.Task, halted bool) {
	w.t.Helper()
	if t = store.Copy(t); !t.Live() || t.Halted == halted {
		return
	}
	t.Halted = halted
	w.commit(store.Update(t))
}

// resume starts all that clients have stopped.
func (w *world) resume() {
	w.t.Helper()
	for _, t := range store.List[*cluster.Task](w.s.View()) {
		w.halt(t, false)
	}
}

// status says what became of a task.
func (w *world) status(t *cluster.Task, s cluster.TaskState, healthy bool) {
	w.t.Helper()
	if s != t.Status.State && !t.Status.State.May(s) {
		w.t.Fatalf("from %s to %s", t.Status.State, s)
	}
	t = store.Copy(t)
	if s == cluster.TaskRunning && t.Status.State != s {
		t.Status.RunningAt = w.now
	}
	t.Status.State, t.Status.Healthy, t.Status.At = s, healthy, w.now
	w.commit(store.Update(t))
}

// spec is what a service of an image is.
func spec(image string, number, replicas uint64) cluster.ServiceSpec {
	return cluster.ServiceSpec{
		Mode: cluster.Mode{Replicated: &cluster.Replicated{Replicas: replicas}}, Number: number,
		Task: cluster.TaskSpec{Container: &container.Config{Image: image}, Restart: cluster.RestartPolicy{Condition: cluster.RestartAny, Delay: time.Second}},
	}
}

// change writes a new spec of a service, as a user does.
func (w *world) change(name string, f func(s *cluster.ServiceSpec)) {
	w.t.Helper()
	o, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	o = store.Copy(o)
	before := store.Copy(o).Spec
	f(&o.Spec)
	if o.Spec.Task.Container.Image != before.Task.Container.Image || o.Spec.Task.Force != before.Task.Force {
		o.Numbers++
		o.Spec.Number, o.Previous = o.Numbers, &before
	}
	w.commit(store.Update(o))
}

// service makes a service.
func (w *world) service(name string, s cluster.ServiceSpec) {
	w.t.Helper()
	w.commit(store.Create(&cluster.Service{Meta: cluster.Meta{Name: name}, Spec: s, Numbers: s.Number}))
}

// running are the tasks of a service that run and are healthy, by the number of their
// spec, and how many there are that live at all.
func (w *world) running(name string) (up map[uint64]int, live int) {
	o, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil {
		return nil, 0
	}
	up = map[uint64]int{}
	for _, t := range store.List[*cluster.Task](w.s.View(), store.Owner(o.ID)) {
		if t.Status.State == cluster.TaskRunning && t.Status.Healthy {
			up[t.SpecNumber]++
		}
		if !t.Status.State.Ended() {
			live++
		}
	}
	return up, live
}

// rollout is the state of a service's rollout.
func (w *world) rollout(name string) cluster.RolloutState {
	o, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil || o.Status.Rollout == nil {
		return ""
	}
	return o.Status.Rollout.State
}

func (w *world) describe() (out string) {
	for _, s := range store.List[*cluster.Service](w.s.View()) {
		out += fmt.Sprintf("%s number %d mode %+v rollout %+v\n", s.Name, s.Spec.Number, s.Spec.Mode.Replicated, s.Status.Rollout)
		for _, slot := range cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(s.ID))) {
			for _, t := range slot.Tasks {
				out += fmt.Sprintf("  %d.%d of %d: %s, wants %s %s\n", t.Slot, t.Number, t.SpecNumber, t.Status.State, t.Desired, t.Status.Err)
			}
		}
	}
	return out
}
