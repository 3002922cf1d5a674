package membership

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/store/seal"
	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

// Current waits until Objects has all that the cluster had committed when it was called. It
// blocks. Unavailable when most managers do not answer before ctx ends.
func (m *Membership) Current(ctx context.Context) error {
	m.mu.Lock()
	s, phase := m.server, m.rec.Phase
	m.mu.Unlock()
	if phase == alone {
		return nil
	}
	if s != nil {
		if st := s.store.Load(); st != nil {
			return etcd.Current(ctx, st)
		}
	}
	return fmt.Errorf("the manager's store is not open: %w", errdefs.ErrUnavailable)
}

// Restore begins a cluster anew from objects that were saved of it, with this host as its only
// manager. It is done whole or not at all, also when the engine is killed meanwhile. n is this node
// with its addresses, as they are to be written; nil sets a manager of that cluster back,
// which keeps its place. It blocks until others can join. Kinds: AlreadyExists when the
// host is in a cluster; Conflict when it keeps apps, or is of another cluster;
// FailedPrecondition when other managers run, or, unless forced to, when the cluster goes on elsewhere; context.DeadlineExceeded when it takes long: it goes on then.
func (m *Membership) Restore(ctx context.Context, saved *store.State, n *cluster.Node, force bool) error {
	if err := (restorer{m}).unattended(); err != nil {
		return err
	}
	if err := m.turn(ctx, func(ctx context.Context) error { return restorer{m}.restore(ctx, mem.New(saved), n, force) }); err != nil {
		return err
	}
	return m.settle(ctx)
}

// restorer begins a cluster anew on this host.
type restorer struct{ *Membership }

