package plugin

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/plugin"
	"github.com/containerd/errdefs"
)

// Plugins finds plugins; see plugin.Registry.
type Plugins interface {
	Find(ctx context.Context, name, kind string) (*plugin.Plugin, error)
}

// Config is what a Store needs.
type Config struct {
	Dir     string // absolute; notes
	Plugins Plugins
	Logger  *slog.Logger
}

// Store is the networks and addresses of plugins. Safe for concurrent use.
type Store struct {
	cfg    Config
	opened time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	loops  sync.WaitGroup

	mu     sync.Mutex
	notes  map[string]*entry      // by id
	caps   map[string]ipamCaps    // of IPAM drivers that were asked
	replay map[string]*sync.Mutex // of IPAM drivers, held while they are told what they gave
}

var _ network.Others = (*Store)(nil)

// startTime is how long after the start of the engine plugins that are not there yet are
// waited for.
const startTime = 30 * time.Second

// Open reads the notes. One of a later format is refused (FailedPrecondition), one that
// cannot be read is left alone. No plugin is asked.
func Open(c Config) (*Store, error) {
	notes, err := load(c.Dir, func(path string, err error) {
		c.Logger.Error("note of what a plugin was told cannot be read: it is left alone", "path", path, "error", err)
	})
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: c, opened: time.Now(), notes: notes, caps: map[string]ipamCaps{}, replay: map[string]*sync.Mutex{}}
	s.ctx, s.cancel = context.WithCancel(context.Background()) // detached: lives from Open to Close
	return s, nil
}

// Close ends what waits for plugins; what they make stays. Idempotent.
func (s *Store) Close() error {
	s.cancel()
	s.loops.Wait()
	return nil
}

// bound is ctx that ends with the Store, too, and after a time.
func (s *Store) bound(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, d)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// find finds a plugin. One that is known is waited for while the engine has just been
// started, as long as ctx: it may be on its way, too.
func (s *Store) find(ctx context.Context, name, kind string, known bool) (caller, error) {
	for {
		p, err := s.cfg.Plugins.Find(ctx, name, kind)
		if err == nil {
			return caller{p, kind}, nil
		}
		if !known || errdefs.IsFailedPrecondition(err) || time.Since(s.opened) > startTime {
			return caller{}, err
		}
		select {
		case <-ctx.Done():
			return caller{}, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Driver implements network.Others.
func (s *Store) Driver(ctx context.Context, name string) (network.Driver, error) {
	ctx, cancel := s.bound(ctx, makeTime)
	defer cancel()
	c, err := s.find(ctx, name, plugin.NetworkDriver, false)
	if err != nil {
		return nil, err
	}
	d := &Driver{store: s, name: c.Name}
	d.caps, err = c.capabilities(ctx)
	return d, err
}

// Known implements network.Others.
func (s *Store) Known(name string) network.Driver { return &Driver{store: s, name: name} }

// Addresses implements network.Others.
func (s *Store) Addresses(ctx context.Context, name string, known bool) (network.Addresses, string, error) {
	if known {
		return addresses{s, name}, name, nil
	}
	ctx, cancel := s.bound(ctx, makeTime)
	defer cancel()
	c, err := s.find(ctx, name, plugin.IpamDriver, false)
	if err != nil {
		return nil, "", err
	}
	return addresses{s, c.Name}, c.Name, nil
}

// Uses implements network.Others.
func (s *Store) Uses(name string) bool {
	for _, e := range s.all() {
		if e.lock(s.ctx) != nil {
			return true
		}
		uses := e.note.Driver == name || e.note.IPAM == name
		e.unlock()
		if uses {
			return true
		}
	}
	return false
}

func (s *Store) all() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.notes))
}

// end tells plugins the end of what an entry is of; nil is fine. What cannot be told is
// told later.
func (s *Store) end(ctx context.Context, e *entry, left, over bool) {
	if e == nil {
		return
	}
	if s.mark(e, left, over) {
		return // somebody does it already
	}
	ctx, cancel := s.bound(context.WithoutCancel(ctx), endTime)
	defer cancel()
	err := e.lock(ctx)
	if err == nil {
		err = s.endLocked(ctx, e)
		e.unlock()
	}
	if err != nil && s.ctx.Err() == nil {
		s.cfg.Logger.Warn("a plugin could not be told an end: it is told later", "id", e.id, "error", err)
		s.later(e)
	}
}

// mark notes what is to be ended. It tells whether somebody is at it.
func (s *Store) mark(e *entry, left, over bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.left, e.over = e.left || left, e.over || over
	return e.busy
}

// marked tells what is to be ended.
func (s *Store) marked(e *entry) (left, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.left, e.over
}

