package scheduler

import (
	"cmp"
	"fmt"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// only is the filter of what can be on one node alone.
func only(at *cluster.Node, why string) filter {
	return filter{why: why, fits: func(r *Room) bool { return r.Node.ID == at.ID }, whole: true}
}

// home is the node that a task cannot leave, and what holds it there, which may be a volume; nil:
// nothing does.
func home(v store.View, t *cluster.Task) (at *cluster.Node, why, volume string) {
	if n, why := kept(v, t); n != nil {
		return n, why, ""
	}
	if n, volume := bound(v, t); n != nil {
		return n, onNode(volume, n), volume
	}
	for _, volume := range shared(v, t) {
		if n := whereIs(v, t, volume); n != nil {
			return n, onNode(volume, n), volume
		}
	}
	return nil, "", ""
}

func onNode(volume string, n *cluster.Node) string {
	return fmt.Sprintf("volume %q is on node %s", volume, cmp.Or(n.Name, n.ID))
}

// kept is the node that the task's spec names. Once that is no more, there is none that would
// do; a host that is in no cluster any more has all that its apps use.
func kept(v store.View, t *cluster.Task) (*cluster.Node, string) {
	k := t.Spec.Placement.Keep
	if k == nil {
		return nil, ""
	}
	if _, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster); err != nil {
		return nil, ""
	}
	n, err := store.Find[*cluster.Node](v, k.Node)
	if err != nil {
		return &cluster.Node{Meta: cluster.Meta{ID: k.Node}}, fmt.Sprintf("%s was on node %s, which is no more", k.Why, k.Node)
	}
	return n, fmt.Sprintf("%s is on node %s", k.Why, cmp.Or(n.Name, n.ID))
}

// bound is the node where the volumes are that the task's place had, and one of these. What was
// on a node that is no more holds nobody.
func bound(v store.View, t *cluster.Task) (*cluster.Node, string) {
	h := t.Bound()
	if h == nil {
		return nil, ""
	}
	n, err := store.Find[*cluster.Node](v, h.Node)
	if err != nil {
		return nil, ""
	}
	for _, name := range h.Volumes {
		if elsewhere(v, name) {
			continue
		}
		if text, err := t.Place(n).Expand(name, nil); err == nil {
			name = text
		}
		return n, name
	}
	return nil, ""
}

// elsewhere tells whether a volume is known not to exist on one node alone.
func elsewhere(v store.View, name string) bool {
	return slices.ContainsFunc(store.List[*cluster.Volume](v), func(o *cluster.Volume) bool {
		return o.Spec.Name == name && !cluster.LocalDriver(o.Spec.Driver, o.Spec.Options)
	})
}

// shared are the volumes of a task that all tasks of its app have in common, as they would on
// one host: so they are on one node.
func shared(v store.View, t *cluster.Task) (out []string) {
	if t.App == "" || t.Slot == 0 || t.Labels[cluster.LabelVolumes] == "anywhere" {
		return nil
	}
	for _, name := range t.Spec.LocalVolumes() {
		if !elsewhere(v, name) {
			out = append(out, name)
		}
	}
	return out
}

// whereIs is the node where an app's volume is, or where a task is that will have it made; nil: it
// is nowhere.
func whereIs(v store.View, t *cluster.Task, volume string) *cluster.Node {
	node := ""
	for _, o := range store.List[*cluster.Volume](v, store.Owner(t.App)) {
		if o.Spec.Name == volume {
			node = o.Status.Node
		}
	}
	if n, err := store.Find[*cluster.Node](v, node); err == nil {
		return n
	}
	for _, o := range store.List[*cluster.Task](v, store.OfApp(t.App)) {
		if o.ID == t.ID || o.Node == "" || o.Status.State.Ended() || !slices.Contains(shared(v, o), volume) {
			continue
		}
		if n, err := store.Find[*cluster.Node](v, o.Node); err == nil {
			return n
		}
	}
	return nil
}

// companions are what the other services of an app ask for that have a volume of the task's, too:
// all of them have to be able to be where it comes to be.
func companions(v store.View, t *cluster.Task) (out []filter) {
	mine := shared(v, t)
	if len(mine) == 0 {
		return nil
	}
	for _, s := range store.List[*cluster.Service](v, store.Owner(t.App)) {
		if s.ID == t.Owner || s.Spec.Mode.Global || s.Spec.Mode.GlobalJob || s.Spec.Labels[cluster.LabelVolumes] == "anywhere" {
			continue
		}
		i := slices.IndexFunc(mine, func(name string) bool { return slices.Contains(s.Spec.Task.LocalVolumes(), name) })
		if i < 0 {
			continue
		}
		if at, why := kept(v, &cluster.Task{Spec: s.Spec.Task}); at != nil {
			out = append(out, only(at, fmt.Sprintf("volume %q is shared with service %s, and %s", mine[i], s.Name, why)))
		}
		constraints, err := cluster.ParseConstraints(s.Spec.Task.Placement.Constraints)
		if err != nil || len(constraints) == 0 {
			continue
		}
		out = append(out, filter{why: fmt.Sprintf("scheduling constraints of service %s, which shares volume %q, not satisfied", s.Name, mine[i]), fits: func(r *Room) bool {
			return !slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(r.Node) })
		}})
	}
	return out
}

// volume is one of an app's.
type volume struct{ app, name string }

// settle remembers where this round has put the volumes of a task.
func (r *round) settle(t *cluster.Task, at *cluster.Node) {
	for _, name := range shared(r.v, t) {
		if r.homes == nil {
			r.homes = map[volume]*cluster.Node{}
		}
		r.homes[volume{t.App, name}] = at
	}
}

// settled is where this round has put one of the task's volumes, as a filter.
func (r *round) settled(t *cluster.Task) []filter {
	if len(r.homes) == 0 {
		return nil
	}
	for _, name := range shared(r.v, t) {
		if at := r.homes[volume{t.App, name}]; at != nil {
			return []filter{only(at, onNode(name, at))}
		}
	}
	return nil
}
