package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// job is something to write: reports of a node, what it says of itself, or that it is there
// or not. Jobs of several nodes are one commit where they can be.
type job struct {
	node    string
	hello   *Hello
	reports []Report
	status  json.RawMessage
	gone    bool // nothing was heard of it for long
	done    func(revision uint64, err error)
}

// size is how many changes it makes at most.
func (j job) size() int { return len(j.reports) + 1 }

// do has a job done, and blocks until it is.
func (d *Dispatcher) do(ctx context.Context, j job) error {
	done := make(chan error, 1)
	j.done = func(_ uint64, err error) { done <- err }
	select {
	case d.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// write does jobs, as many at once as there are.
func (d *Dispatcher) write(ctx context.Context) {
	var next *job
	for {
		var batch []job
		size := 0
		if next != nil {
			batch, size, next = append(batch, *next), next.size(), nil
		} else {
			select {
			case j := <-d.jobs:
				batch, size = append(batch, j), j.size()
			case <-ctx.Done():
				return
			}
		}
	more:
		for {
			select {
			case j := <-d.jobs:
				if size+j.size() > store.MaxChanges {
					next = &j
					break more
				}
				batch, size = append(batch, j), size+j.size()
			default:
				break more
			}
		}
		d.together(ctx, batch)
	}
}

// attempts are how often a commit is tried that others come before.
const attempts = 20

// together does jobs in one commit. One that may not be done does not keep others from it.
func (d *Dispatcher) together(ctx context.Context, batch []job) {
	var err error
	for range attempts {
		w := writing{v: d.s.View(), at: time.Now().UTC(), objects: map[string]cluster.Object{}}
		var fit []job
		for _, j := range batch {
			err := w.add(j)
			if err == nil && j.gone && d.connected(j.node) {
				err = fmt.Errorf("node %s has come back: %w", j.node, errdefs.ErrNotFound)
			}
			if err != nil {
				d.finish(j, 0, err)
				continue
			}
			fit = append(fit, j)
		}
		if batch = fit; len(batch) == 0 {
			return
		}
		var at uint64
		if at, err = w.v.Revision(), nil; len(w.changes) > 0 {
			at, err = d.s.Commit(ctx, w.changes...)
		}
		if err == nil {
			for _, j := range batch {
				d.finish(j, at, nil)
			}
			return
		}
		if errdefs.IsFailedPrecondition(err) { // another leads, and has to be told anew: it is no node's fault
			err = errOver
		}
		if !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			break
		}
	}
	for _, j := range batch {
		d.finish(j, 0, err)
	}
}

func (d *Dispatcher) finish(j job, at uint64, err error) {
	if j.done != nil {
		j.done(at, err)
	}
}

// writing is a commit in the making.
type writing struct {
	v       store.View
	at      time.Time
	objects map[string]cluster.Object // that are changed already
	changes []store.Change
}

// add takes in what a job changes; nothing of it when it is refused.
func (w *writing) add(j job) error {
	if err := w.node(j); err != nil {
		return err
	}
	type changed struct {
		t      *cluster.Task
		s      cluster.TaskStatus
		halted bool
	}
	var list []changed
	seen := map[string]bool{}
	for _, r := range j.reports {
		t, err := w.task(j.node, r.Task)
		if err != nil {
			return err
		}
		s, err := reported(t, r)
		if err != nil {
			return err
		}
		if seen[r.Task] {
			return fmt.Errorf("task %s: reported twice: %w", r.Task, errdefs.ErrInvalidArgument)
		}
		seen[r.Task] = true
		c := changed{t, s, t.Halted}
		if r.Halted != nil {
			c.halted = *r.Halted
		}
		list = append(list, c)
	}
	for _, c := range list {
		t := w.change(c.t).(*cluster.Task)
		t.Status, t.Halted = c.s, c.halted
	}
	return nil
}

// change is an object that may be changed, as part of the commit.
func (w *writing) change(o cluster.Object) cluster.Object {
	id := o.Base().ID
	if w.objects[id] == nil {
		w.objects[id] = cluster.Copy(o)
		w.changes = append(w.changes, store.Update(w.objects[id]))
	}
	return w.objects[id]
}

// task is one that the node has. NotFound, PermissionDenied.
func (w *writing) task(node, id string) (*cluster.Task, error) {
	t, err := store.Find[*cluster.Task](w.v, id)
	if err != nil {
		return nil, err
	}
	if t.Node != node || t.Status.State.Before(cluster.TaskAssigned) {
		return nil, fmt.Errorf("task %s is none of node %s: %w", id, node, errdefs.ErrPermissionDenied)
	}
	if c, ok := w.objects[id].(*cluster.Task); ok {
		t = c
	}
	return t, nil
}

// reported is a task's status as its node says, if it may become so. Who only says that a
// client has stopped it leaves it as it is.
func reported(t *cluster.Task, r Report) (cluster.TaskStatus, error) {
	if len(r.Status) == 0 && r.Halted != nil {
		return t.Status, nil
	}
	s := cluster.TaskStatus{}
	if err := json.Unmarshal(r.Status, &s); err != nil {
		return s, fmt.Errorf("task %s: %w: %w", t.ID, err, errdefs.ErrInvalidArgument)
	}
	if is := t.Status.State; s.State != is && !is.May(s.State) || s.State.Before(cluster.TaskAssigned) {
		return s, fmt.Errorf("task %s: from %s to %s: %w", t.ID, is, s.State, errdefs.ErrFailedPrecondition)
	}
	return s, nil
}

// heartbeat is what is said of a node that is down, in Docker's words.
const heartbeat = "heartbeat failure"

// node takes in what a job changes of its node.
func (w *writing) node(j job) error {
	if j.hello == nil && j.status == nil && !j.gone {
		return nil
	}
	n, err := store.Find[*cluster.Node](w.v, j.node)
	if err != nil {
		return err
	}
	if c, ok := w.objects[n.ID].(*cluster.Node); ok {
		n = c
	}
	if j.gone {
		if n.Status.Ready {
			n = w.change(n).(*cluster.Node)
			n.Status.Ready, n.Status.Since, n.Status.Message = false, w.at, heartbeat
		}
		return nil
	}
	raw := j.status
	if j.hello != nil {
		raw = j.hello.Status
	}
	says, err := decodeStatus(raw)
	if err != nil {
		return err
	}
	n = w.change(n).(*cluster.Node)
	was := n.Status
	n.Status = says
	n.Status.Ready, n.Status.Since, n.Status.Message, n.Status.Manager = was.Ready, was.Since, was.Message, was.Manager
	if j.hello == nil {
		return nil
	}
	if j.hello.Name != "" {
		n.Name = j.hello.Name
	}
	if !was.Ready {
		n.Status.Ready, n.Status.Since, n.Status.Message = true, w.at, ""
	}
	return nil
}

// watched is how often the detector looks.
const watched = 100 * time.Millisecond

// watchHealth writes which nodes are down. A node is there as long as it is heard of; after
// a change of leaders all have time to come.
func (d *Dispatcher) watchHealth(ctx context.Context) {
	t := time.NewTicker(watched)
	defer t.Stop()
	for looked := time.Now(); ; looked = time.Now() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, id := range d.silent(time.Since(looked) > frozen) {
			j := job{node: id, gone: true, done: func(_ uint64, err error) { d.buried(id, err) }}
			select {
			case d.jobs <- j:
			case <-ctx.Done():
				return
			}
		}
	}
}

