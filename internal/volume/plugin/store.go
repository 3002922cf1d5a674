package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/sys/du"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
)

// Plugins finds volume plugins; see plugin.Registry.
type Plugins interface {
	Find(ctx context.Context, name, kind string) (*plugin.Plugin, error)
	Ask(ctx context.Context, kind string, f func(ctx context.Context, p *plugin.Plugin) error) map[string]error
}

// Publisher receives what happened.
type Publisher interface{ Publish(events.Message) }

// Config is what a Store needs.
type Config struct {
	Dir     string // records of volumes
	RunDir  string // what is mounted until the machine stops
	Plugins Plugins
	Events  Publisher
	Logger  *slog.Logger
}

// Store is the volumes of plugins. Safe for concurrent use.
type Store struct {
	cfg Config

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	loops  sync.WaitGroup

	mu     sync.Mutex
	byName map[string]*entry
}

// entry is a volume that this engine knows.
type entry struct {
	rec   record          // never changes
	users map[string]bool // guarded by Store.mu
	path  string          // where it is mounted, or was told to lie; guarded by Store.mu
	gone  bool            // forgotten; guarded by Store.mu

	op     chan struct{}      // held (full) while the plugin is asked to change something
	mounts map[string]mounted // by user; guarded by op
	stale  map[string]bool    // users of an engine before that have not asked again; guarded by op
}

// lock waits for the volume's turn, which may be as long as a plugin takes.
func (e *entry) lock(ctx context.Context) error {
	select {
	case e.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *entry) unlock() { <-e.op }

// Open reads the records. A record of a later format is refused
// (FailedPrecondition), one that cannot be read is left alone. No plugin is asked.
func Open(c Config) (*Store, error) {
	s := &Store{cfg: c, byName: map[string]*entry{}}
	s.ctx, s.cancel = context.WithCancel(context.Background()) // detached: lives from Open to Close
	for _, dir := range []string{c.Dir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	err := readAll(c.Dir, func(file string, b []byte) error {
		r, err := parseRecord(file, b)
		if errdefs.IsFailedPrecondition(err) {
			return err
		}
		if err != nil {
			c.Logger.Error("record of a plugin's volume cannot be read: it is left alone", "file", file, "error", err)
			return nil
		}
		s.byName[r.Name] = newEntry(r)
		return nil
	})
	if err == nil {
		err = readAll(c.RunDir, s.takeMounts)
	}
	return s, err
}

func newEntry(r record) *entry {
	return &entry{rec: r, users: map[string]bool{}, op: make(chan struct{}, 1), mounts: map[string]mounted{}, stale: map[string]bool{}}
}

// Close ends what waits for plugins. What is mounted stays so. Idempotent.
func (s *Store) Close() error {
	s.cancel()
	s.loops.Wait()
	return nil
}

// bound is ctx that ends with the Store, too.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func (s *Store) entry(name string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name]
}

// Has tells whether a volume of the name is known. It asks no plugin.
func (s *Store) Has(name string) bool { return s.entry(name) != nil }

// view is the volume with its users.
func (s *Store) view(e *entry) volume.Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return volume.Volume{
		Name: e.rec.Name, Driver: e.rec.Driver, Path: e.path, Scope: scopeOr(e.rec.Scope), Labels: e.rec.Labels, Options: e.rec.Options,
		CreatedAt: e.rec.CreatedAt, Users: slices.Sorted(maps.Keys(e.users)),
	}
}

func scopeOr(scope string) string {
	if scope == "" {
		return "local"
	}
	return scope
}

// driver finds the plugin of a volume that is known.
func (s *Store) driver(ctx context.Context, name string) (driver, error) {
	p, err := s.cfg.Plugins.Find(ctx, name, plugin.VolumeDriver)
	if err != nil {
		return driver{}, fmt.Errorf("error looking up volume plugin %s: %w", name, err)
	}
	return driver{p}, nil
}

