package move

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/errdefs"
)

// How long the Mover waits, and keeps.
const (
	pause    = 500 * time.Millisecond // before it looks again at what was not to be done
	toldWait = time.Second            // between two notes of how much has come
	tries    = 6                      // of a copy while a node cannot be reached
	triesFor = 5 * time.Second        // between two of them
	kept     = time.Hour              // that a move is shown when it is over
	sweeps   = time.Minute            // after the end: more than a step that was asked for before may take
	keptLook = time.Minute            // between two looks whether it is to be forgotten
	most     = store.MaxChanges - 10  // changes of one commit
)

// Mover brings moves to their ends, one at a time.
type Mover struct {
	s     store.Store
	nodes Nodes
	term  uint64
	log   *slog.Logger
	now   func() time.Time
	wait  time.Duration // pause
	again time.Duration // triesFor
	tried map[string]int
	swept map[string]time.Time // by move: when its nodes were asked to sweep last
}

// New makes a Mover; nothing happens before Run. The store is one in which only who leads can write;
// term is that of the leadership.
func New(s store.Store, n Nodes, term uint64, log *slog.Logger) *Mover {
	return &Mover{s: s, nodes: n, term: term, log: log, now: func() time.Time { return time.Now().UTC() }, wait: pause, again: triesFor, tried: map[string]int{}, swept: map[string]time.Time{}}
}

// Run works until ctx ends, and blocks. An error is of the store.
func (m *Mover) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		v := m.s.View()
		watch, err := m.s.Watch(v.Revision(), cluster.KindMove, cluster.KindTask, cluster.KindNode)
		if errdefs.IsOutOfRange(err) {
			continue // much was written between the two lines above
		}
		if err != nil {
			return err
		}
		idle, left, err := m.all(ctx, v)
		if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) { // else a new view says more
			return err
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		switch {
		case !idle:
			wait, cancel = context.WithTimeout(ctx, m.wait)
		case left:
			wait, cancel = context.WithTimeout(ctx, keptLook)
		}
		_, err = watch.Next(wait)
		over := wait.Err() != nil
		cancel()
		if err != nil && !over && !errdefs.IsOutOfRange(err) {
			return err
		}
	}
	return nil
}

// all takes a step of the move whose turn it is, and of those that clean up. Idle: there is none;
// left: there are some that are over.
func (m *Mover) all(ctx context.Context, v store.View) (idle, left bool, err error) {
	list := store.List[*cluster.Move](v)
	slices.SortFunc(list, func(a, b *cluster.Move) int { return a.CreatedAt.Compare(b.CreatedAt) })
	busy, idle := false, true
	for _, o := range list {
		switch o.Status.Phase {
		case cluster.MoveDone, cluster.MoveUndone:
			switch past := m.now().Sub(o.Status.At); {
			case !o.Status.Swept && past > sweeps && m.now().Sub(m.swept[o.ID]) >= sweeps: // a node that does not answer takes long
				m.swept[o.ID] = m.now()
				err = m.sweep(ctx, v, o)
			case o.Status.Swept && past > kept:
				delete(m.swept, o.ID)
				err = m.commit(ctx, store.Delete(o))
			}
		case cluster.MoveDropping, cluster.MoveUndoing:
			idle = false
			err = m.step(ctx, v, o)
		default:
			idle = false
			if !busy {
				busy = true
				err = m.step(ctx, v, o)
			}
		}
		if err != nil {
			return false, true, err
		}
	}
	return idle, len(list) > 0, nil
}

func (m *Mover) commit(ctx context.Context, c ...store.Change) error {
	_, err := m.s.Commit(ctx, c...)
	return err
}