// later tells the end until it is heard, or the Store is closed.
func (s *Store) later(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.busy || s.ctx.Err() != nil {
		return
	}
	e.busy = true
	s.loops.Go(func() {
		for pause := time.Second; !s.tryEnd(e); pause = min(2*pause, time.Minute) {
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	})
}

// tryEnd is one attempt of later; it tells whether all is done.
func (s *Store) tryEnd(e *entry) bool {
	if e.lock(s.ctx) != nil {
		return true
	}
	defer e.unlock()
	ctx, cancel := s.bound(s.ctx, 4*endTime)
	defer cancel()
	for {
		left, over := s.marked(e)
		if err := s.endLocked(ctx, e); err != nil {
			s.cfg.Logger.Debug("telling a plugin an end", "id", e.id, "error", err)
			return false
		}
		s.mu.Lock()
		same := left == e.left && over == e.over
		if same { // nobody has asked for more meanwhile
			e.busy = false
		}
		s.mu.Unlock()
		if same {
			return true
		}
	}
}

// endLocked tells what is due; the entry is locked. An error says that a plugin could not
// be reached; what it refuses is its own affair.
func (s *Store) endLocked(ctx context.Context, e *entry) error {
	if e.gone {
		return nil
	}
	left, over := s.marked(e)
	if e.network == "" && (left || over) && s.occupied(e.id) {
		return errOccupied
	}
	if left && e.note.Driver != "" {
		if err := s.endDriver(ctx, e); err != nil {
			return err
		}
	}
	if over && e.note.Driver == "" && !e.gone {
		if err := s.endAddresses(ctx, e); err != nil {
			return errors.Join(err, s.save(e, false))
		}
		return s.save(e, false)
	}
	return nil
}

// errOccupied puts off the end of a network.
var errOccupied = errors.New("the plugin has not been told the end of an endpoint of the network")

// occupied tells whether there are endpoints of a network that plugins know.
func (s *Store) occupied(network string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.notes {
		if e.network == network {
			return true
		}
	}
	return false
}

// heard tells whether a plugin has been told, and logs what it said against it.
func (s *Store) heard(what string, e *entry, err error) error {
	switch {
	case err == nil || errdefs.IsNotImplemented(err):
	case errors.Is(err, plugin.ErrUnreachable):
		return err
	default:
		s.cfg.Logger.Warn("a plugin was told an end and objects", "what", what, "id", e.id, "error", err)
	}
	return nil
}

// Settle implements network.Others.
func (s *Store) Settle(networks map[string]string, live map[string][]network.Live) {
	lives := map[string]network.Live{}
	for _, list := range live {
		for _, l := range list {
			lives[l.Endpoint.EndpointID] = l
		}
	}
	for _, e := range s.all() {
		id, net := e.id, e.network
		_, here := networks[id]
		if _, ok := lives[id]; net == "" && here || net != "" && ok {
			continue
		}
		s.mark(e, true, true)
		s.later(e)
	}
	for id, name := range networks {
		if name != "" && s.entry(id) == nil {
			s.adopt(id, name)
		}
	}
	for _, name := range s.drivers(networks) {
		s.loops.Go(func() {
			s.insist("told again what it gave", "plugin", name, func(ctx context.Context) error {
				_, _, err := s.ipam(ctx, name, true)
				return err
			})
		})
	}
	for _, l := range lives {
		s.loops.Go(func() {
			s.insist("made whole", "container", l.ContainerID, func(ctx context.Context) error { return s.repair(ctx, l) })
		})
	}
}

// adopt notes a network whose note was lost.
func (s *Store) adopt(id, name string) {
	e, err := s.open(s.ctx, id, "", "")
	if err == nil {
		e.note.Driver = name
		err = s.save(e, true)
		e.unlock()
	}
	if err != nil {
		s.cfg.Logger.Error("noting the network of a plugin", "network", id, "plugin", name, "error", err)
	}
}

// drivers are the IPAM drivers of networks.
func (s *Store) drivers(networks map[string]string) []string {
	seen := map[string]bool{}
	for id := range networks {
		if e := s.entry(id); e != nil && e.lock(s.ctx) == nil {
			if e.note.IPAM != "" {
				seen[e.note.IPAM] = true
			}
			e.unlock()
		}
	}
	return slices.Collect(maps.Keys(seen))
}

// insist does something until it succeeds, a plugin refuses, or the Store is closed.
func (s *Store) insist(what, kind, who string, do func(ctx context.Context) error) {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		ctx, cancel := s.bound(s.ctx, 2*joinTime)
		err := do(ctx)
		cancel()
		if err == nil || s.ctx.Err() != nil {
			return
		}
		s.cfg.Logger.Warn("after a start of the engine something could not be "+what, kind, who, "error", err)
		if isRemote(err) {
			return
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