// Acquire gives a volume, has its plugin make it when it is not there, and notes
// that user holds it; "" is nobody. It blocks as long as the plugin takes. Kinds:
// NotFound (the plugin), Conflict (another plugin's volume).
func (s *Store) Acquire(ctx context.Context, r volume.Request, user string) (volume.Volume, error) {
	ctx, end := s.bound(ctx)
	defer end()
	e := s.entry(r.Name)
	var err error
	switch {
	case r.Held && e == nil:
		e, err = s.keep(record{Name: r.Name, Driver: r.Driver}, user)
	case r.Held:
	case e == nil:
		e, err = s.create(ctx, r, user)
	default:
		e, err = s.check(ctx, e, r, user)
	}
	if err != nil {
		return volume.Volume{}, fmt.Errorf("create %s: %w", r.Name, err)
	}
	if user != "" {
		s.mu.Lock()
		e.users[user] = true
		s.mu.Unlock()
	}
	return s.view(e), nil
}

// check sees to it that a volume that is known still is there, in Docker's words.
func (s *Store) check(ctx context.Context, e *entry, r volume.Request, user string) (*entry, error) {
	if r.Driver != "" && r.Driver != e.rec.Driver && r.Driver+":latest" != e.rec.Driver {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("driver '%s' already has volume '%s': volume name must be unique", e.rec.Driver, r.Name))
	}
	conflict := func(format string, a ...any) error {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, a...) + ": volume name must be unique")
	}
	d, err := s.driver(ctx, e.rec.Driver)
	var v *told
	if err == nil {
		v, err = d.get(ctx, r.Name, plugin.How{Timeout: shortTime})
	}
	switch {
	case err != nil:
		return nil, conflict("found reference to volume '%s' in driver '%s', but got an error while checking the driver: %s", r.Name, e.rec.Driver, err)
	case v != nil:
		return e, nil
	case len(s.view(e).Users) > 0:
		return nil, conflict("found references to volume '%s' in driver '%s' but the volume was not found in the driver -- you may need to remove containers referencing this volume or force remove the volume to re-create it", r.Name, e.rec.Driver)
	}
	s.forget(e)
	return s.create(ctx, r, user)
}

// create has the plugin make a volume, unless it has it already.
func (s *Store) create(ctx context.Context, r volume.Request, user string) (*entry, error) {
	d, err := s.driver(ctx, r.Driver)
	if err != nil {
		return nil, err
	}
	v, err := d.get(ctx, r.Name, plugin.How{Timeout: shortTime})
	if err != nil {
		return nil, err
	}
	if v == nil {
		if err := d.create(ctx, r.Name, r.Options); err != nil {
			return nil, err
		}
	}
	e, err := s.keep(record{Name: r.Name, Driver: d.Name, Scope: d.scope(ctx), Labels: r.Labels, Options: r.Options, CreatedAt: time.Now().UTC()}, user)
	if err != nil {
		if v == nil { // what this made, and nobody would know of
			err = errors.Join(err, d.remove(ctx, r.Name))
		}
		return nil, err
	}
	s.tell(apievents.ActionCreate, e)
	return e, nil
}

// keep notes a volume of a plugin.
func (s *Store) keep(r record, user string) (*entry, error) {
	r.Version = format
	if err := write(s.cfg.Dir, r.Name, r, true); err != nil {
		return nil, err
	}
	e := newEntry(r)
	if user != "" {
		e.users[user] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byName[r.Name]; old != nil {
		return old, nil // somebody else asked at the same time
	}
	s.byName[r.Name] = e
	return e, nil
}

// forget drops what is noted of a volume.
func (s *Store) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[e.rec.Name] != e {
		return
	}
	e.gone = true
	delete(s.byName, e.rec.Name)
	if err := errors.Join(erase(s.cfg.Dir, e.rec.Name), erase(s.cfg.RunDir, e.rec.Name)); err != nil {
		s.cfg.Logger.Warn("forgetting a plugin's volume", "volume", e.rec.Name, "error", err)
	}
}