// step is one step of a move. An error is of the store; what nodes say goes into the move.
func (m *Mover) step(ctx context.Context, v store.View, o *cluster.Move) error {
	from, to := node(v, o.Spec.From), node(v, o.Spec.To)
	switch p := o.Status.Phase; {
	case o.Spec.Canceled && (p == "" || p == cluster.MoveHolding || p == cluster.MoveCopying):
		return m.undo(ctx, o, "canceled")
	case p == "":
		return m.enter(ctx, o, cluster.MoveHolding, "")
	case (from == nil || to == nil) && (p == cluster.MoveHolding || p == cluster.MoveCopying):
		return m.undo(ctx, o, "a node was removed from the cluster")
	case p == cluster.MoveHolding:
		return m.hold(ctx, v, o, from)
	case p == cluster.MoveCopying:
		return m.copy(ctx, v, o, from)
	case p == cluster.MoveMoved:
		return m.settle(ctx, v, o, from)
	case p == cluster.MoveDropping:
		return m.drop(ctx, v, o, from)
	case p == cluster.MoveUndoing:
		return m.giveBack(ctx, o, from, to)
	}
	return nil
}

func node(v store.View, id string) *cluster.Node {
	n, err := store.Find[*cluster.Node](v, id)
	if err != nil {
		return nil
	}
	return n
}

// enter brings a move into a phase.
func (m *Mover) enter(ctx context.Context, o *cluster.Move, p cluster.MovePhase, message string) error {
	c := store.Copy(o)
	c.Status.Phase, c.Status.At, c.Status.Message = p, m.now(), message
	err := m.commit(ctx, store.Update(c))
	if err == nil {
		m.log.Info("volumes are being moved", "move", o.ID, "volumes", o.Spec.Volumes, "phase", p, "message", message)
	}
	return err
}

func (m *Mover) undo(ctx context.Context, o *cluster.Move, why string) error {
	delete(m.tried, o.ID)
	return m.enter(ctx, o, cluster.MoveUndoing, why)
}

// say notes what a move waits for.
func (m *Mover) say(ctx context.Context, o *cluster.Move, message string) error {
	if o.Status.Message == message {
		return nil
	}
	c := store.Copy(o)
	c.Status.Message = message
	return m.commit(ctx, store.Update(c))
}

// each does something for every volume; a node that the cluster has no more has nothing to do.
func (m *Mover) each(o *cluster.Move, at *cluster.Node, do func(Step) error) error {
	if at == nil {
		return nil
	}
	peer := o.Spec.To
	if at.ID == o.Spec.To {
		peer = o.Spec.From
	}
	for _, name := range o.Spec.Volumes {
		if err := do(Step{Move: o.ID, Volume: name, Peer: peer, Term: m.term}); err != nil {
			return err
		}
	}
	return nil
}

// sweep takes away what a step has left on nodes that a leader of before had asked for and that was
// taken after the end: a node that has started anew knows of no later leader. The move is not
// forgotten before both nodes have answered, or are nodes no more.
func (m *Mover) sweep(ctx context.Context, v store.View, o *cluster.Move) error {
	for _, id := range []string{o.Spec.From, o.Spec.To} {
		at, do := node(v, id), m.nodes.Free
		if id == o.Spec.To && o.Status.Phase == cluster.MoveUndone {
			do = m.nodes.Drop
		}
		if at != nil && !at.Status.Ready {
			return nil
		}
		if err := m.each(o, at, func(s Step) error { return do(ctx, id, s) }); err != nil {
			m.log.Debug("notes of a move that is over cannot be swept: trying again", "move", o.ID, "node", id, "error", err)
			return ctx.Err()
		}
	}
	c := store.Copy(o)
	c.Status.Swept = true
	return m.commit(ctx, store.Update(c))
}

// hold ends the tasks that have the volumes, and then keeps them from everybody.
func (m *Mover) hold(ctx context.Context, v store.View, o *cluster.Move, from *cluster.Node) error {
	changes, waits, why := ending(v, o, from)
	if why != "" {
		return m.undo(ctx, o, why)
	}
	if len(changes) > 0 {
		return m.commit(ctx, changes...)
	}
	if waits != "" {
		return m.say(ctx, o, "waits for the end of task "+waits)
	}
	err := m.each(o, from, func(s Step) error { return m.nodes.Hold(ctx, from.ID, s) })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errdefs.IsUnavailable(err):
		return m.say(ctx, o, errtext.Of(err))
	case err != nil:
		return m.undo(ctx, o, errtext.Of(err))
	}
	return m.enter(ctx, o, cluster.MoveCopying, "")
}

