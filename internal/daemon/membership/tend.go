package membership

import (
	"context"
	"fmt"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd"
	"github.com/containerd/errdefs"
)

// How often the leader looks after the managers, how long it waits for one of them at a time,
// and for one that was given a place and has not come; and how long a node is kept that was
// let in and was never heard of.
const (
	tended   = 500 * time.Millisecond
	asked    = time.Second
	comes    = time.Minute
	neverSet = 10 * time.Minute
)

// tender is the leader's care for the managers: who is to be one has a vote, who is not to be
// one has no place, and the store says which of them are there.
type tender struct {
	m     *Membership
	st    *etcd.Store
	s     store.Store // that refuses who does not lead
	empty map[uint64]time.Time
	said  string
}

func newTender(m *Membership, st *etcd.Store, s store.Store) *tender {
	return &tender{m: m, st: st, s: s, empty: map[uint64]time.Time{}}
}

// run looks after the managers until ctx ends, or this one is to lead no more.
func (t *tender) run(ctx context.Context) error {
	t.begin(ctx)
	for ctx.Err() == nil {
		id := t.m.Node()
		if !wanted(t.st.View(), id) && t.another(id) {
			return fmt.Errorf("it is not to be a manager any more: %w", context.Canceled)
		}
		err := t.look(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != t.said {
			t.m.log.Warn("managers", "error", err)
			t.said = err.Error()
		}
		select {
		case <-time.After(tended):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// begin says that this manager leads and no other does, before they are asked whether they are there,
// which takes a second of one that is not. What goes wrong is put right by look.
func (t *tender) begin(ctx context.Context) {
	var changes []store.Change
	for _, n := range store.List[*cluster.Node](t.s.View()) {
		own, is := n.ID == t.m.Node(), n.Status.Manager
		if !n.Spec.Manager || is == nil || is.Leader == own {
			continue
		}
		n = store.Copy(n)
		n.Status.Manager.Leader, n.Status.Manager.Reachable = own, own || is.Reachable
		changes = append(changes, store.Update(n))
	}
	if _, err := t.s.Commit(ctx, changes...); err != nil && ctx.Err() == nil {
		t.m.log.Debug("who leads is said later", "error", err)
	}
}

// another tells whether a manager beside one can lead.
func (t *tender) another(id string) bool {
	for _, n := range store.List[*cluster.Node](t.st.View()) {
		if s := n.Status.Manager; n.ID != id && n.Spec.Manager && s != nil && s.Reachable {
			return true
		}
	}
	return false
}

// look compares the members of the store with the nodes that are to be managers.
func (t *tender) look(ctx context.Context) error {
	members, err := t.st.Members(ctx)
	if err != nil {
		return err
	}
	of := map[string]etcd.Member{}
	var empty []etcd.Member
	for _, o := range members {
		if o.Name == "" {
			empty = append(empty, o)
		} else {
			of[o.Name] = o
		}
	}
	v := t.s.View()
	for _, n := range store.List[*cluster.Node](v) {
		o, is := of[n.ID]
		delete(of, n.ID)
		if err := t.node(ctx, n, o, is); err != nil {
			return err
		}
	}
	for _, o := range of { // of nodes that were removed
		if err := t.remove(ctx, o, "it is no node any more"); err != nil {
			return err
		}
	}
	return t.late(ctx, empty)
}

// node looks after one node; is tells whether it is a member.
func (t *tender) node(ctx context.Context, n *cluster.Node, o etcd.Member, is bool) error {
	switch {
	case n.Spec.Manager && is && o.Learner:
		ask, cancel := context.WithTimeout(ctx, asked)
		err := t.st.Promote(ask, o.ID)
		cancel()
		if err != nil { // it has to learn yet, or to come back
			o.Reachable = false
		}
		return t.note(ctx, n, &cluster.ManagerStatus{Reachable: err == nil})
	case n.Spec.Manager && is:
		return t.note(ctx, n, &cluster.ManagerStatus{Reachable: o.Reachable, Leader: n.ID == t.m.Node()})
	case !n.Spec.Manager && is:
		if n.ID == t.m.Node() {
			return nil // another leader does that
		}
		if err := t.remove(ctx, o, "it is not to be a manager any more"); err != nil {
			return err
		}
		return t.note(ctx, n, nil)
	case !n.Spec.Manager && n.Status.Manager != nil:
		return t.note(ctx, n, nil)
	case !n.Status.Ready && n.Status.CertIssuer == "" && time.Since(n.Status.Since) > neverSet:
		t.m.log.Warn("a node that was let in has never come: it is removed", "node", n.ID)
		changes := []store.Change{store.Delete(n)}
		if c, err := store.Named[*cluster.Cluster](t.s.View(), cluster.DefaultCluster); err == nil {
			c = store.Copy(c)
			c.Bar(n.ID, time.Now())
			changes = append(changes, store.Update(c))
		}
		_, err := t.s.Commit(ctx, changes...)
		return passing(err)
	}
	return nil
}

// note writes what is seen of a manager, if that is another than it was.
func (t *tender) note(ctx context.Context, n *cluster.Node, is *cluster.ManagerStatus) error {
	was := n.Status.Manager
	if is != nil && was != nil {
		is.Addr = was.Addr
	}
	if is == nil && was == nil || is != nil && was != nil && *is == *was {
		return nil
	}
	n = store.Copy(n)
	n.Status.Manager = is
	_, err := t.s.Commit(ctx, store.Update(n))
	return passing(err)
}

// passing leaves out what is right again when one looks again.
func passing(err error) error {
	if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// remove takes a member's place away.
func (t *tender) remove(ctx context.Context, o etcd.Member, why string) error {
	t.m.log.Info("a manager's place in the store is taken away", "node", o.Name, "why", why)
	if err := t.st.Remove(ctx, o.ID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// late takes places away that nobody has come for: another cannot be given as long as they
// are there.
func (t *tender) late(ctx context.Context, list []etcd.Member) error {
	there := map[uint64]bool{}
	for _, o := range list {
		there[o.ID] = true
		since, seen := t.empty[o.ID]
		switch {
		case !seen:
			t.empty[o.ID] = time.Now()
		case time.Since(since) > comes:
			if err := t.remove(ctx, o, "nobody has come for it"); err != nil {
				return err
			}
		}
	}
	for id := range t.empty {
		if !there[id] {
			delete(t.empty, id)
		}
	}
	return nil
}
