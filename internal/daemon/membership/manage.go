package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"escale.dev/escale/internal/api/node"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// ruler is what a manager does.
type ruler struct{ *Membership }

// manage is what a manager does beside what all nodes do.
func (m ruler) manage(ctx context.Context) error {
	m.mu.Lock()
	r, s := m.rec, m.server
	m.mu.Unlock()
	l, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return fmt.Errorf("where nodes call the manager: %w", err)
	}
	if s == nil {
		ring, err := locksmith(m).ringWanted(ctx)
		if err == nil {
			s, err = m.begin(r, ring)
		}
		if err != nil {
			return errors.Join(err, l.Close())
		}
		m.mu.Lock()
		m.server = s
		m.mu.Unlock()
	}
	defer m.rest()
	return all(ctx, map[string]func(context.Context) error{
		"store": func(ctx context.Context) error {
			select {
			case <-s.ended:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if s.removed() {
				m.later(climber(m).sink)
				<-ctx.Done()
			}
			return s.err
		},
		"place": func(ctx context.Context) error {
			if m.forsaken(ctx, s) {
				m.later(climber(m).sink)
				<-ctx.Done()
			}
			return context.Cause(ctx)
		},
		"manager": func(ctx context.Context) error {
			defer l.Close()
			st, err := s.openStore(ctx)
			if err != nil {
				return err
			}
			return m.rule(ctx, s, st, l)
		},
	})
}

// rest ends the server with what a manager does, unless who leaves wants to read its store
// still.
func (m ruler) rest() {
	m.mu.Lock()
	wanted := m.lasts
	m.mu.Unlock()
	if !wanted {
		m.stopServer()
	}
}

// rule is what a manager does whose store is open.
func (m ruler) rule(ctx context.Context, s *server, st *etcd.Store, l net.Listener) error {
	m.mu.Lock()
	keeper, member := m.keeper, m.member
	m.mu.Unlock()
	api := node.New(keeper, &node.Members{Store: st, Seat: s.seat}, m.log)
	member.SetSigner(api.Sign)
	defer member.SetSigner(nil)
	return all(ctx, map[string]func(context.Context) error{
		"nodes":     func(ctx context.Context) error { return api.Serve(ctx, l) },
		"files":     func(ctx context.Context) error { return s.attendFiles(ctx, st) },
		"events":    func(ctx context.Context) error { return m.cfg.Parts.Manage(ctx, st) },
		"leader":    func(ctx context.Context) error { return m.campaign(ctx, st, api) },
		"who leads": func(ctx context.Context) error { return follow(ctx, st, api) },
	})
}

// follow lets nodes that miss their leader know of the next one, until ctx ends.
func follow(ctx context.Context, st *etcd.Store, api *node.Server) error {
	var is etcd.Leading
	for {
		next, err := st.Leading(ctx, is)
		if err != nil {
			return err
		}
		is = next
		api.Follow(is.Name, is.Term)
	}
}

// wanted tells whether the cluster wants this node as a manager.
func wanted(v store.View, id string) bool {
	n, err := store.Find[*cluster.Node](v, id)
	return err == nil && n.Spec.Manager
}

// campaign leads whenever this manager is to.
func (m ruler) campaign(ctx context.Context, st *etcd.Store, api *node.Server) error {
	id := m.Node()
	for ctx.Err() == nil {
		if !wanted(st.View(), id) { // it is about to be none
			select {
			case <-time.After(tended):
			case <-ctx.Done():
			}
			continue
		}
		l, err := st.Lead(ctx)
		if err != nil {
			return err
		}
		m.log.Info("this manager leads", "term", l.Term())
		err = m.lead(ctx, l, st, api)
		if ctx.Err() == nil {
			m.log.Warn("this manager does not lead any more", "term", l.Term(), "error", err)
		}
	}
	return context.Cause(ctx)
}

// resigning is how long a leader that ends tries to say so.
const resigning = 2 * time.Second

