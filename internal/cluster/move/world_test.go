package move

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/reconcile/enforce"
	"escale.dev/escale/internal/cluster/reconcile/job"
	"escale.dev/escale/internal/cluster/reconcile/reaper"
	"escale.dev/escale/internal/cluster/reconcile/replicated"
	"escale.dev/escale/internal/cluster/reconcile/restart"
	"escale.dev/escale/internal/cluster/reconcile/update"
	"escale.dev/escale/internal/cluster/scheduler"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// disk is a volume on a node that is made up.
type disk struct {
	content string
	held    string // id of a move
	in      bool
	users   []User
	driver  string
	options map[string]string
}

// world is a cluster that is made up: nodes with volumes, an agent for all of them, and the loops.
type world struct {
	*testing.T
	s    *mem.Store
	stop context.CancelFunc

	mu    sync.Mutex
	disks map[string]map[string]*disk // by node and name
	terms map[string]uint64
	down  map[string]bool
	calls []string
	// before is called before each call of Nodes, and its error is the call's.
	before func(call string) error
	size   int // steps that a copy takes, of 300 ms
	wrong  []string
}

var _ Nodes = (*world)(nil)

func newWorld(t *testing.T, nodes ...string) *world {
	t.Helper()
	w := &world{T: t, s: mem.New(store.NewState()), disks: map[string]map[string]*disk{}, terms: map[string]uint64{}, down: map[string]bool{}, size: 1}
	for _, n := range nodes {
		w.disks[n] = map[string]*disk{}
		w.commit(store.Create(&cluster.Node{
			Meta: cluster.Meta{ID: n, Name: "host-" + n}, Spec: cluster.NodeSpec{Availability: cluster.Active}, Status: cluster.NodeStatus{Ready: true, Addr: "192.0.2.1"},
		}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	parts.Go(func() {
		_ = loop.Run(ctx, w.s, slog.New(slog.DiscardHandler), replicated.Loop{}, job.Loop{}, update.Loop{}, scheduler.Loop{}, enforce.Loop{}, restart.Loop{}, reaper.Loop{})
	})
	parts.Go(func() { w.agents(ctx) })
	w.stop = func() {
		cancel()
		parts.Wait()
		for _, x := range w.wrong {
			t.Error(x)
		}
	}
	return w
}

func (w *world) commit(c ...store.Change) {
	w.Helper()
	if _, err := w.s.Commit(w.Context(), c...); err != nil {
		w.Fatal(err)
	}
}

// agents do what the nodes' would.
func (w *world) agents(ctx context.Context) {
	for ctx.Err() == nil {
		for _, t := range store.List[*cluster.Task](w.s.View()) {
			if t.Node != "" {
				w.tend(ctx, t)
			}
		}
		_ = sleep(ctx, 50*time.Millisecond)
	}
}

func (w *world) tend(ctx context.Context, t *cluster.Task) {
	n, err := store.Find[*cluster.Node](w.s.View(), t.Node)
	if err != nil || !n.Status.Ready {
		return
	}
	c := store.Copy(t)
	c.Status.At = time.Now()
	switch {
	case t.Status.State.Ended() && t.Desired == cluster.TaskRemove && !t.Status.Gone:
		c.Status.Gone = true
		w.leave(t)
	case t.Status.State.Ended():
		return
	case t.Desired.Stops():
		c.Status.State = cluster.TaskShutdown
	case t.Status.State == cluster.TaskAssigned:
		c.Status.State = cluster.TaskReady
	case t.Status.State == cluster.TaskReady && !t.Held():
		if err := w.take(t, n); err != nil {
			c.Status.State, c.Status.Err = cluster.TaskRejected, err.Error()
			break
		}
		c.Status.State, c.Status.Healthy, c.Status.RunningAt = cluster.TaskRunning, true, time.Now()
	default:
		return
	}
	_, _ = w.s.Commit(ctx, store.Update(c)) // or it is looked at again
}

// take gives a task's container its volumes, which are made if they are not there.
func (w *world) take(t *cluster.Task, n *cluster.Node) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range t.VolumesOn(n) {
		d := w.disks[n.ID][name]
		if d == nil {
			d = &disk{}
			w.disks[n.ID][name] = d
		}
		if d.held != "" {
			return fmt.Errorf("volume %s is being moved", name)
		}
		d.users = append(d.users, User{Name: t.Name + "." + t.ID, Task: t.ID})
		for other, disks := range w.disks {
			if o := disks[name]; other != n.ID && o != nil && o.held == "" && w.uses(other, name) {
				w.wrong = append(w.wrong, fmt.Sprintf("volume %s is in use on %s and %s", name, other, n.ID))
			}
		}
	}
	return nil
}

// uses tells whether a task runs on a node with a volume.
func (w *world) uses(node, name string) bool {
	n, err := store.Find[*cluster.Node](w.s.View(), node)
	return err == nil && slices.ContainsFunc(store.List[*cluster.Task](w.s.View(), store.OnNode(node)), func(t *cluster.Task) bool {
		return t.Status.State == cluster.TaskRunning && slices.Contains(t.VolumesOn(n), name)
	})
}

func (w *world) leave(t *cluster.Task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.disks[t.Node] {
		d.users = slices.DeleteFunc(d.users, func(u User) bool { return u.Task == t.ID })
	}
}

// call begins a step on a node.
func (w *world) call(ctx context.Context, what, node string, s Step) (*disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, what+" "+node+" "+s.Volume)
	if w.before != nil {
		if err := w.before(what); err != nil {
			return nil, err
		}
	}
	switch {
	case w.down[node]:
		return nil, errdefs.ErrUnavailable.WithMessage("node " + node + " is not available")
	case s.Term < w.terms[node]:
		return nil, errdefs.ErrPermissionDenied
	}
	if s.Term < math.MaxInt64 {
		w.terms[node] = s.Term
	}
	return w.disks[node][s.Volume], nil
}

func (w *world) Hold(ctx context.Context, node string, s Step) error {
	d, err := w.call(ctx, "hold", node, s)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case d == nil:
		return errdefs.ErrNotFound
	case d.held != "" && d.held != s.Move:
		return errdefs.ErrConflict
	case w.uses(node, s.Volume), slices.ContainsFunc(d.users, func(u User) bool { return u.Task == "" }):
		return errdefs.ErrConflict.WithMessage("volume " + s.Volume + " is in use by mine")
	}
	d.held = s.Move
	return nil
}

