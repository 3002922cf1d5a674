package swarm

import (
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// FindTask finds the task whose container somebody means: by the task's name or id, by the
// name or id of the container, or by the beginning of one of these ids. A name that a place
// has for one task after the other ("web.1") means the one that runs, else the last. Tasks
// of apps are found, too. NotFound for what is none, or has no container; InvalidArgument
// when several begin so.
func (s *Swarm) FindTask(ref string) (*cluster.Task, error) {
	var whole, place, begins []*cluster.Task
	for _, t := range store.List[*cluster.Task](s.Store.View()) {
		c := t.Status.Container
		if c == nil || c.ID == "" || t.Node == "" {
			continue
		}
		switch {
		case ref == t.ID, ref == c.ID, ref == t.Name+"."+t.ID:
			return t, nil
		case ref == t.Name:
			place = append(place, t)
		case ref == t.ContainerName():
			whole = append(whole, t)
		case len(ref) >= minPrefix && (strings.HasPrefix(t.ID, ref) || strings.HasPrefix(c.ID, ref)):
			begins = append(begins, t)
		}
	}
	switch {
	case len(whole) > 0:
		return lastOf(whole), nil
	case len(place) > 0:
		return lastOf(place), nil
	case len(begins) > 1:
		return nil, say(errdefs.ErrInvalidArgument, "multiple IDs found with provided prefix: %s", ref)
	case len(begins) == 1:
		return begins[0], nil
	}
	return nil, say(errdefs.ErrNotFound, "task %s not found", ref)
}

// minPrefix is the least of an id by which a container elsewhere is found: fewer letters are
// rather a name that was mistyped.
const minPrefix = 3

// lastOf is the task that runs, else the one that was made last.
func lastOf(list []*cluster.Task) *cluster.Task {
	best := list[0]
	for _, t := range list[1:] {
		up, was := t.Status.State == cluster.TaskRunning, best.Status.State == cluster.TaskRunning
		if up && !was || up == was && t.CreatedAt.After(best.CreatedAt) {
			best = t
		}
	}
	return best
}
