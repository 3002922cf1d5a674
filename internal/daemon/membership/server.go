package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"sync/atomic"
	"time"

	"escale.dev/escale/internal/api/node"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd"
	"escale.dev/escale/internal/cluster/store/etcd/child"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// server is the cluster's store on a manager: the server, as a process, and our end of it.
type server struct {
	m      *Membership
	rec    record
	keeper *ca.Keeper
	pair   string // file of the certificate and its key, while the server runs
	child  *child.Child
	ring   atomic.Pointer[seal.Ring]
	store  atomic.Pointer[etcd.Store]

	cancel context.CancelFunc
	ended  chan struct{}
	err    error // why; once ended
}

// begin starts the server of a record. Its store is to be opened yet.
func (m *Membership) begin(r record, ring *seal.Ring) (*server, error) {
	m.mu.Lock()
	keeper := m.keeper
	m.mu.Unlock()
	return m.beginAt(filepath.Join(m.cfg.Dir, serverDir), r, keeper, keeper.Identity().Cluster, ring)
}

// beginAt is begin of a server in another directory. The token is one of a kind: stores that
// began with different ones never mix.
func (m *Membership) beginAt(dir string, r record, keeper *ca.Keeper, token string, ring *seal.Ring) (*server, error) {
	if err := os.MkdirAll(m.cfg.RunDir, 0o700); err != nil {
		return nil, err
	}
	pair, roots, err := keeper.WriteFiles(m.cfg.RunDir)
	if err != nil {
		return nil, fmt.Errorf("certificate for the store: %w", err)
	}
	s := &server{m: m, rec: r, keeper: keeper, pair: pair, ended: make(chan struct{})}
	s.ring.Store(ring)
	s.child = child.New(child.Config{
		Name: r.Node, Dir: dir, Socket: filepath.Join(m.cfg.RunDir, "store.sock"),
		Listen: "unix://" + m.peerSocket(), Advertise: r.storeURL(), Cluster: r.Members, Join: r.Members != "", Token: token, Fresh: r.Fresh, Force: r.Force,
		Cert: pair, Key: pair, CA: roots, Role: string(ca.Manager),
	}, m.cfg.Program, m.log.With("component", "store"))
	ctx, cancel := context.WithCancel(context.Background()) // detached: it goes on while the part is exchanged
	s.cancel = cancel
	go func() {
		defer close(s.ended)
		s.err = s.child.Run(ctx)
	}()
	return s, nil
}

// peerSocket is where the server answers other managers: hear leads them there.
func (m *Membership) peerSocket() string { return filepath.Join(m.cfg.RunDir, "peers.sock") }

// storeURL is where other managers reach the store.
func (r record) storeURL() string { return "https://" + joinHost(r.host(), peerPort) }

// config is that of our end.
func (s *server) config() etcd.Config {
	m := s.m
	return etcd.Config{
		Socket: filepath.Join(m.cfg.RunDir, "store.sock"), Name: s.rec.Node, Prefer: s.child.Leads, Log: m.log.With("component", "store"),
		Seal: s.ring.Load, TLS: func() *tls.Config { return s.keeper.Lasting(ca.Manager) },
	}
}

// ready waits until the server answers.
func (s *server) ready(ctx context.Context) error {
	if err := s.child.Ready(ctx); err != nil {
		return err
	}
	return s.m.settled(s.rec)
}

// settled notes that the server of a record has been ready: from then on its data is expected.
func (m *Membership) settled(r record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rec.Phase != manager || m.rec.Node != r.Node || !m.rec.Fresh && !m.rec.Force {
		return nil
	}
	m.rec.Fresh, m.rec.Force = false, false
	return m.rec.write(m.cfg.Dir)
}

// openStore opens our end, unless it is open, and has clients' requests answered by it. It
// blocks until most managers answer.
func (s *server) openStore(ctx context.Context) (*etcd.Store, error) {
	if st := s.store.Load(); st != nil {
		return st, nil
	}
	if err := s.ready(ctx); err != nil {
		return nil, err
	}
	st, err := etcd.Open(ctx, s.config())
	if err != nil {
		return nil, err
	}
	s.store.Store(st)
	s.m.objects.set(st)
	return st, nil
}

// open tells whether the store is.
func (s *server) open() bool { return s.store.Load() != nil }

// stop ends the server and waits for it. Idempotent.
func (s *server) stop() {
	if st := s.store.Load(); st != nil {
		if err := st.Close(); err != nil {
			s.m.log.Warn("closing the store", "error", err)
		}
	}
	s.cancel()
	<-s.ended
	if err := os.Remove(s.pair); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.m.log.Warn("the certificate of the store's server", "error", err)
	}
}

// removed tells whether the server has ended because it is no member any more, or has lost
// what it had: then it is to begin anew, as a new one.
func (s *server) removed() bool {
	select {
	case <-s.ended:
		return errdefs.IsFailedPrecondition(s.err)
	default:
		return false
	}
}

// stopServer ends the server, if there is one.
func (m *Membership) stopServer() {
	m.mu.Lock()
	s := m.server
	m.server = nil
	r := m.rec
	m.mu.Unlock()
	if s == nil {
		return
	}
	if r.Phase == manager {
		m.objects.set(nothingYet(r.Node, true, errStarting))
	}
	s.stop()
}

// locksmith has the keys with which the store's values are sealed.
type locksmith struct{ *Membership }

// keys are those that the store's values are sealed with. FailedPrecondition: they are locked,
// and nobody has unlocked them.
func (m locksmith) keys(unlock *seal.Key) (*seal.Ring, error) {
	return seal.Load(filepath.Join(m.cfg.Dir, keysFile), unlock)
}