// unattended tells whether a manager can be set back: others that run would go on with what they have.
// Where most managers do not answer it goes by what was known before: whether they are lost, or this one is
// cut off, only people know.
func (m restorer) unattended() error {
	m.mu.Lock()
	s := m.server
	m.mu.Unlock()
	if s == nil || !s.open() {
		return nil
	}
	for _, n := range store.List[*cluster.Node](s.store.Load().View()) {
		if is := n.Status.Manager; n.ID != s.rec.Node && is != nil && is.Reachable {
			return fmt.Errorf("manager %s (%s) runs, as far as this one knows, and would go on with what is now: have the other managers leave (swarm leave --force) or demote them; if they are lost, have this one go on alone (swarm init --force-new-cluster); then restore: %w", n.ID, n.Name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// restore prepares all beside what there is, writes the record, from which on there is no way
// back, and puts it in its place.
func (m restorer) restore(ctx context.Context, saved store.Store, n *cluster.Node, force bool) error {
	m.mu.Lock()
	own := m.own
	m.mu.Unlock()
	r, n, err := m.place(saved.View(), n)
	if err == nil && own != nil { // a manager that is set back keeps its address
		if err = reach(ctx, r.Listen, r.Addr); err == nil && !force {
			err = m.living(ctx, saved)
		}
	}
	if err != nil {
		return err
	}
	objects, part := m.objects.shut(), m.part.shut()
	defer func() { objects(nil); part(nil) }()
	ready := filepath.Join(m.cfg.Dir, readyDir)
	if err := seatOnly(ctx, saved, n); err != nil {
		return err
	}
	ring, err := m.prepare(ctx, ready, r, saved)
	if err == nil {
		err = r.write(m.cfg.Dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(ready), os.RemoveAll(m.cfg.RunDir))
	}
	m.mu.Lock()
	if m.remote != nil {
		_ = m.remote.Close() // what it keeps is of what is no more
	}
	m.rec, m.node, m.own, m.remote, m.keeper, m.member, m.ring = r, r.Node, nil, nil, nil, nil, ring
	m.mu.Unlock()
	if own != nil {
		if err := errors.Join(own.Close(), m.cfg.Forget()); err != nil {
			m.log.Warn("what the host had by itself stays on disk until the engine starts again", "error", err)
		}
	}
	objects(nothingYet(r.Node, true, errStarting))
	part(nil)
	return m.adopt()
}

// place is the record that the host is to have, and its node.
func (m restorer) place(v store.View, n *cluster.Node) (record, *cluster.Node, error) {
	m.mu.Lock()
	is, own, keeper := m.rec, m.own, m.keeper
	m.mu.Unlock()
	if _, err := exec.LookPath(m.cfg.Program[0]); err != nil {
		return is, n, errNoProgram(err)
	}
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err != nil {
		return is, n, err
	}
	switch {
	case is.Phase == alone && n != nil:
		r := record{Phase: restored, Node: n.ID, Listen: n.Status.ListenAddr, Addr: n.Status.Manager.Addr, DataPath: n.Status.DataPathAddr, Fresh: true}
		return r, n, errors.Join(keepsNone(own), free(r.Listen, r.peers()))
	case is.Phase != manager || n != nil:
		return is, n, errInCluster
	}
	if id := keeper.Identity().Cluster; id != c.ID {
		return is, n, fmt.Errorf("this manager is of cluster %s, what was saved is of cluster %s: leave the one first (swarm leave): %w", id, c.ID, errdefs.ErrConflict)
	}
	r := record{Phase: restored, Node: is.Node, Listen: is.Listen, Addr: is.Addr, DataPath: is.DataPath, Fresh: true}
	n = &cluster.Node{Meta: cluster.Meta{ID: is.Node}, Spec: cluster.NodeSpec{Manager: true, Availability: cluster.Active}}
	n.Name, n.Status = m.describe()
	n.Status.Ready, n.Status.Since, n.Status.Manager = true, time.Now().UTC(), &cluster.ManagerStatus{Addr: is.Addr, Leader: true, Reachable: true}
	return r, n, nil
}

// seatOnly writes that a node is the only manager, whether it is there already or not.
func seatOnly(ctx context.Context, s store.Store, n *cluster.Node) error {
	n = store.Copy(n)
	n.Revision = 0
	change := store.Create
	var changes []store.Change
	for _, o := range store.List[*cluster.Node](s.View()) {
		switch {
		case o.ID == n.ID:
			had := store.Copy(o)
			had.Name, had.Status, had.Spec.Manager = n.Name, n.Status, true
			n = had
			change = store.Update
		case o.Spec.Manager || o.Status.Manager != nil:
			o = store.Copy(o)
			o.Spec.Manager, o.Status.Manager = false, nil
			changes = append(changes, store.Update(o))
		}
	}
	for changes = append(changes, change(n)); len(changes) > 0; {
		some := min(len(changes), store.MaxChanges)
		if _, err := s.Commit(ctx, changes[:some]...); err != nil {
			return err
		}
		changes = changes[some:]
	}
	return nil
}

// prepare makes in a directory all that a manager keeps. On an error what is there is to be
// removed.
func (m restorer) prepare(ctx context.Context, dir string, r record, saved store.Store) (*seal.Ring, error) {
	ctx, cancel := context.WithTimeout(ctx, begun)
	defer cancel()
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	keeper, err := identify(dir, saved, r.Node)
	if err != nil {
		return nil, err
	}
	ring, err := newKeys(dir, saved.View())
	if err != nil {
		return nil, err
	}
	// Managers that are left of before may call this one as if it were of theirs: with a token of
	// its own its store does not know them.
	s, err := m.beginAt(filepath.Join(dir, serverDir), r, keeper, cluster.NewID(), ring)
	if err != nil {
		return nil, err
	}
	err = s.carry(ctx, saved.View())
	s.stop()
	if err == nil {
		err = errors.Join(atomicfile.SyncDir(dir), atomicfile.SyncDir(m.cfg.Dir))
	}
	return ring, err
}

// adopt makes a manager of a host for which all lies ready, or fails and is called again.
func (m restorer) adopt() error {
	m.mu.Lock()
	r := m.rec
	m.mu.Unlock()
	r, err := inPlace(m.cfg.Dir, r)
	if err != nil {
		return err
	}
	return m.enter(r)
}

// adopting is adopt until it succeeds or ctx ends.
func (m restorer) adopting(ctx context.Context) {
	for err := m.adopt(); err != nil && ctx.Err() == nil; err = m.adopt() {
		m.log.Error("what was restored cannot take its place: trying again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// inPlace puts what lies ready in the place of what was there, and gives the record of a
// manager. It may be killed at any instant and called again.
func inPlace(dir string, r record) (record, error) {
	if r.Phase != restored {
		return r, os.RemoveAll(filepath.Join(dir, readyDir)) // it was given up, or an engine ended before it was whole
	}
	for _, name := range []string{identityFile, keysFile, serverDir} {
		from, to := filepath.Join(dir, readyDir, name), filepath.Join(dir, name)
		if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) {
			continue // it is in its place already
		} else if err != nil {
			return r, err
		}
		if err := os.RemoveAll(to); err != nil {
			return r, err
		}
		if err := os.Rename(from, to); err != nil {
			return r, err
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, viewFile)); err != nil {
		return r, err
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return r, err
	}
	if err := os.RemoveAll(filepath.Join(dir, readyDir)); err != nil {
		return r, err
	}
	r.Phase, r.Fresh = manager, false
	return r, r.write(dir)
}

// How often a manager looks whether it is forsaken, how long it asks, and for how long it has to be.
const (
	forsakenLook = time.Second
	forsakenAsk  = 2 * time.Second
	forsakenFor  = 10 * time.Second
)

// forsaken waits until this manager's store is one that the cluster does without: it does not
// answer for the cluster, while somebody leads that, by another one, who says that this node is
// to be no manager. So it is after a restoration, or --force-new-cluster, elsewhere. A manager
// whose vote is needed is never forsaken: without it nobody would lead. False: ctx has ended.
func (m ruler) forsaken(ctx context.Context, s *server) bool {
	m.mu.Lock()
	remote := m.remote
	m.mu.Unlock()
	for since := time.Now(); ; {
		select {
		case <-time.After(forsakenLook):
		case <-ctx.Done():
			return false
		}
		if !remote.Connected() || wanted(remote.View(), s.rec.Node) || m.answers(ctx) || !remote.Connected() {
			since = time.Now()
		}
		if time.Since(since) > forsakenFor && ctx.Err() == nil {
			return true
		}
	}
}

// answers tells whether this manager's store does, for the cluster.
func (m ruler) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, forsakenAsk)
	defer cancel()
	return m.Current(ctx) == nil
}
