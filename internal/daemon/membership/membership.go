// Package membership is a host's part in a cluster: none, that of a worker, or that of a
// manager. It keeps on disk what that is, takes the host from one to the other, and runs what
// belongs to each: on every node its connection with the leader, on managers the store's
// server, the election and the dispatcher. What the engine does as a node, and as the leader,
// is given to it; of containers it knows nothing.
package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/api/node"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// Parts are what an engine does. Those that take a context go on until it ends, and block.
type Parts interface {
	// Enter writes what this node is into the store of a host that is alone, and gives its id.
	Enter(ctx context.Context, s store.Store) (node string, err error)
	// Describe is what the node says of itself: the host's name, and its status without addresses.
	Describe() (string, cluster.NodeStatus)
	// Node does a node's work, of which it is told by a store.
	Node(ctx context.Context, node string, s store.Store) error
	// Manage does what every manager does.
	Manage(ctx context.Context, s store.Store) error
	// Lead does what one does for all; heard tells which nodes have spoken to this leader, nil for
	// a host that is alone.
	Lead(ctx context.Context, s store.Store, heard func(node string) bool) error
	// Peers answers other nodes, on connections that are to be of TLS. It closes the listener.
	Peers(ctx context.Context, k *ca.Keeper, l net.Listener) error
	// Idle tells whether no container of a task is left here.
	Idle(ctx context.Context) (bool, error)
}

// Config is what a Membership needs; all of it must be set.
type Config struct {
	Dir     string   // what is kept: the record, the identity, the node's view, the store
	RunDir  string   // of sockets, and of keys that others read; gone when the machine stops
	Program []string // of the store's server, with its arguments
	// Alone opens the store of a host that is in no cluster, and Forget removes it once it is
	// closed.
	Alone  func() (store.Store, error)
	Forget func() error
	Parts  Parts
	Log    *slog.Logger
}

// Membership is this host's part. Its methods may be called from several goroutines.
type Membership struct {
	cfg     Config
	log     *slog.Logger
	objects handle // what clients ask
	part    handle // what the node does
	turns   chan turn

	mu     sync.Mutex
	rec    record
	node   string
	failed string // why the part is not what it is to be
	own    store.Store
	keeper *ca.Keeper
	member *node.Member
	remote *dispatch.Remote
	server *server    // of the store; nil: it is not running
	lasts  bool       // the server outlives what a manager does
	ring   *seal.Ring // nil: not read yet, or locked
	unlock chan struct{}
	life   context.Context // of Run
}

// turn is a step from one part to another: taken while nothing of either runs.
type turn struct {
	do   func(ctx context.Context) error
	done chan error
}

// Open makes a Membership of what is on disk. Views answer from then on, as far as they can;
// all else begins with Run.
func Open(cfg Config) (*Membership, error) {
	m := &Membership{cfg: cfg, log: cfg.Log, turns: make(chan turn), unlock: make(chan struct{}, 1)}
	r, err := readRecord(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if r, err = inPlace(cfg.Dir, r); err != nil {
		return nil, err
	}
	switch r.Phase {
	case founding:
		m.log.Warn("an engine ended while it made a cluster of this host: that is taken back")
		own, err := cfg.Alone()
		if err == nil {
			err = errors.Join(takeBack(context.Background(), own), own.Close()) // detached: it is part of opening
		}
		if err == nil {
			err = m.drop(everything...)
		}
		if err != nil {
			return nil, err
		}
		r = record{}
	case worker, manager: // an engine may have ended before it could
		if err := cfg.Forget(); err != nil {
			return nil, err
		}
	}
	return m, m.enter(r)
}

// enter takes the part that a record says.
func (m *Membership) enter(r record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rec, m.node, m.failed = r, r.Node, ""
	switch r.Phase {
	case alone:
		s, err := m.cfg.Alone()
		if err != nil {
			return err
		}
		m.own = s
		m.objects.set(s)
		m.part.set(s)
		return nil
	case leaving:
		m.objects.set(nothingYet(r.Node, false, errLeaving))
		m.part.set(mem.New(store.NewState()))
		return nil
	}
	if m.server == nil { // else its store is open
		why := errStarting
		if r.Phase == worker {
			why = ""
		}
		m.objects.set(nothingYet(r.Node, r.Phase == manager, why))
	}
	return m.connect()
}

// What is said to clients of a node whose part is not whole.
const (
	errStarting = "The manager is starting: its store is not open yet. Try again in a moment."
	errRemoved  = "This node was removed from its swarm. Use \"docker swarm leave\" to leave it, and join anew."
	errLeaving  = "This node is leaving its swarm."
	errLocked   = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."
)

// connect opens the node's end of the cluster. Called with mu held.
func (m *Membership) connect() (err error) {
	if m.remote != nil {
		m.part.set(m.remote)
		return nil
	}
	if m.keeper == nil {
		if m.keeper, err = ca.Open(filepath.Join(m.cfg.Dir, identityFile)); err != nil {
			return err
		}
	}
	m.member = node.NewMember(m.keeper, m.log)
	managers := m.rec.Managers
	if m.rec.Phase == manager {
		managers = managersOf(managers, dispatch.Manager{Node: m.rec.Node, Addr: m.rec.Addr})
	}
	m.remote, err = dispatch.Open(dispatch.Config{
		Node: m.rec.Node, Path: filepath.Join(m.cfg.Dir, viewFile), Log: m.log, Dial: m.member.Dial, Ask: m.member.Ask, Told: m.member.Told,
		Managers: managers, Describe: m.describe,
	})
	if err != nil {
		return err
	}
	m.part.set(m.remote)
	return nil
}

// describe is what the node says of itself.
func (m *Membership) describe() (string, cluster.NodeStatus) {
	name, s := m.cfg.Parts.Describe()
	m.mu.Lock()
	r, k := m.rec, m.keeper
	m.mu.Unlock()
	s.Addr, s.ListenAddr, s.DataPathAddr = r.host(), r.Listen, r.DataPath
	if k != nil {
		s.CertIssuer = k.Identity().Issuer
	}
	return name, s
}

// Objects is the store that clients' requests are about: a host's own, the cluster's on a
// manager, and on a worker one that refuses.
func (m *Membership) Objects() store.Store { return &m.objects }

// Part is the store by which the node works.
func (m *Membership) Part() store.Store { return &m.part }

// Node is the id of this node; "" before it has one.
func (m *Membership) Node() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// Alone tells whether the host is in no cluster.
func (m *Membership) Alone() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.Phase == alone
}

