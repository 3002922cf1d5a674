package app

import (
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// clustered tells whether there can be more than one node.
func (d *decision) clustered() bool {
	_, err := store.Named[*cluster.Cluster](d.v, cluster.DefaultCluster)
	return err == nil
}

// locate notes on which node each of the app's volumes is: where the task that ran last with it
// has run. So an app that was removed without its volumes finds them again.
func (d *decision) locate() {
	if !d.clustered() {
		return
	}
	var tasks []*cluster.Task
	for _, vol := range store.List[*cluster.Volume](d.v, store.Owner(d.app.ID)) {
		if vol.Spec.Removed || !cluster.LocalDriver(vol.Spec.Driver, vol.Spec.Options) {
			continue
		}
		if tasks == nil {
			tasks = d.tasks()
		}
		if at := lastOn(tasks, vol.Spec.Name); at != "" && at != vol.Status.Node && !d.changes(vol) {
			c := store.Copy(vol)
			c.Status.Node = at
			d.Changes = append(d.Changes, store.Update(c))
		}
	}
}

// changes tells whether an object is changed already.
func (d *decision) changes(o cluster.Object) bool {
	return slices.ContainsFunc(d.Changes, func(c store.Change) bool { return c.Object.Base().ID == o.Base().ID })
}

// lastOn is the node of the task that began to run last with a volume; "" when none has.
func lastOn(tasks []*cluster.Task, volume string) (node string) {
	var last time.Time
	for _, t := range tasks {
		if t.Slot == 0 || t.Labels[cluster.LabelVolumes] == "anywhere" || !t.Status.RunningAt.After(last) {
			continue
		}
		if slices.Contains(t.Spec.LocalVolumes(), volume) {
			node, last = t.Node, t.Status.RunningAt
			if t.Home != nil && t.Home.Moved {
				node = t.Home.Node // the volume has gone there since
			}
		}
	}
	return node
}

// leaveBehind leaves a volume of an app that goes to nobody, so that it is known where it is;
// false: that is not known.
func (d *decision) leaveBehind(vol *cluster.Volume) bool {
	if vol.Status.Node == "" || !d.clustered() {
		return false
	}
	c := store.Copy(vol)
	c.Owner = ""
	d.Changes = append(d.Changes, store.Update(c))
	return true
}

// going are the apps that are being removed.
func going(v store.View) (out []string) {
	for _, a := range store.List[*cluster.App](v) {
		if a.Spec.Removed {
			out = append(out, a.ID)
		}
	}
	return out
}

// abandoned tells whether an app that goes need not wait for a task: its node is away, and removes
// the container when it is back, for it has no such task any more. One with a volume that another
// app of the name would find there is waited for: two would have it. Volumes that go keep others
// from the node for as long.
func (d *decision) abandoned(t *cluster.Task) bool {
	n, err := store.Find[*cluster.Node](d.v, t.Node)
	if err != nil || n.Status.Ready || t.Desired != cluster.TaskRemove {
		return false
	}
	goes := map[string]bool{}
	for _, vol := range store.List[*cluster.Volume](d.v, store.Owner(d.app.ID)) {
		if d.app.Spec.Volumed && !vol.Spec.External && vol.Status.Node == n.ID {
			goes[vol.Spec.Name] = true
		}
	}
	return !slices.ContainsFunc(t.VolumesOn(n), func(name string) bool { return !goes[name] })
}

// adopt takes a volume that nobody has any more into the app; false: there is none of that name.
func (d *decision) adopt(o cluster.Object) bool {
	want, ok := o.(*cluster.Volume)
	if !ok {
		return false
	}
	is, err := store.Named[*cluster.Volume](d.v, want.Name)
	switch {
	case err != nil || is.Owner != "":
		return false
	case is.Spec.Removed: // it goes first
		d.Again = loop.Soonest(d.Again, d.now.Add(time.Second))
		return true
	}
	c := store.Copy(is)
	c.Owner, c.Spec = d.app.ID, want.Spec
	d.Changes = append(d.Changes, store.Update(c))
	return true
}
