// Package reaper is the loop that removes what is over: tasks that are to be removed
// once nothing of them runs, and the older of those that have ended, of which each
// place keeps a few to look at. Of an app's place that is the last failure, until one of
// a later version is well there: who knows Compose expects one container of a place, and
// sees in the app's history what else there was.
package reaper

import (
	"cmp"
	"math"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// History is how many tasks that have ended a place keeps, if nobody says otherwise.
const History = 5

// lastFailure is the same of an app's place.
const lastFailure = 1

// Loop is the loop.
type Loop struct {
	Keep int // tasks that have ended, of each place; 0: History
}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "reaper" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindTask, cluster.KindNode} }

// Keys implements loop.Loop: the owners of tasks that are over, or by which others may be.
func (Loop) Keys(v store.View, e store.Event) (out []string) {
	if e.Kind() == cluster.KindNode {
		if e.New != nil {
			return nil
		}
		for _, t := range store.List[*cluster.Task](v, store.OnNode(e.Old.Base().ID)) {
			if !slices.Contains(out, t.Owner) {
				out = append(out, t.Owner)
			}
		}
		return out
	}
	t, ok := e.New.(*cluster.Task)
	if ok && (t.Status.State.Ended() || t.Desired == cluster.TaskRemove || t.Status.State == cluster.TaskReady || well(t)) {
		return []string{t.Owner}
	}
	return nil
}

// well tells whether a task is as it is to be.
func well(t *cluster.Task) bool {
	return t.Status.State == cluster.TaskComplete || t.Status.State == cluster.TaskRunning && t.Status.Healthy
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, t := range store.List[*cluster.Task](v) {
		out = append(out, t.Owner)
	}
	return out
}

// Decide implements loop.Loop.
func (l Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	tasks := store.List[*cluster.Task](v, store.Owner(key))
	for _, t := range tasks {
		if over(v, t) {
			d.Changes = append(d.Changes, store.Delete(t))
		}
	}
	for _, slot := range cluster.Slots(tasks) {
		current, over := slot.Current(), 0
		if current.Status.State.Before(cluster.TaskReady) {
			continue // its container takes over what the one before it has
		}
		for _, t := range slot.Tasks[1:] {
			if !t.Status.State.Ended() || !t.Desired.Ended() {
				continue
			}
			keep := cmp.Or(l.Keep, History)
			if n, said := kept(v); said {
				keep = n
			}
			if t.App != "" {
				keep = lastFailure
			}
			past := t.Status.State == cluster.TaskShutdown || t.SpecNumber < current.SpecNumber && well(current)
			if over++; over > keep || t.App != "" && past {
				t = store.Copy(t)
				t.Desired = cluster.TaskRemove
				d.Changes = append(d.Changes, store.Update(t))
			}
		}
	}
	return d
}

// over tells whether nothing is left of a task, nor anything to wait for. Its container goes
// first: until then it holds volumes and names. One that no node has got yet has none, and of
// one whose node does not belong to the cluster any more nobody will ever hear.
func over(v store.View, t *cluster.Task) bool {
	lost := false
	if t.Node != "" {
		_, err := store.Find[*cluster.Node](v, t.Node)
		lost = err != nil
	}
	if t.Desired == cluster.TaskRemove {
		return t.Status.Gone || t.Node == "" || lost
	}
	return lost && t.Desired.Stops() && !t.Status.State.Ended()
}

// kept is how many tasks that have ended a place keeps as the swarm has it, whose number
// counts the present task, too.
func kept(v store.View) (n int, said bool) {
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err != nil || c.Spec.Orchestration.TaskHistoryRetentionLimit == nil {
		return 0, false
	}
	limit := *c.Spec.Orchestration.TaskHistoryRetentionLimit
	if limit < 0 {
		return math.MaxInt, true
	}
	return int(max(limit, 1) - 1), true
}