// Whole tells whether Part shows all that the node is to have: before that nothing may be
// concluded from what is not in it.
func (m *Membership) Whole() bool {
	m.mu.Lock()
	r, phase := m.remote, m.rec.Phase
	m.mu.Unlock()
	if phase == alone || phase == leaving {
		return true
	}
	if r == nil { // it is a manager by and by
		return false
	}
	ctx, cancel := context.WithCancelCause(context.Background()) // detached: it has ended already
	cancel(errCut)
	return r.Ready(ctx) == nil
}

var errCut = errors.New("not asked to wait")

// Barred tells whether a node was removed from the cluster, as far as this host was told.
func (m *Membership) Barred(node string) bool {
	m.mu.Lock()
	r := m.remote
	m.mu.Unlock()
	return r != nil && r.Barred(node)
}

// The phases that State tells.
const (
	Alone   = string(alone)
	Worker  = string(worker)
	Manager = string(manager)
)

// State is this host's part in words.
type State struct {
	Phase    string // Alone, Worker, Manager, or that it is leaving
	Node     string
	Addr     string // by which the others reach it
	Locked   bool
	Failed   string // why it is not what it is to be; "": it is
	Ready    bool   // a manager's store is open; a worker has been told all
	Managers []dispatch.Manager
}

// State tells what the part is.
func (m *Membership) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{Phase: string(m.rec.Phase), Node: m.node, Addr: m.rec.host(), Failed: m.failed, Locked: m.failed == errLocked}
	if m.remote != nil {
		s.Managers = m.remote.Managers()
		if errdefs.IsPermissionDenied(m.remote.Err()) {
			s.Failed = errRemoved
		}
	}
	s.Ready = m.rec.Phase == alone || m.rec.Phase == worker && m.remote != nil && m.remote.Connected() || m.server != nil && m.server.open()
	return s
}

// fail notes why the part is not what it is to be; "": it is.
func (m *Membership) fail(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = why
}

// Run does what the part asks for until ctx ends, and blocks.
func (m *Membership) Run(ctx context.Context) {
	m.mu.Lock()
	m.life = ctx
	m.mu.Unlock()
	for ctx.Err() == nil {
		run, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			m.work(run)
		}()
		select {
		case t := <-m.turns:
			cancel()
			<-ended
			t.done <- t.do(ctx)
		case <-ended: // a part that is over, as leaving is
		case <-ctx.Done():
		}
		cancel()
		<-ended
	}
	m.stopServer()
}

// Close lets go of what Open has opened. Who has called Run ends that first.
func (m *Membership) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	if m.remote != nil {
		errs = append(errs, m.remote.Close())
		m.remote = nil
	}
	if m.own != nil {
		errs = append(errs, m.own.Close())
		m.own = nil
	}
	return errors.Join(errs...)
}

