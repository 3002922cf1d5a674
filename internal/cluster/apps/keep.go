package apps

import (
	"context"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// The labels that tell whose a container is.
const (
	labelTask    = cluster.LabelTask
	labelProject = "com.docker.compose.project"
	labelOneOff  = "com.docker.compose.oneoff"
)

// Creating refuses (Conflict) a container that a client makes with labels of a project
// that is kept, unless it is one that runs beside the project's, once.
func (a *Apps) Creating(labels map[string]string) error {
	project := labels[labelProject]
	if project == "" || labels[labelOneOff] == "True" {
		return nil
	}
	if _, err := store.Named[*cluster.App](a.s.View(), project); err != nil {
		return nil // nobody's
	}
	return say(errdefs.ErrConflict, "app %s is kept by the engine: change it with \"escale up\", or make its containers yours with \"escale release %s\"", project, project)
}

// Halt notes, durably, that a client ends or removes a container: if it is a task's, it
// is left so until it is started again. To be called before it is done.
func (a *Apps) Halt(ctx context.Context, labels map[string]string) error {
	task := labels[labelTask]
	return a.mark(ctx, task, func(v store.View, t *cluster.Task) (*cluster.Task, error) {
		if t.App == "" {
			return nil, nil // a service of the swarm is kept whatever happens to its containers
		}
		// One that has ended may get a successor, and that is meant, until it has a
		// container of its own: the one that has ended can be thrown away then. One on another
		// node is not meant by who does something here.
		node := t.Node
		for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(t.Owner))) {
			for _, other := range slot.Tasks {
				if other.ID == t.ID && t.Status.State.Ended() {
					t = slot.Current()
				}
			}
		}
		if t.ID != task && (!t.Status.State.Before(cluster.TaskReady) || t.Node != "" && t.Node != node) || t.Halted || t.Desired.Stops() {
			return nil, nil
		}
		t = cluster.Copy(t)
		t.Halted = true
		return t, nil
	})
}

// Resume notes that a client starts a container. Conflict when it is that of a task that
// has ended, whose place another container has or will have.
func (a *Apps) Resume(ctx context.Context, labels map[string]string) error {
	return a.mark(ctx, labels[labelTask], func(v store.View, t *cluster.Task) (*cluster.Task, error) {
		switch {
		case t.Status.State.Ended() && t.Desired == cluster.TaskShutdown && last(v, t):
			return nil, say(errdefs.ErrConflict, "it was a container of %s, which has ended: \"escale compose start\" makes another in its place", t.Name)
		case t.Status.State.Ended() || t.Desired.Stops():
			return nil, ousted(t)
		case !t.Halted:
			return nil, nil
		}
		t = cluster.Copy(t)
		t.Halted = false
		return t, nil
	})
}

// mark writes what f makes of a task, if anything. One that is not there is nobody's.
func (a *Apps) mark(ctx context.Context, id string, f func(store.View, *cluster.Task) (*cluster.Task, error)) error {
	for id != "" {
		v := a.s.View()
		t, err := store.Find[*cluster.Task](v, id)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err == nil {
			t, err = f(v, t)
		}
		if err != nil || t == nil {
			return err
		}
		if _, err = a.s.Commit(ctx, store.Update(t)); !errdefs.IsConflict(err) {
			return err
		}
	}
	return nil
}
