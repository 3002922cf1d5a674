package move

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Desk is what people ask of moves, on any manager. Its methods may be called from several
// goroutines.
type Desk struct {
	Store store.Store
	Nodes Nodes
	// Manages refuses, in the words of a swarm's manager, where this node is none. It does not block.
	Manages func(store.View) error
}

// Asked is what somebody wants to be moved.
type Asked struct {
	Volumes []string
	To      string // name or id of a node
	From    string // the same; "": the only one that has them
	Keep    bool   // what the first node has is not removed
}

// Shown is a move as people see it.
type Shown struct {
	ID       string
	Volumes  []string
	From, To Place
	Keep     bool
	Phase    string // "" (it waits for its turn), holding, copying, moved, dropping, done, undoing, undone
	Message  string // what it waits for, or why it is undone
	Come     []string
	Bytes    int64 // of the volume that is being copied
	Total    int64 // that it has; 0: not known
	Over     bool
}

// Place is a node.
type Place struct{ ID, Name string }

func placeOf(v store.View, id string) Place {
	if n, err := store.Find[*cluster.Node](v, id); err == nil {
		return Place{id, nameOf(v, n)}
	}
	return Place{id, id}
}

// nameOf is what people call a node: its host's name, or its id if another has that name, too.
func nameOf(v store.View, n *cluster.Node) string {
	for _, o := range store.List[*cluster.Node](v) {
		if n.Name == "" || o.Name == n.Name && o.ID != n.ID {
			return n.ID
		}
	}
	return n.Name
}

var word = regexp.MustCompile(`[0-9A-Za-z]+`)

// named is a text in which nodes stand by their ids, as what they say of each other has them, with
// their names.
func named(v store.View, text string) string {
	return word.ReplaceAllStringFunc(text, func(id string) string { return placeOf(v, id).Name })
}

func show(v store.View, o *cluster.Move) Shown {
	return Shown{
		ID: o.ID, Volumes: o.Spec.Volumes, From: placeOf(v, o.Spec.From), To: placeOf(v, o.Spec.To), Keep: o.Spec.Keep, Phase: string(o.Status.Phase),
		Message: named(v, o.Status.Message), Come: o.Status.Come, Bytes: o.Status.Bytes, Total: o.Status.Total, Over: o.Over(),
	}
}

// kinds of errors, with words of their own.
type kind interface{ WithMessage(string) error }

func say(k kind, format string, args ...any) error {
	return k.WithMessage(fmt.Sprintf(format, args...))
}

// List are the moves that there are, the oldest first. Unavailable where this node is no manager.
func (d *Desk) List() ([]Shown, error) {
	v := d.Store.View()
	if err := d.Manages(v); err != nil {
		return nil, err
	}
	list := store.List[*cluster.Move](v)
	slices.SortFunc(list, func(a, b *cluster.Move) int { return a.CreatedAt.Compare(b.CreatedAt) })
	out := make([]Shown, len(list))
	for i, o := range list {
		out[i] = show(v, o)
	}
	return out, nil
}

// Get finds a move by its id, or, of those that are not over, by one of its volumes. NotFound.
func (d *Desk) Get(ref string) (Shown, error) {
	o, v, err := d.find(ref)
	if err != nil {
		return Shown{}, err
	}
	return show(v, o), nil
}

func (d *Desk) find(ref string) (*cluster.Move, store.View, error) {
	v := d.Store.View()
	if err := d.Manages(v); err != nil {
		return nil, v, err
	}
	if o, err := store.Find[*cluster.Move](v, ref); err == nil {
		return o, v, nil
	}
	for _, o := range store.List[*cluster.Move](v) {
		if !o.Over() && slices.Contains(o.Spec.Volumes, ref) {
			return o, v, nil
		}
	}
	return nil, v, say(errdefs.ErrNotFound, "no move of volume %s is under way", ref)
}

// Cancel has a move undone. It does not wait for that. NotFound; FailedPrecondition when the volumes
// have arrived.
func (d *Desk) Cancel(ctx context.Context, ref string) error {
	for {
		o, v, err := d.find(ref)
		if err != nil {
			return err
		}
		switch o.Status.Phase {
		case "", cluster.MoveHolding, cluster.MoveCopying:
		case cluster.MoveUndoing, cluster.MoveUndone:
			return nil
		default:
			return say(errdefs.ErrFailedPrecondition, "volume %s is on node %s already: move it back", o.Spec.Volumes[0], placeOf(v, o.Spec.To).Name)
		}
		c := store.Copy(o)
		c.Spec.Canceled = true
		if _, err = d.Store.Commit(ctx, store.Update(c)); !errdefs.IsConflict(err) {
			return err
		}
	}
}