func (w *world) Fetch(ctx context.Context, node string, s Step, told func(bytes, total int64)) error {
	is, err := w.call(ctx, "fetch", node, s)
	if err != nil {
		return err
	}
	if is != nil && is.held == s.Move && is.in {
		return nil
	}
	if is != nil {
		return errdefs.ErrAlreadyExists.WithMessage("there is a volume " + s.Volume + " here already")
	}
	w.mu.Lock()
	size := w.size
	w.mu.Unlock()
	for i := range size {
		told(int64(i), int64(size))
		if _ = sleep(ctx, 300*time.Millisecond); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	from := w.disks[s.Peer][s.Volume]
	if from == nil || from.held != s.Move || from.in {
		return errdefs.ErrPermissionDenied
	}
	w.disks[node][s.Volume] = &disk{content: from.content, held: s.Move, in: true}
	return nil
}

func (w *world) Free(ctx context.Context, node string, s Step) error {
	d, err := w.call(ctx, "free", node, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && d != nil && d.held == s.Move {
		d.held = ""
	}
	return err
}

func (w *world) Drop(ctx context.Context, node string, s Step) error {
	d, err := w.call(ctx, "drop", node, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		return err
	case d == nil || d.held != s.Move:
		return nil
	case len(d.users) > 0:
		return errdefs.ErrConflict.WithMessage("volume is in use")
	}
	delete(w.disks[node], s.Volume)
	return nil
}

func (w *world) Volumes(ctx context.Context, node, name string) (out []Volume, err error) {
	if _, err := w.call(ctx, "volumes", node, Step{Term: math.MaxInt64}); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(w.disks[node])) {
		if d := w.disks[node][n]; name == "" || n == name {
			driver := d.driver
			if driver == "" {
				driver = "local"
			}
			out = append(out, Volume{Name: n, Driver: driver, Options: d.options, Users: slices.Clone(d.users), Moving: d.held})
		}
	}
	return out, nil
}

// serve makes a service whose tasks have volumes, and waits until they run.
func (w *world) serve(name string, replicas uint64, sources ...string) *cluster.Service {
	w.Helper()
	h := &container.HostConfig{}
	for _, v := range sources {
		h.Mounts = append(h.Mounts, mount.Mount{Type: mount.TypeVolume, Source: v, Target: "/" + v})
	}
	s := &cluster.Service{Meta: cluster.Meta{ID: cluster.NewID(), Name: name}, Numbers: 1, Spec: cluster.ServiceSpec{
		Number: 1, Mode: cluster.Mode{Replicated: &cluster.Replicated{Replicas: replicas}},
		Task: cluster.TaskSpec{Container: &container.Config{}, Host: h, Restart: cluster.RestartPolicy{Condition: cluster.RestartAny}},
	}}
	w.commit(store.Create(s))
	w.till(name+" runs", func() bool { return len(w.running(s.ID)) == int(replicas) })
	return s
}

// running are the nodes of a service's tasks that run.
func (w *world) running(service string) (out []string) {
	for _, t := range store.List[*cluster.Task](w.s.View(), store.Owner(service)) {
		if t.Status.State == cluster.TaskRunning && !t.Desired.Stops() {
			out = append(out, t.Node)
		}
	}
	slices.Sort(out)
	return out
}

// till waits for something, in time that is made up.
func (w *world) till(what string, f func() bool) {
	w.Helper()
	for range 3000 {
		if f() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, t := range store.List[*cluster.Task](w.s.View()) {
		w.Logf("%s on %q: %s, wants %s; %s; home %+v", t.Name, t.Node, t.Status.State, t.Desired, t.Status.Err, t.Home)
	}
	for _, m := range store.List[*cluster.Move](w.s.View()) {
		w.Logf("%+v", m)
	}
	w.Fatalf("%s: not in time", what)
}

// steps is how many a copy takes from now on.
func (w *world) steps(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size = n
}

// put gives a node's volume its content.
func (w *world) put(node, name, content string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disks[node][name] == nil {
		w.disks[node][name] = &disk{}
	}
	w.disks[node][name].content = content
}

// has tells what is in a volume that everybody may have; "-": there is none.
func (w *world) has(node, name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.disks[node][name]
	switch {
	case d == nil:
		return "-"
	case d.held != "":
		return "held"
	}
	return d.content
}

func (w *world) desk() *Desk {
	return &Desk{Store: w.s, Nodes: w, Manages: func(store.View) error { return nil }}
}

// lead runs a Mover until the returned function is called.
func (w *world) lead(term uint64) (stop func()) {
	_, stop = w.leader(term)
	return stop
}

// leader is lead with a function that only has the Mover end, and does not wait for it.
func (w *world) leader(term uint64) (kill, stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	var end sync.WaitGroup
	end.Go(func() {
		if err := New(w.s, w, term, slog.New(slog.DiscardHandler)).Run(ctx); err != nil && ctx.Err() == nil {
			w.Errorf("mover: %v", err)
		}
	})
	return cancel, func() {
		cancel()
		end.Wait()
	}
}
