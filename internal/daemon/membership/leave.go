package membership

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd"
	"github.com/containerd/errdefs"
)

// everything are the files of a cluster, the record last.
var everything = []string{identityFile, viewFile, keysFile, serverDir, readyDir, recordFile}

// drop removes files that were kept.
func (m *Membership) drop(files ...string) error {
	for _, name := range files {
		if err := os.RemoveAll(filepath.Join(m.cfg.Dir, name)); err != nil {
			return err
		}
		if name == serverDir {
			if err := os.RemoveAll(m.cfg.RunDir); err != nil {
				return err
			}
		}
	}
	return nil
}

// steps is how long a manager that leaves waits for the others to let it go.
const steps = 20 * time.Second

// Leave has this host be in no cluster any more: it blocks until nothing of the cluster's tasks
// is left here. Of the last manager the apps stay, and run on. NotFound when it is in none.
func (m *Membership) Leave(ctx context.Context) error {
	switch m.State().Phase {
	case string(alone):
		return fmt.Errorf("this host is in no cluster: %w", errdefs.ErrNotFound)
	case string(manager):
		last, err := leaver{m}.stepDown(ctx)
		if err != nil {
			return err
		}
		if last {
			leaver{m}.last(true)
			err := m.turn(ctx, leaver{m}.home)
			leaver{m}.last(false)
			if err != nil {
				return err
			}
		}
	}
	if err := m.turn(ctx, func(context.Context) error {
		m.mu.Lock()
		r := m.rec
		m.mu.Unlock()
		if r.Phase == alone || r.Phase == leaving {
			return nil
		}
		return m.change(record{Phase: leaving, Node: r.Node}, serverDir, keysFile)
	}); err != nil {
		return err
	}
	for !m.Alone() {
		select {
		case <-time.After(raised / 4):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// leaver takes the host out of its cluster, or the others.
type leaver struct{ *Membership }

// stepDown has the other managers take this one's place away; without most of them it goes all
// the same, after a while. last tells that there are no others.
func (m leaver) stepDown(ctx context.Context) (last bool, err error) {
	m.mu.Lock()
	s, id := m.server, m.rec.Node
	m.mu.Unlock()
	var st *etcd.Store
	if s != nil {
		st = s.store.Load()
	}
	if st == nil { // its store cannot be asked: it goes without a word
		return false, nil
	}
	managers := 0
	for _, n := range store.List[*cluster.Node](st.View()) {
		if n.Spec.Manager {
			managers++
		}
	}
	if managers <= 1 {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, steps)
	defer cancel()
	for ctx.Err() == nil && m.State().Phase == string(manager) {
		n, err := store.Find[*cluster.Node](st.View(), id)
		if err == nil && n.Spec.Manager {
			n = store.Copy(n)
			n.Spec.Manager = false
			_, err = st.Commit(ctx, store.Update(n))
		}
		if err != nil && !errdefs.IsConflict(err) {
			m.log.Warn("the managers are not told that this one leaves", "error", err)
			return false, nil
		}
		select {
		case <-time.After(raised):
		case <-ctx.Done():
		}
	}
	return false, nil
}

// last says whether the server is to outlive what this manager does: it is read then.
func (m leaver) last(is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lasts = is
}

// home takes over from the store of a cluster of which this is the last manager what its apps
// are, into the host's own.
func (m leaver) home(ctx context.Context) (err error) {
	m.mu.Lock()
	r, s := m.rec, m.server
	m.mu.Unlock()
	if s == nil || !s.open() {
		return fmt.Errorf("the manager's store has just ended: try again: %w", errdefs.ErrUnavailable)
	}
	v := s.store.Load().View()
	if err := m.cfg.Forget(); err != nil {
		return err
	}
	own, err := m.cfg.Alone()
	if err != nil {
		return err
	}
	if err := errors.Join(writeAll(ctx, own, keepsakes(v, r.Node)), own.Close()); err != nil {
		return errors.Join(err, m.cfg.Forget())
	}
	m.stopServer()
	return m.change(record{Phase: leaving, Node: r.Node, Home: true}, serverDir, keysFile)
}

// Force has the cluster go on with this manager alone, whatever became of the others: they are
// to be managers no more, and have to join anew. It blocks until the store answers.
func (m *Membership) Force(ctx context.Context) error {
	err := m.turn(ctx, func(context.Context) error {
		m.mu.Lock()
		r := m.rec
		m.mu.Unlock()
		if r.Phase != manager {
			return fmt.Errorf("this host is no manager: %w", errdefs.ErrFailedPrecondition)
		}
		r.Force, r.Fresh = true, false
		if err := r.write(m.cfg.Dir); err != nil {
			return err
		}
		return m.enter(r)
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, begun)
	defer cancel()
	for {
		m.mu.Lock()
		s := m.server
		m.mu.Unlock()
		if s != nil && s.open() {
			err = leaver{m}.alonely(ctx, s)
			if err == nil {
				return nil
			}
		}
		select {
		case <-time.After(raised):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the new cluster's store does not answer: %w", errdefs.ErrUnavailable), err)
		}
	}
}

// alonely writes that this node is the only manager.
func (m leaver) alonely(ctx context.Context, s *server) error {
	var changes []store.Change
	for _, n := range store.List[*cluster.Node](s.store.Load().View()) {
		if n.ID != s.rec.Node && (n.Spec.Manager || n.Status.Manager != nil) {
			n = store.Copy(n)
			n.Spec.Manager, n.Status.Manager = false, nil
			changes = append(changes, store.Update(n))
		}
	}
	if len(changes) == 0 {
		return nil
	}
	_, err := s.store.Load().Commit(ctx, changes...)
	return err
}

// keepsakes are what a host has of a cluster that is no more: its apps, with all of theirs.
func keepsakes(v store.View, node string) (out []cluster.Object) {
	for _, w := range store.Writes(v) {
		o, _ := store.Raw(v, w.Kind, w.ID)
		switch o := o.(type) {
		case *cluster.Cluster:
		case *cluster.Node:
			if o.ID == node {
				out = append(out, plain(o))
			}
		case *cluster.App:
			out = append(out, store.Copy(o))
		case *cluster.Task:
			if o.App != "" && o.Node == node {
				out = append(out, store.Copy(o))
			}
		default:
			if o.Base().Owner != "" {
				out = append(out, cluster.Copy(o))
			}
		}
	}
	return out
}

// writeAll writes objects into an empty store.
func writeAll(ctx context.Context, s store.Store, list []cluster.Object) error {
	for len(list) > 0 {
		n := min(len(list), store.MaxChanges)
		var changes []store.Change
		for _, o := range list[:n] {
			o.Base().Revision = 0
			changes = append(changes, store.Create(o))
		}
		if _, err := s.Commit(ctx, changes...); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// vacate removes what tasks have left on a node that leaves, and all that the cluster was
// here; then the host is alone.
func (m leaver) vacate(ctx context.Context) {
	m.mu.Lock()
	r := m.rec
	m.mu.Unlock()
	if !r.Home && !m.clear(ctx, r.Node) {
		return
	}
	m.mu.Lock()
	if m.remote != nil {
		_ = m.remote.Close() // what it would keep is removed below
	}
	m.remote, m.keeper, m.member = nil, nil, nil
	m.mu.Unlock()
	err := m.drop(everything...)
	if err == nil {
		err = m.enter(record{})
	}
	if err != nil {
		m.log.Error("what was kept of the cluster cannot be removed: trying again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// clear has a node do its work for nobody until nothing is left of it; false: ctx has ended.
func (m leaver) clear(ctx context.Context, id string) bool {
	work, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.always(work, "the node", func(ctx context.Context) error { return m.cfg.Parts.Node(ctx, id, m.part.now.Load().Store) })
	}()
	defer func() { cancel(); <-ended }()
	for ctx.Err() == nil {
		idle, err := m.cfg.Parts.Idle(ctx)
		if err == nil && idle {
			return true
		}
		if err != nil {
			m.log.Error("what tasks have left cannot be seen: trying again", "error", err)
		}
		select {
		case <-time.After(raised):
		case <-ctx.Done():
		}
	}
	return false
}