// ending are changes that end tasks which have the volumes of a move, each with one that takes its
// place later; waits is one that has not ended yet, why is what does not let the move go on.
func ending(v store.View, o *cluster.Move, from *cluster.Node) (changes []store.Change, waits, why string) {
	services := map[string]bool{}
	for _, t := range store.List[*cluster.Task](v, store.OnNode(from.ID)) {
		if t.Status.State.Ended() || !o.Has(t, from) {
			continue
		}
		waits = t.Name
		services[t.Owner] = true
	}
	for _, s := range store.List[*cluster.Service](v) {
		if !services[s.ID] {
			continue
		}
		if s.Spec.Mode.Global || s.Spec.Mode.GlobalJob {
			return nil, "", fmt.Sprintf("service %s is global: its tasks stay on their nodes", s.Name)
		}
		if s.Spec.Mode.Replicated == nil {
			continue // a job's task comes to its end
		}
		for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(s.ID))) {
			t := slot.Current()
			if !t.Live() || t.Node != from.ID || !o.Has(t, from) {
				continue
			}
			if name := lacks(v, &o.Spec, t, from); name != "" {
				return nil, "", fmt.Sprintf("service %s has volume %s there, too", s.Name, name)
			}
			if len(changes)+2 > most {
				return changes, waits, ""
			}
			changes = append(changes, replace(t, from)...)
		}
	}
	return changes, waits, ""
}

// replace ends a task, and makes the one that takes its place where the volumes will be: it waits
// until the scheduler may put it there, and for the end of this one.
func replace(t *cluster.Task, from *cluster.Node) []store.Change {
	ended := store.Copy(t)
	ended.Desired = cluster.TaskShutdown
	next := t.Successor(t.Spec, t.SpecNumber)
	next.Desired, next.Halted, next.Restarts, next.Released = cluster.TaskReady, t.Halted, t.Restarts, t.Released
	next.Home = &cluster.Home{Node: from.ID, Volumes: t.Spec.LocalVolumes()}
	return []store.Change{store.Update(ended), store.Create(next)}
}

// copy has the second node fetch what it lacks.
func (m *Mover) copy(ctx context.Context, v store.View, o *cluster.Move, from *cluster.Node) error {
	i := slices.IndexFunc(o.Spec.Volumes, func(name string) bool { return !slices.Contains(o.Status.Come, name) })
	if i < 0 {
		return m.enter(ctx, o, cluster.MoveMoved, "")
	}
	fetching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go m.heed(fetching, o.ID, stop)
	last := o
	at := m.now()
	told := func(bytes, total int64) {
		if fetching.Err() != nil || m.now().Sub(at) < toldWait {
			return
		}
		at = m.now()
		c := store.Copy(last)
		c.Status.Bytes, c.Status.Total, c.Status.Message = bytes, total, ""
		if m.commit(fetching, store.Update(c)) == nil {
			if is, err := store.Find[*cluster.Move](m.s.View(), o.ID); err == nil {
				last = is
			}
		}
	}
	err := m.nodes.Fetch(fetching, o.Spec.To, Step{Move: o.ID, Volume: o.Spec.Volumes[i], Peer: from.ID, Addr: from.Status.Addr, Term: m.term}, told)
	is, gone := store.Find[*cluster.Move](m.s.View(), o.ID)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case gone != nil:
		return nil
	case is.Spec.Canceled:
		return m.undo(ctx, is, "canceled")
	case errdefs.IsUnavailable(err) && m.tried[o.ID] < tries:
		m.tried[o.ID]++
		return errors.Join(m.say(ctx, is, errtext.Of(err)), sleep(ctx, m.again))
	case err != nil:
		return m.undo(ctx, is, errtext.Of(err))
	}
	c := store.Copy(is)
	c.Status.Come, c.Status.Bytes, c.Status.Total, c.Status.Message = append(c.Status.Come, o.Spec.Volumes[i]), 0, 0, ""
	return m.commit(ctx, store.Update(c))
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return nil
}

// errCanceled ends a copy.
var errCanceled = errors.New("the move was canceled")

