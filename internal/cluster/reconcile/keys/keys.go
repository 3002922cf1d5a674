// Package keys is the loop that makes the keys of encrypted networks, and others in their
// place from time to time. The next key is with all nodes before anybody sends by it.
package keys

import (
	"crypto/rand"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Period is how long a network is encrypted by one key.
const Period = 12 * time.Hour

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "keys" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindNetwork, cluster.KindSecret} }

// Keys implements loop.Loop: ids of networks.
func (Loop) Keys(_ store.View, e store.Event) (out []string) {
	for _, o := range []cluster.Object{e.Old, e.New} {
		switch o := o.(type) {
		case *cluster.Network:
			if o != nil && o.Encrypted() {
				return []string{o.ID}
			}
		case *cluster.Secret:
			if o != nil && o.Internal() {
				return []string{o.Spec.Network}
			}
		}
	}
	return nil
}

// All implements loop.Loop.
func (Loop) All(v store.View) (out []string) {
	seen := map[string]bool{}
	for _, n := range store.List[*cluster.Network](v) {
		if n.Encrypted() {
			seen[n.ID], out = true, append(out, n.ID)
		}
	}
	for _, s := range store.List[*cluster.Secret](v) {
		if s.Internal() && !seen[s.Spec.Network] {
			out = append(out, s.Spec.Network)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, network string, now time.Time) (d loop.Decision) {
	n, gone := store.Find[*cluster.Network](v, network)
	s, none := store.Named[*cluster.Secret](v, cluster.KeysOf(network))
	if gone != nil || !n.Encrypted() {
		if none == nil {
			d.Changes = []store.Change{store.Delete(s)}
		}
		return d
	}
	if none != nil {
		first, second := another(1), another(2)
		d.Changes = []store.Change{store.Create(&cluster.Secret{Meta: cluster.Meta{ID: cluster.NewID(), Name: cluster.KeysOf(network)}, Spec: cluster.SecretSpec{
			Name: cluster.KeysOf(network), Network: network, Data: cluster.NetworkKeys{Since: now.UTC(), Current: first, Next: second}.Bytes(),
		}})}
		return d
	}
	k, err := cluster.ReadNetworkKeys(s.Spec.Data)
	if err == nil {
		if due := k.Since.Add(Period); now.Before(due) {
			d.Again = due
			return d
		}
	}
	s = store.Copy(s)
	s.Spec.Data = turn(k, now).Bytes()
	d.Changes = []store.Change{store.Update(s)}
	return d
}

// turn makes the next key the current one.
func turn(k cluster.NetworkKeys, now time.Time) cluster.NetworkKeys {
	next := k.Next
	if next.ID == 0 {
		next = another(k.Current.ID + 1)
	}
	return cluster.NetworkKeys{Since: now.UTC(), Previous: k.Current, Current: next, Next: another(next.ID + 1)}
}

func another(id uint64) cluster.NetworkKey {
	k := cluster.NetworkKey{ID: id, Secret: make([]byte, cluster.NetworkKeySize)}
	_, _ = rand.Read(k.Secret) // never fails: see crypto/rand
	return k
}
