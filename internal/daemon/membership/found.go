package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/api/node"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// Found makes a cluster of this host: c is the cluster, n this node with its addresses, as
// they are to be written; the host has to reach itself at that which others are told. All that the host has goes over into the cluster's store. It blocks
// until others can join; on an error all is as it was. Kinds: InvalidArgument and Unavailable of
// addresses; AlreadyExists when the host is in
// a cluster; context.DeadlineExceeded when it takes long to lead: it goes on then.
func (m *Membership) Found(ctx context.Context, c *cluster.Cluster, n *cluster.Node) error {
	if err := m.turn(ctx, func(ctx context.Context) error { return founder{m}.found(ctx, c, n) }); err != nil {
		return err
	}
	return m.settle(ctx) // or the next to ask would be too early
}

func errNoProgram(err error) error {
	return fmt.Errorf("the program of the cluster's store, which belongs beside escaled, is missing: %w: %w", err, errdefs.ErrUnavailable)
}

// begun is how long the store's server may take to answer for the first time, and to take over
// what there is.
const begun = time.Minute

// founder makes a cluster of the host.
type founder struct{ *Membership }

func (m founder) found(ctx context.Context, c *cluster.Cluster, n *cluster.Node) (err error) {
	m.mu.Lock()
	phase, own := m.rec.Phase, m.own
	m.mu.Unlock()
	if phase != alone {
		return errInCluster
	}
	r := record{Phase: founding, Node: n.ID, Listen: n.Status.ListenAddr, Addr: n.Status.Manager.Addr, DataPath: n.Status.DataPathAddr, Fresh: true}
	if _, err := exec.LookPath(m.cfg.Program[0]); err != nil {
		return errNoProgram(err)
	}
	if err := free(r.Listen, r.peers()); err != nil {
		return err
	}
	if err := reach(ctx, r.Listen, r.Addr); err != nil { // the node calls its own manager there
		return err
	}
	if err := r.write(m.cfg.Dir); err != nil {
		return err
	}
	objects, part := m.objects.shut(), m.part.shut()
	var s *server
	defer func() {
		if err == nil {
			return
		}
		if s != nil {
			s.stop()
		}
		undo := context.WithoutCancel(ctx) // detached: it is an undo
		err = errors.Join(err, takeBack(undo, own), m.drop(everything...))
		m.mu.Lock()
		m.keeper, m.ring = nil, nil
		m.mu.Unlock()
		objects(nil)
		part(nil)
	}()
	if is, err := store.Find[*cluster.Node](own.View(), n.ID); err == nil {
		n.Revision = is.Revision // an engine that has just started writes what it is, and nobody does so any more
	}
	if _, err := own.Commit(ctx, store.Create(c), store.Update(n)); err != nil {
		return err
	}
	keeper, err := identify(m.cfg.Dir, own, n.ID)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.keeper = keeper
	m.mu.Unlock()
	if s, err = m.carry(ctx, r, own); err != nil {
		return err
	}
	return m.enthrone(r, s, objects, part)
}

// identify makes the identity of a manager that signs for itself, in a directory: s has the
// cluster.
func identify(dir string, s store.Store, id string) (*ca.Keeper, error) {
	members := &node.Members{Store: s}
	a, err := members.Authority()
	if err != nil {
		return nil, err
	}
	c, err := store.Named[*cluster.Cluster](s.View(), cluster.DefaultCluster)
	if err != nil {
		return nil, err
	}
	key, csr, err := ca.NewRequest()
	if err != nil {
		return nil, err
	}
	chain, err := a.Issue(csr, ca.Manager, id, c.ID, members.Expiry())
	if err != nil {
		return nil, err
	}
	return ca.Keep(filepath.Join(dir, identityFile), key, chain, a.Trusted())
}

// carry starts the store's server and has it take over what the host has.
func (m founder) carry(ctx context.Context, r record, own store.Store) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, begun)
	defer cancel()
	ring, err := newKeys(m.cfg.Dir, own.View())
	if err != nil {
		return nil, err
	}
	s, err := m.begin(r, ring)
	if err != nil {
		return nil, err
	}
	if err = s.carry(ctx, own.View()); err == nil {
		var st *etcd.Store
		if st, err = etcd.Open(ctx, s.config()); err == nil {
			s.store.Store(st)
		}
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	m.mu.Lock()
	m.ring = ring
	m.mu.Unlock()
	return s, nil
}

// newKeys makes the keys of a store that begins, in a directory, locked as its cluster wants it.
func newKeys(dir string, v store.View) (*seal.Ring, error) {
	ring, err := seal.NewRing(seal.NewKey())
	if err != nil {
		return nil, err
	}
	lock, err := unlockKey(v)
	if err != nil {
		return nil, err
	}
	return ring, keepKeys(dir, ring, lock)
}

// carry has a store that has nothing yet take over objects.
func (s *server) carry(ctx context.Context, v store.View) error {
	if err := s.child.Ready(ctx); err != nil {
		return err
	}
	return etcd.Carry(ctx, s.config(), s.rec.Node, v)
}

// enthrone makes a manager of a host whose store has been carried over. From the record on
// there is no way back.
func (m founder) enthrone(r record, s *server, objects, part func(store.Store)) error {
	r.Phase, r.Fresh = manager, false
	if err := r.write(m.cfg.Dir); err != nil {
		return err
	}
	s.rec = r
	m.mu.Lock()
	own := m.own
	m.server, m.own, m.rec = s, nil, r
	m.mu.Unlock()
	objects(s.store.Load())
	part(nil)
	if err := errors.Join(own.Close(), m.cfg.Forget()); err != nil {
		m.log.Warn("what the host has carried over stays on disk until the engine starts again", "error", err)
	}
	return m.enter(r)
}

// takeBack has a host that was to be a cluster be none.
func takeBack(ctx context.Context, s store.Store) error {
	v := s.View()
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err != nil {
		return nil
	}
	changes := []store.Change{store.Delete(c)}
	for _, n := range store.List[*cluster.Node](v) {
		changes = append(changes, store.Update(plain(n)))
	}
	_, err = s.Commit(ctx, changes...)
	return err
}

// plain is a node as that of a host that is alone.
func plain(n *cluster.Node) *cluster.Node {
	n = store.Copy(n)
	n.Spec = cluster.NodeSpec{Manager: true, Availability: cluster.Active}
	n.Status.Manager, n.Status.ListenAddr, n.Status.DataPathAddr, n.Status.CertIssuer, n.Status.Message = nil, "", "", "", ""
	return n
}

// free tells whether addresses can be listened on: before anything is begun that rests on it.
func free(addrs ...string) error {
	for _, a := range addrs {
		l, err := net.Listen("tcp", a)
		if err != nil {
			return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("failed to listen on remote API address: %s", err))
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}