// heed ends a copy when its move is canceled. It blocks until ctx ends.
func (m *Mover) heed(ctx context.Context, id string, stop context.CancelCauseFunc) {
	for ctx.Err() == nil {
		if o, err := store.Find[*cluster.Move](m.s.View(), id); err != nil || o.Spec.Canceled {
			stop(errCanceled)
		}
		_ = sleep(ctx, m.wait)
	}
}

// settle tells the places of tasks where their volumes are now, and frees those there.
func (m *Mover) settle(ctx context.Context, v store.View, o *cluster.Move, from *cluster.Node) error {
	delete(m.tried, o.ID)
	if changes := homes(v, o, from); len(changes) > 0 {
		return m.commit(ctx, changes...)
	}
	to := node(v, o.Spec.To)
	if err := m.each(o, to, func(s Step) error { return m.nodes.Free(ctx, to.ID, s) }); err != nil {
		return m.say(ctx, o, errtext.Of(err))
	}
	return m.enter(ctx, o, cluster.MoveDropping, "")
}

// homes are changes of tasks, and of volumes of apps, by which those that take their places know where
// to go.
func homes(v store.View, o *cluster.Move, from *cluster.Node) (changes []store.Change) {
	if from == nil {
		from = &cluster.Node{Meta: cluster.Meta{ID: o.Spec.From}}
	}
	for _, t := range store.List[*cluster.Task](v) {
		if t.Slot == 0 || !o.Binds(t, from) || len(changes) >= most {
			continue
		}
		c := store.Copy(t)
		c.Home = &cluster.Home{Node: o.Spec.To, Volumes: t.Spec.LocalVolumes(), Moved: t.Node != ""}
		changes = append(changes, store.Update(c))
	}
	for _, vol := range store.List[*cluster.Volume](v) { // of apps
		if !vol.Status.Owed && vol.Status.Node == o.Spec.From && slices.Contains(o.Spec.Volumes, vol.Spec.Name) && len(changes) < most {
			c := store.Copy(vol)
			c.Status.Node = o.Spec.To
			changes = append(changes, store.Update(c))
		}
	}
	return changes
}

// drop removes what the first node has, once the containers of tasks that are over have gone, too.
func (m *Mover) drop(ctx context.Context, v store.View, o *cluster.Move, from *cluster.Node) error {
	do := m.nodes.Drop
	if o.Spec.Keep {
		do = m.nodes.Free
	} else if from != nil {
		if changes := history(v, o, from); len(changes) > 0 {
			return m.commit(ctx, changes...)
		}
	}
	if err := m.each(o, from, func(s Step) error { return do(ctx, from.ID, s) }); err != nil {
		return m.say(ctx, o, errtext.Of(err))
	}
	return m.enter(ctx, o, cluster.MoveDone, "")
}

// history are changes by which tasks that are over leave the first node.
func history(v store.View, o *cluster.Move, from *cluster.Node) (changes []store.Change) {
	for _, t := range store.List[*cluster.Task](v, store.OnNode(from.ID)) {
		if t.Status.State.Ended() && t.Desired != cluster.TaskRemove && o.Has(t, from) && len(changes) < most {
			c := store.Copy(t)
			c.Desired = cluster.TaskRemove
			changes = append(changes, store.Update(c))
		}
	}
	return changes
}

// giveBack lets tasks have the volumes on the first node again, and removes what has come to the second.
func (m *Mover) giveBack(ctx context.Context, o *cluster.Move, from, to *cluster.Node) error {
	if !o.Status.Freed {
		if err := m.each(o, from, func(s Step) error { return m.nodes.Free(ctx, from.ID, s) }); err != nil {
			m.log.Warn("a volume cannot be freed: trying again", "move", o.ID, "node", o.Spec.From, "error", err)
			return nil
		}
		c := store.Copy(o)
		c.Status.Freed = true
		return m.commit(ctx, store.Update(c))
	}
	if err := m.each(o, to, func(s Step) error { return m.nodes.Drop(ctx, to.ID, s) }); err != nil {
		m.log.Warn("what came of a volume cannot be removed: trying again", "move", o.ID, "node", o.Spec.To, "error", err)
		return nil
	}
	return m.enter(ctx, o, cluster.MoveUndone, o.Status.Message)
}