// seat makes place for another manager.
func (s *server) seat(ctx context.Context, id, addr, url string) (out node.Seat, err error) {
	st := s.store.Load()
	if st == nil {
		return out, fmt.Errorf("the manager's store is not open: %w", errdefs.ErrUnavailable)
	}
	place, err := st.Add(ctx, id, url)
	if errdefs.IsAlreadyExists(err) {
		return out, errors.Join(fmt.Errorf("its former place is taken back first: %w", errdefs.ErrUnavailable), s.unseat(ctx, id, url))
	}
	if err != nil {
		return out, err
	}
	for {
		n, err := store.Find[*cluster.Node](st.View(), id)
		if err != nil {
			return out, err
		}
		n = store.Copy(n)
		n.Status.Manager = &cluster.ManagerStatus{Addr: addr}
		if _, err = st.Commit(ctx, store.Update(n)); err == nil {
			break
		}
		if !errdefs.IsConflict(err) {
			return out, err
		}
	}
	out.Members = place.Cluster
	for _, k := range s.ring.Load().Keys() {
		out.Keys = append(out.Keys, slices.Clone(k[:]))
	}
	return out, nil
}

// unseat removes a member that has begun anew without what it had.
func (s *server) unseat(ctx context.Context, id, url string) error {
	st := s.store.Load()
	list, err := st.Members(ctx)
	for _, o := range list {
		if o.Name == id || o.URL == url {
			err = errors.Join(err, st.Remove(ctx, o.ID))
		}
	}
	return err
}

// attendFiles keeps on disk what the server and a later start of the engine read: the
// certificate and the roots, which the server looks at, and the keys as the cluster wants
// them kept.
func (s *server) attendFiles(ctx context.Context, st store.Store) error {
	dir := s.m.cfg.Dir
	had, locked := s.keeper.Identity(), "?"
	for {
		renewed := s.keeper.Changed()
		changed, forget := news(ctx, st, cluster.KindCluster)
		err := func() error {
			if is := s.keeper.Identity(); is != had && is.Role == ca.Manager {
				if _, _, err := s.keeper.WriteFiles(s.m.cfg.RunDir); err != nil {
					return err
				}
				had = is
			}
			if key, err := unlockKey(st.View()); err == nil && key != locked {
				if err := s.lock(dir, key); err != nil {
					return err
				}
				locked = key
			}
			select {
			case <-renewed:
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			return nil
		}()
		forget()
		if err != nil {
			return err
		}
	}
}

// lock keeps the keys locked with an unlock key, and by them that of the node; "": as they are. An
// engine that ends in between does the rest when it has started again.
func (s *server) lock(dir, unlock string) error {
	if err := keepKeys(dir, s.ring.Load(), unlock); err != nil {
		return err
	}
	if unlock == "" {
		return s.keeper.Lock(nil)
	}
	return s.keeper.Lock(s.ring.Load())
}

// news is closed when objects of some kinds have been changed since it was called, or ctx has
// ended; a store that is closed says so a while later. Call forget once nobody waits.
func news(ctx context.Context, s store.Store, kinds ...cluster.Kind) (changed <-chan struct{}, forget func()) {
	ctx, forget = context.WithCancel(ctx)
	out := make(chan struct{})
	w, err := s.Watch(s.View().Revision(), kinds...)
	go func() {
		defer close(out)
		if err == nil {
			_, err = w.Next(ctx)
		}
		if errdefs.IsUnavailable(err) { // who asks again and again is to have time for other things
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}()
	return out, forget
}

// unlockKey is what the keys of managers are locked with; "": they are not.
func unlockKey(v store.View) (string, error) {
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err != nil {
		return "", err
	}
	if !c.Spec.EncryptionConfig.AutoLockManagers {
		return "", nil
	}
	return c.Status.UnlockKey, nil
}

// keepKeys writes the keys to a directory, locked or not.
func keepKeys(dir string, ring *seal.Ring, unlock string) error {
	var key *seal.Key
	if unlock != "" {
		k, err := seal.ParseKey(unlock)
		if err != nil {
			return err
		}
		key = &k
	}
	return seal.Save(filepath.Join(dir, keysFile), ring, key)
}

// Unlock opens the keys of a manager that is locked. Conflict when it is not;
// PermissionDenied for a wrong key; InvalidArgument for one that is none.
func (m *Membership) Unlock(_ context.Context, text string) error {
	if !m.State().Locked {
		return fmt.Errorf("swarm is not locked: %w", errdefs.ErrConflict)
	}
	key, err := seal.ParseKey(text)
	if err != nil {
		return err
	}
	ring, err := locksmith{m}.keys(&key)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ring = ring
	select {
	case m.unlock <- struct{}{}:
	default:
	}
	return nil
}

// ringWanted gives the keys, with which that of the node is opened, and waits for somebody to
// unlock them if need be.
func (m locksmith) ringWanted(ctx context.Context) (*seal.Ring, error) {
	for {
		m.mu.Lock()
		ring, r, keeper := m.ring, m.rec, m.keeper
		m.mu.Unlock()
		if ring != nil {
			return ring, keeper.Unlock(ring)
		}
		locked, err := seal.Locked(filepath.Join(m.cfg.Dir, keysFile))
		if err != nil {
			return nil, err
		}
		if !locked {
			if ring, err = m.keys(nil); err != nil {
				return nil, err
			}
			m.mu.Lock()
			m.ring = ring
			m.mu.Unlock()
			continue
		}
		m.fail(errLocked)
		m.objects.set(nothingYet(r.Node, true, errLocked))
		m.log.Warn("the manager is locked: unlock it with docker swarm unlock")
		select {
		case <-m.unlock:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		m.fail("")
		m.objects.set(nothingYet(r.Node, true, errStarting))
	}
}