// Begin begins a move, and gives its id; it does not wait for its end. It asks all nodes, and blocks for
// as long as they may take. InvalidArgument, NotFound, NotImplemented for volumes whose content is on no
// node; Conflict, FailedPrecondition when something is in the way.
func (d *Desk) Begin(ctx context.Context, a Asked) (string, error) {
	v := d.Store.View()
	if err := d.Manages(v); err != nil {
		return "", err
	}
	a.Volumes = slices.Compact(slices.Sorted(slices.Values(a.Volumes)))
	if len(a.Volumes) == 0 || slices.Contains(a.Volumes, "") {
		return "", say(errdefs.ErrInvalidArgument, "no volume is named")
	}
	to, err := nodeNamed(v, a.To)
	if err != nil {
		return "", err
	}
	if !to.Status.Ready || to.Spec.Availability == cluster.Drain || to.Spec.Availability == cluster.Paused {
		return "", say(errdefs.ErrFailedPrecondition, "node %s is not available for tasks", to.Name)
	}
	from, err := d.source(ctx, v, a, to)
	if err != nil {
		return "", err
	}
	o := &cluster.Move{Spec: cluster.MoveSpec{Volumes: a.Volumes, From: from.ID, To: to.ID, Keep: a.Keep}}
	if err := inTheWay(v, o, from, to); err != nil {
		return "", err
	}
	o.ID = cluster.NewID()
	_, err = d.Store.Commit(ctx, store.Create(o))
	return o.ID, err
}

func nodeNamed(v store.View, ref string) (*cluster.Node, error) {
	n, err := store.Resolve[*cluster.Node](v, ref)
	switch {
	case errdefs.IsNotFound(err):
		return nil, say(errdefs.ErrNotFound, "node %s not found", ref)
	case errdefs.IsInvalidArgument(err):
		return nil, say(errdefs.ErrInvalidArgument, "node %s is ambiguous: name it by its id", ref)
	}
	return n, err
}

// source is the node that has the volumes, all of which can be moved.
func (d *Desk) source(ctx context.Context, v store.View, a Asked, to *cluster.Node) (*cluster.Node, error) {
	var wanted *cluster.Node
	if a.From != "" {
		n, err := nodeNamed(v, a.From)
		if err != nil {
			return nil, err
		}
		wanted = n
	}
	for _, name := range a.Volumes {
		found, silent := d.ask(ctx, v, name)
		if _, there := found[to.ID]; there {
			return nil, say(errdefs.ErrConflict, "node %s has a volume %s already", to.Name, name)
		}
		if slices.Contains(silent, to.ID) {
			return nil, say(errdefs.ErrUnavailable, "node %s is not available", to.Name)
		}
		n, err := holder(v, name, found, wanted, silent)
		if err != nil {
			return nil, err
		}
		if err := movable(found[n.ID], n); err != nil {
			return nil, err
		}
		wanted = n
	}
	return wanted, nil
}

// holder is the node of those found that is meant.
func holder(v store.View, name string, found map[string]Volume, wanted *cluster.Node, silent []string) (*cluster.Node, error) {
	if wanted != nil {
		if slices.Contains(silent, wanted.ID) {
			return nil, say(errdefs.ErrUnavailable, "node %s is not available", wanted.Name)
		}
		if _, there := found[wanted.ID]; !there {
			return nil, say(errdefs.ErrNotFound, "node %s has no volume %s", wanted.Name, name)
		}
		return wanted, nil
	}
	var names []string
	var n *cluster.Node
	for id := range found {
		n, _ = store.Find[*cluster.Node](v, id)
		names = append(names, placeOf(v, id).Name)
	}
	slices.Sort(names)
	switch {
	case len(names) > 1:
		return nil, say(errdefs.ErrInvalidArgument, "volume %s is on nodes %s: say from which one it is to be moved (--from)", name, strings.Join(names, ", "))
	case n == nil && len(silent) > 0:
		return nil, say(errdefs.ErrNotFound, "no node that can be reached has a volume %s", name)
	case n == nil:
		return nil, say(errdefs.ErrNotFound, "no node has a volume %s", name)
	}
	return n, nil
}

// movable refuses a volume that cannot be moved as it is.
func movable(has Volume, n *cluster.Node) error {
	switch {
	case has.Driver != "local" || !cluster.LocalDriver(has.Driver, has.Options):
		return say(errdefs.ErrNotImplemented, "volume %s is on storage that nodes share (driver %s): tasks have it wherever they are", has.Name, cmp.Or(has.Options["type"], has.Driver))
	case has.Options["type"] != "" || has.Options["device"] != "":
		return say(errdefs.ErrNotImplemented, "volume %s has its content elsewhere: its driver mounts %s of type %q on node %s", has.Name, has.Options["device"], has.Options["type"], n.Name)
	case has.Moving != "":
		return say(errdefs.ErrConflict, "volume %s is being moved already", has.Name)
	}
	var names []string
	for _, u := range has.Users {
		if u.Task == "" {
			names = append(names, u.Name)
		}
	}
	if len(names) > 0 {
		return say(errdefs.ErrConflict, "volume %s is used on node %s by containers that are of no service: %s", has.Name, n.Name, strings.Join(names, ", "))
	}
	return nil
}

