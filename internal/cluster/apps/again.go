package apps

import (
	"context"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Again has another task take the place of one of an app that has ended and that its restart
// policy leaves so, and gives its id; its container is another one, too. The id of a task that
// has not ended, or gets a successor anyway, is its own, and nothing is done. NotFound for what is
// no task of the app; Conflict for one whose place another has or that is to go, and for what
// runs to its end as often as its service says.
func (a *Apps) Again(ctx context.Context, name, task string) (string, error) {
	for {
		v := a.s.View()
		app, err := store.Named[*cluster.App](v, name)
		if errdefs.IsNotFound(err) {
			return "", notFound(name)
		}
		if err != nil {
			return "", err
		}
		t, err := store.Find[*cluster.Task](v, task)
		if err != nil && !errdefs.IsNotFound(err) {
			return "", err
		}
		if err != nil || t.App != app.ID {
			return "", say(errdefs.ErrNotFound, "app %s has no task %q", name, task)
		}
		next, err := a.next(v, t)
		if err != nil || next == nil {
			return t.ID, err
		}
		changes := []store.Change{store.Create(next)}
		if !t.Desired.Stops() { // else it was dealt with
			was := cluster.Copy(t)
			was.Desired = cluster.TaskShutdown
			changes = append(changes, store.Update(was))
		}
		// Its service: two who ask at once do not both get a successor.
		s, err := store.Find[*cluster.Service](v, t.Owner)
		if err != nil {
			return "", err
		}
		changes = append(changes, store.Update(cluster.Copy(s)))
		if _, err = a.s.Commit(ctx, changes...); !errdefs.IsConflict(err) {
			return next.ID, err
		}
	}
}

// next is who takes the place of a task by Again, nil when nobody has to.
func (a *Apps) next(v store.View, t *cluster.Task) (*cluster.Task, error) {
	if !t.Status.State.Ended() {
		if t.Desired.Stops() {
			return nil, ousted(t)
		}
		return nil, nil
	}
	s, err := store.Find[*cluster.Service](v, t.Owner)
	if errdefs.IsNotFound(err) {
		return nil, ousted(t)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case s.Spec.Mode.Replicated == nil && !s.Spec.Mode.Global:
		return nil, say(errdefs.ErrConflict, "%s has ended, and is a job's, which runs when its service says", t.Name)
	case t.SpecNumber != s.Spec.Number || !last(v, t):
		return nil, ousted(t)
	case !t.Desired.Stops() && t.Again(a.now()) != nil:
		return nil, nil // it is about to have one
	}
	next := t.Successor(s.Spec.Task, t.SpecNumber)
	next.ID = cluster.NewID()
	return next, nil
}

// last tells whether a task is the newest of its place, and its container not to be removed.
func last(v store.View, t *cluster.Task) bool {
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(t.Owner))) {
		if slot.Current().ID == t.ID {
			return true
		}
	}
	return false
}

// ousted refuses to start what is not in its place any more.
func ousted(t *cluster.Task) error {
	return say(errdefs.ErrConflict, "it was a container of %s, whose place another has taken or takes: see \"escale apps\"", t.Name)
}