// Get finds a volume, also one that a plugin has and nobody has used here. What
// is known of one whose plugin cannot be asked is given. Kind: NotFound.
func (s *Store) Get(ctx context.Context, name string) (volume.Volume, error) {
	ctx, end := s.bound(ctx)
	defer end()
	e := s.entry(name)
	if e == nil {
		return s.discover(ctx, name)
	}
	out := s.view(e)
	d, err := s.driver(ctx, e.rec.Driver)
	var v *told
	if err == nil {
		v, err = d.get(ctx, name, plugin.How{Timeout: shortTime, Once: true})
	}
	switch {
	case err != nil:
		s.cfg.Logger.Debug("asking for a volume", "volume", name, "error", err)
		return out, nil
	case v == nil && len(out.Users) == 0:
		s.forget(e)
		return volume.Volume{}, volume.ErrNone(name)
	case v == nil:
		return out, nil
	}
	fill(&out, d, v)
	return out, nil
}

// fill adds what the plugin tells of a volume.
func fill(out *volume.Volume, d driver, v *told) {
	out.Status = v.Status
	if path := d.Path(v.Mountpoint); path != "" {
		out.Path = path
	}
	if at := v.createdAt(); !at.IsZero() {
		out.CreatedAt = at
	}
}

// Size adds up the files of a volume that is mounted; of another it is 0.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	e := s.entry(name)
	if e == nil {
		return 0, volume.ErrNone(name)
	}
	if err := e.lock(ctx); err != nil {
		return 0, err
	}
	path := e.mountedAt()
	e.unlock()
	if path == "" {
		return 0, nil
	}
	return du.Size(ctx, path)
}

// Release notes that user no longer holds the volume.
func (s *Store) Release(name, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byName[name]; e != nil {
		delete(e.users, user)
	}
}

// Remove has the plugin remove a volume. With force a volume whose plugin cannot do
// it is forgotten. Kinds: NotFound, unless force; Conflict while a container holds it.
func (s *Store) Remove(ctx context.Context, name string, force bool) error {
	ctx, end := s.bound(ctx)
	defer end()
	e := s.entry(name)
	if e == nil {
		if _, err := s.discover(ctx, name); err != nil {
			if force && errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
		if e = s.entry(name); e == nil {
			return nil // and removed meanwhile
		}
	}
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	if v := s.view(e); len(v.Users) > 0 {
		return volume.InUse(&v)
	}
	if s.entry(name) != e { // removed while this waited
		return nil
	}
	err := s.removeLocked(ctx, e)
	if err == nil {
		s.forget(e)
		s.tell(apievents.ActionDestroy, e)
		return nil
	}
	if !force {
		return err
	}
	s.forget(e)
	if isRemote(err) {
		return err // as Docker: forgotten, and told why it is not gone
	}
	s.cfg.Logger.Warn("a volume is forgotten whose plugin cannot remove it", "volume", name, "driver", e.rec.Driver, "error", err)
	s.tell(apievents.ActionDestroy, e)
	return nil
}

// removeLocked ends what is mounted for nobody any more, and has the volume removed.
func (s *Store) removeLocked(ctx context.Context, e *entry) error {
	d, err := s.driver(ctx, e.rec.Driver)
	if err != nil {
		return fmt.Errorf("remove %s: %w", e.rec.Name, err)
	}
	// Nobody holds it: what is mounted is of containers whose end is under way.
	for _, user := range slices.Sorted(maps.Keys(e.mounts)) {
		s.unmountLocked(ctx, e, user)
	}
	if err := d.remove(ctx, e.rec.Name); err != nil {
		return fmt.Errorf("remove %s: %w", e.rec.Name, err)
	}
	return nil
}

// tell publishes an event of a volume.
func (s *Store) tell(action apievents.Action, e *entry) {
	s.cfg.Events.Publish(events.Message{
		Type: apievents.VolumeEventType, Action: action,
		Actor: apievents.Actor{ID: e.rec.Name, Attributes: map[string]string{"driver": e.rec.Driver}},
	})
}