// inTheWay tells why the tasks that have the volumes cannot go along.
func inTheWay(v store.View, o *cluster.Move, from, to *cluster.Node) error {
	for _, other := range store.List[*cluster.Move](v) {
		if other.Over() {
			continue
		}
		if i := slices.IndexFunc(other.Spec.Volumes, func(name string) bool { return slices.Contains(o.Spec.Volumes, name) }); i >= 0 {
			return say(errdefs.ErrConflict, "volume %s is being moved already", other.Spec.Volumes[i])
		}
	}
	for _, vol := range store.List[*cluster.Volume](v) { // the node would take what comes for what is to go
		if vol.Status.Owed && vol.Status.Node == to.ID && slices.Contains(o.Spec.Volumes, vol.Spec.Name) {
			return say(errdefs.ErrConflict, "node %s has been away and is to remove a volume %s of before: try again in a minute", to.Name, vol.Spec.Name)
		}
	}
	for _, s := range store.List[*cluster.Service](v) {
		for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(s.ID))) {
			t := slot.Current()
			at := t.Node
			if b := t.Bound(); at == "" && b != nil {
				at = b.Node
			}
			if at != from.ID || t.Desired.Stops() || !o.Has(t, from) {
				continue
			}
			if err := stays(v, o, s, t, from, to); err != nil {
				return err
			}
		}
	}
	return nil
}

// stays tells why a task of a service cannot go to another node.
func stays(v store.View, o *cluster.Move, s *cluster.Service, t *cluster.Task, from, to *cluster.Node) error {
	if s.Spec.Mode.Global || s.Spec.Mode.GlobalJob {
		return say(errdefs.ErrFailedPrecondition, "service %s is global: its tasks, which have the volume, stay on their nodes", s.Name)
	}
	if name := lacks(v, &o.Spec, t, from); name != "" {
		return say(errdefs.ErrFailedPrecondition, "service %s has volume %s on node %s, too: move both at once", s.Name, name, from.Name)
	}
	if k := s.Spec.Task.Placement.Keep; k != nil && k.Node != to.ID {
		return say(errdefs.ErrFailedPrecondition, "service %s, which has the volume, stays on node %s: %s is there", s.Name, placeOf(v, k.Node).Name, k.Why)
	}
	constraints, err := cluster.ParseConstraints(s.Spec.Task.Placement.Constraints)
	if err != nil || slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(to) }) {
		return say(errdefs.ErrFailedPrecondition, "node %s does not satisfy the constraints of service %s, which has the volume", to.Name, s.Name)
	}
	return nil
}

// atOnce is how many nodes are asked at a time.
const atOnce = 32

// ask asks the nodes that are up for a volume, "" for all of theirs; silent are those that have not
// answered, or are down.
func (d *Desk) ask(ctx context.Context, v store.View, name string) (found map[string]Volume, silent []string) {
	found = map[string]Volume{}
	all, silent := d.all(ctx, v, name)
	for id, list := range all {
		for _, o := range list {
			if o.Name == name {
				found[id] = o
			}
		}
	}
	return found, silent
}

func (d *Desk) all(ctx context.Context, v store.View, name string) (found map[string][]Volume, silent []string) {
	found = map[string][]Volume{}
	var mu sync.Mutex
	var calls sync.WaitGroup
	turns := make(chan struct{}, atOnce)
	for _, n := range store.List[*cluster.Node](v) {
		if !n.Status.Ready {
			mu.Lock()
			silent = append(silent, n.ID)
			mu.Unlock()
			continue
		}
		turns <- struct{}{}
		calls.Go(func() {
			list, err := d.Nodes.Volumes(ctx, n.ID, name)
			<-turns
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, n.ID)
				return
			}
			found[n.ID] = list
		})
	}
	calls.Wait()
	return found, silent
}

// Placed is a volume and where it is.
type Placed struct {
	Volume
	Node Place
}

// Volumes are those of all nodes, by name and node; missing are the names of nodes that were not to
// be asked. It blocks for as long as they may take.
func (d *Desk) Volumes(ctx context.Context) (list []Placed, missing []string, err error) {
	v := d.Store.View()
	if err := d.Manages(v); err != nil {
		return nil, nil, err
	}
	found, silent := d.all(ctx, v, "")
	for id, volumes := range found {
		for _, o := range volumes {
			list = append(list, Placed{o, placeOf(v, id)})
		}
	}
	for _, id := range silent {
		missing = append(missing, placeOf(v, id).Name)
	}
	slices.Sort(missing)
	slices.SortFunc(list, func(a, b Placed) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node.Name, b.Node.Name), cmp.Compare(a.Node.ID, b.Node.ID))
	})
	return list, missing, nil
}