// lead does what the leader does, until ctx or the leadership ends.
func (m ruler) lead(ctx context.Context, l *etcd.Leader, st *etcd.Store, api *node.Server) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-l.Done():
			cancel(errors.New("another manager leads"))
		case <-ctx.Done():
		}
	}()
	d := dispatch.New(l.Store(), l.Term(), m.log)
	m.mu.Lock()
	remote := m.remote
	m.mu.Unlock()
	if silence, heard := remote.Silence(); heard {
		d.Succeed(silence)
	}
	err := all(ctx, map[string]func(context.Context) error{
		"dispatcher": func(ctx context.Context) error {
			api.Lead(d)
			defer api.Lead(nil)
			return d.Run(ctx)
		},
		"loops":    func(ctx context.Context) error { return m.cfg.Parts.Lead(ctx, l.Store(), d.Heard) },
		"managers": func(ctx context.Context) error { return newTender(m.Membership, st, l.Store()).run(ctx) },
	})
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), resigning) // detached: others begin the sooner
	defer stop()
	if failed := l.Resign(end); failed != nil {
		m.log.Debug("resigning", "error", failed)
	}
	return err
}

// later has a step taken by and by, for one who is part of what it ends.
func (m *Membership) later(do func(ctx context.Context) error) {
	m.mu.Lock()
	life := m.life
	m.mu.Unlock()
	go func() {
		if err := m.turn(life, do); err != nil && life.Err() == nil {
			m.log.Error("the node's part in the cluster stays what it is for now", "error", err)
		}
	}()
}

// climber takes a node from a worker to a manager, and back.
type climber struct{ *Membership }

// sink makes a worker of a manager whose store is a member no more. What it is wanted as it
// finds out as one.
func (m climber) sink(context.Context) error {
	m.mu.Lock()
	r, keeper := m.rec, m.keeper
	m.mu.Unlock()
	if r.Phase != manager {
		return nil
	}
	if err := keeper.Lock(nil); err != nil { // what opens it goes
		return err
	}
	m.log.Warn("this node is no manager any more")
	r.Phase, r.Members, r.Fresh, r.Force = worker, "", false, false
	return m.change(r, serverDir, keysFile)
}

// change takes another part, and removes what the former one has kept.
func (m *Membership) change(r record, files ...string) error {
	if err := r.write(m.cfg.Dir); err != nil {
		return err
	}
	if err := m.drop(files...); err != nil {
		return err
	}
	m.mu.Lock()
	m.ring = nil
	m.mu.Unlock()
	return m.enter(r)
}

// raised is how often somebody looks whether a node's part is another now.
const raised = 200 * time.Millisecond

// rise makes a manager of a worker that has the certificate of one.
func (m climber) rise(ctx context.Context) {
	m.mu.Lock()
	keeper, member, remote, r := m.keeper, m.member, m.remote, m.rec
	m.mu.Unlock()
	said := ""
	for ctx.Err() == nil {
		renewed := keeper.Changed()
		changed, forget := news(ctx, remote, cluster.KindNode)
		var again <-chan time.Time
		if keeper.Identity().Role == ca.Manager && wanted(remote.View(), r.Node) {
			seat, err := member.Enlist(ctx, remote.Managers(), r.Addr, r.storeURL())
			if err == nil {
				forget()
				m.later(func(context.Context) error { return m.ascend(seat) })
				<-ctx.Done()
				return
			}
			if said != err.Error() && ctx.Err() == nil {
				said = err.Error()
				m.log.Warn("this node is to be a manager and has no place yet: trying again", "error", err)
			}
			again = time.After(pause)
		}
		select {
		case <-renewed:
		case <-changed:
		case <-again:
		case <-ctx.Done():
		}
		forget()
	}
}

// ascend makes a manager of a worker that has got a place.
func (m climber) ascend(seat node.Seat) error {
	m.mu.Lock()
	r := m.rec
	m.mu.Unlock()
	if r.Phase != worker {
		return nil
	}
	var keys []seal.Key
	for _, k := range seat.Keys {
		if len(k) != len(seal.Key{}) {
			return fmt.Errorf("a key of %d bytes: %w", len(k), errdefs.ErrInvalidArgument)
		}
		keys = append(keys, seal.Key(k))
	}
	ring, err := seal.NewRing(keys...)
	if err != nil {
		return err
	}
	if err := m.drop(serverDir); err != nil {
		return err
	}
	if err := keepKeys(m.cfg.Dir, ring, ""); err != nil {
		return err
	}
	r.Phase, r.Members, r.Fresh = manager, seat.Members, true
	if err := r.write(m.cfg.Dir); err != nil {
		return err
	}
	return m.enter(r)
}

// managersOf are those of a list, with one more if it is not in it.
func managersOf(list []dispatch.Manager, more dispatch.Manager) []dispatch.Manager {
	if slices.ContainsFunc(list, func(o dispatch.Manager) bool { return o.Addr == more.Addr }) {
		return list
	}
	return append(slices.Clone(list), more)
}