// turn has a step taken, and blocks until it is. Kinds are the step's.
func (m *Membership) turn(ctx context.Context, do func(ctx context.Context) error) error {
	t := turn{do, make(chan error, 1)}
	select {
	case m.turns <- t:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return <-t.done // it is bounded, and not to be left half-way
}

// work does what the present part asks for, until ctx ends or the part is over.
func (m *Membership) work(ctx context.Context) {
	m.mu.Lock()
	r := m.rec
	m.mu.Unlock()
	switch r.Phase {
	case alone:
		m.always(ctx, "the orchestrator", m.alone)
	case worker:
		m.together(ctx, func(ctx context.Context) { m.always(ctx, "the node", m.attend) },
			func(ctx context.Context) { m.always(ctx, "other nodes' calls", ear{m}.hear) }, climber{m}.rise)
	case manager:
		m.together(ctx, func(ctx context.Context) { m.always(ctx, "the node", m.attend) },
			func(ctx context.Context) { m.always(ctx, "other nodes' calls", ear{m}.hear) },
			func(ctx context.Context) { m.always(ctx, "the manager", ruler{m}.manage) })
	case restored:
		restorer{m}.adopting(ctx)
	case leaving:
		leaver{m}.vacate(ctx)
	}
}

// together runs functions until all have ended.
func (m *Membership) together(ctx context.Context, list ...func(context.Context)) {
	var parts sync.WaitGroup
	for _, f := range list {
		parts.Go(func() { f(ctx) })
	}
	parts.Wait()
}

// all runs functions until ctx or one of them ends, waits for all, and gives the error of
// the first.
func all(ctx context.Context, list map[string]func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts sync.WaitGroup
	for what, f := range list {
		parts.Go(func() {
			err := f(ctx)
			if err == nil {
				err = fmt.Errorf("ended: %w", context.Canceled)
			}
			cancel(fmt.Errorf("%s: %w", what, err))
		})
	}
	parts.Wait()
	return context.Cause(ctx)
}

// pause is between an end of something that nobody wanted and its next beginning.
const pause = time.Second

// always does something again and again until ctx ends.
func (m *Membership) always(ctx context.Context, what string, f func(context.Context) error) {
	for {
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		m.log.Error(what+" has ended: beginning again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// alone is all that a host in no cluster does.
func (m *Membership) alone(ctx context.Context) error {
	m.mu.Lock()
	s := m.own
	m.mu.Unlock()
	id, err := m.cfg.Parts.Enter(ctx, s)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	m.mu.Lock()
	m.node = id
	m.mu.Unlock()
	return all(ctx, map[string]func(context.Context) error{
		"loops":  func(ctx context.Context) error { return m.cfg.Parts.Lead(ctx, s, nil) },
		"node":   func(ctx context.Context) error { return m.cfg.Parts.Node(ctx, id, s) },
		"events": func(ctx context.Context) error { return m.cfg.Parts.Manage(ctx, s) },
	})
}

// Enter gives the id of this node, which it writes first where the host is alone. Before Run.
func (m *Membership) Enter(ctx context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rec.Phase == alone {
		id, err := m.cfg.Parts.Enter(ctx, m.own)
		m.node = id
		return id, err
	}
	return m.node, nil
}

// attend is what every node of a cluster does.
func (m *Membership) attend(ctx context.Context) error {
	m.mu.Lock()
	r, member, id := m.remote, m.member, m.rec.Node
	m.mu.Unlock()
	return all(ctx, map[string]func(context.Context) error{
		"connection":  r.Run,
		"certificate": func(ctx context.Context) error { return member.Run(ctx, r) },
		"work": func(ctx context.Context) error {
			if err := r.Ready(ctx); err != nil {
				return err
			}
			return m.cfg.Parts.Node(ctx, id, r)
		},
	})
}

var errInCluster = fmt.Errorf("this host is in a cluster already: %w", errdefs.ErrAlreadyExists)

// Attach gives a container that no task has its address on a network of the cluster; kinds as
// those of address.Attach. It blocks.
func (m *Membership) Attach(ctx context.Context, g address.Guest) (netip.Prefix, error) {
	s, member, remote := m.asked()
	if s == nil {
		return member.Attach(ctx, remote.Managers(), g)
	}
	return address.Attach(ctx, s, g)
}

// Detach gives back what an endpoint of this node's had, or, of "", what all had that are not
// left. It blocks.
func (m *Membership) Detach(ctx context.Context, endpoint string, left []string) error {
	s, member, remote := m.asked()
	if s == nil {
		return member.Detach(ctx, remote.Managers(), endpoint, left)
	}
	return address.Detach(ctx, s, m.Node(), func(is string) bool {
		if endpoint != "" {
			return is == endpoint
		}
		return !slices.Contains(left, is)
	})
}

// asked is who changes what is not the node's own to change: the store of this host, or those
// by which managers are asked.
func (m *Membership) asked() (store.Store, *node.Member, *dispatch.Remote) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rec.Phase == worker || m.rec.Phase == manager && (m.server == nil || !m.server.open()) {
		return nil, m.member, m.remote
	}
	return &m.objects, nil, nil
}
