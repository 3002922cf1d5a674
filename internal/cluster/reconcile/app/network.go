package app

import (
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// leave keeps in mind a network whose part of the app has another name from now on: it is
// not wanted any more, and goes when nobody is on it.
func (d *decision) leave(was, is cluster.Object, has map[string]bool) {
	old, ok := was.(*cluster.Network)
	if !ok || old.Spec.External || old.Spec.Name == is.(*cluster.Network).Spec.Name {
		return
	}
	if part := d.part(old) + "@" + old.Spec.Name; !has[part] { // no part that is asked for has such a name
		d.Changes = append(d.Changes, store.Create(&cluster.Network{Meta: d.meta(part), Spec: old.Spec}))
	}
}

// anew has a network of the cluster's that is to be of other options give way to another one,
// once no task is on it; false: it is none, and is changed as it stands.
func (d *decision) anew(was, is cluster.Object) bool {
	old, ok := was.(*cluster.Network)
	if !ok || !old.Overlay() || !old.Spec.Differs(is.(*cluster.Network).Spec) {
		return false
	}
	on := func(a cluster.TaskAddress) bool { return a.Network == old.ID }
	if slices.ContainsFunc(store.List[*cluster.Task](d.v, store.On(old.ID)), func(t *cluster.Task) bool {
		return !t.Status.State.Ended() && slices.ContainsFunc(t.Addresses, on)
	}) {
		return true // they are told to end, and a look is taken when they have
	}
	d.Changes = append(d.Changes, store.Delete(old), store.Create(&cluster.Network{Meta: d.meta(d.part(old)), Spec: is.(*cluster.Network).Spec}))
	return true
}