// coming is the time without another one that comes after which all are taken to have come who will:
// managers of many nodes take their time.
const coming = 500 * time.Millisecond

// frozen is the time between two looks from which on it was this manager that stood still.
const frozen = time.Second

// silent are the nodes that nothing is heard of any more, and whose sessions end with that.
// After this manager stood still it is its own fault: they have time anew.
func (d *Dispatcher) silent(stood bool) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Since(d.begun)
	if stood {
		d.log.Warn("this manager stood still: nodes have time anew to be heard of")
		for _, s := range d.sessions {
			s.last.Store(int64(now))
		}
		for id, last := range d.seen {
			d.seen[id] = max(last, now)
		}
	}
	for id, s := range maps.Clone(d.sessions) {
		if now-time.Duration(s.last.Load()) > Dead {
			s.end(fmt.Errorf("node %s: %s: %w", id, heartbeat, errdefs.ErrUnavailable))
			d.drop(s)
		}
	}
	var out []string
	for id, last := range d.seen {
		late := d.awaited[id] && now-d.came < coming && now < Grace
		if d.sessions[id] == nil && now-last > Dead && !late && !d.down[id] {
			d.down[id] = true
			out = append(out, id)
		}
	}
	return out
}

// Heard tells whether a node has a session with this leader. Once all have had time to come, what
// the store says of a node is all there is to know.
func (d *Dispatcher) Heard(node string) bool {
	return time.Since(d.begun) > Grace+2*watched || d.connected(node)
}

// buried notes that a node is known to be down; what could not be written is tried again.
func (d *Dispatcher) buried(id string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.down, id)
	if err == nil && d.sessions[id] == nil && time.Since(d.begun)-d.seen[id] > Dead {
		delete(d.seen, id)
		d.log.Warn("a node is down", "node", id)
	} else if err != nil && !errdefs.IsNotFound(err) {
		d.log.Error("that a node is down cannot be written: trying again", "node", id, "error", err)
	}
}

// connected tells whether a node has a session.
func (d *Dispatcher) connected(node string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions[node] != nil
}
