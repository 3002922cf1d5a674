// Package local keeps volumes as directories under the data root:
// volumes/<name>/_data beside a small record of the volume. With the options
// type, device and o something is mounted at _data as long as a container that
// has the volume runs.
package local

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/sys/atomicfile"
	"escale.dev/escale/internal/sys/du"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
)

const (
	// Driver is this driver's name.
	Driver = volume.Local

	recordFile = "volume.json"
	dataDir    = "_data"
	format     = 1 // of the record; see docs/formats.md
	// What is on its way to become a volume, or was one, has a name that no
	// volume can have.
	newPrefix, oldPrefix = ".new-", ".removed-"
)

// record is a volume on the disk.
type record struct {
	Version   int // 0 is the format before versions: it lacks Options
	Name      string
	Driver    string
	Labels    map[string]string `json:",omitempty"`
	Options   map[string]string `json:",omitempty"`
	CreatedAt time.Time
}

// Publisher receives what happened.
type Publisher interface{ Publish(events.Message) }

// Config is what a Store needs.
type Config struct {
	Dir    string // made when the first volume is
	Events Publisher
	Logger *slog.Logger
}

// Store is the local volume driver. Safe for concurrent use.
type Store struct {
	cfg Config

	mu     sync.Mutex
	byName map[string]*entry
}

// entry is a volume in memory.
type entry struct {
	vol   volume.Volume   // without its users; never changes
	users map[string]bool // guarded by Store.mu
	moves *volume.Moving  // guarded by Store.mu, and never changed in place

	mounting sync.Mutex      // held while it is mounted and unmounted
	mounts   map[string]bool // who has it mounted; guarded by mounting
}

// Open reads the volumes that are there and collects what a killed engine left
// half-made or half-removed. A record of a later format is refused
// (FailedPrecondition). It blocks for the disk.
func Open(c Config) (*Store, error) {
	s := &Store{cfg: c, byName: map[string]*entry{}}
	list, err := os.ReadDir(c.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, d := range list {
		name := d.Name()
		switch {
		case strings.HasPrefix(name, newPrefix), strings.HasPrefix(name, oldPrefix):
			s.discard(filepath.Join(c.Dir, name))
		case !d.IsDir() || checkName(name) != nil:
		default:
			v, err := s.readMoving(name)
			if errors.Is(err, fs.ErrNotExist) {
				c.Logger.Warn("not a volume: it has no data directory", "path", filepath.Join(c.Dir, name))
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("volume %q: %w", name, err)
			}
			s.byName[name] = newEntry(v)
		}
	}
	return s, nil
}

func newEntry(v volume.Volume) *entry {
	e := &entry{vol: v, users: map[string]bool{}, mounts: map[string]bool{}, moves: v.Moving}
	e.vol.Moving = nil
	return e
}

// read makes a volume of its directory. One that somebody has put there without
// a record is a volume too.
func (s *Store) read(name string) (volume.Volume, error) {
	dir := filepath.Join(s.cfg.Dir, name)
	info, err := os.Stat(filepath.Join(dir, dataDir))
	if err != nil {
		return volume.Volume{}, err
	}
	v := volume.Volume{Name: name, Driver: Driver, Scope: "local", Path: filepath.Join(dir, dataDir), CreatedAt: info.ModTime().UTC()}
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	var rec record
	if err == nil {
		err = rec.parse(b)
	}
	if err != nil {
		// The data is what counts: it stays reachable.
		s.cfg.Logger.Error("record of volume cannot be read: it is shown without labels and options", "volume", name, "error", err)
		return v, nil
	}
	if rec.Version > format {
		return v, fmt.Errorf("its record has format %d, this version of Escale knows %d; downgrading is not possible: %w", rec.Version, format, errdefs.ErrFailedPrecondition)
	}
	v.Labels, v.Options, v.CreatedAt = rec.Labels, rec.Options, rec.CreatedAt
	return v, nil
}

// parse reads the record of a volume. It may have another's name: people copy volumes.
func (r *record) parse(b []byte) error {
	if err := json.Unmarshal(b, r); err != nil {
		return err
	}
	if r.Version <= format && r.Name == "" {
		return errors.New("it is of no volume")
	}
	return nil
}

// Has tells whether there is a volume of the name.
func (s *Store) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name] != nil
}

// Acquire gives a volume, which is made when it is not there, and notes that user
// holds it; "" is nobody. Kind: InvalidArgument.
func (s *Store) Acquire(_ context.Context, r volume.Request, user string) (volume.Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.obtain(r)
	if err == nil && !r.Held {
		err = e.free()
	}
	if err != nil {
		return volume.Volume{}, err
	}
	if user != "" {
		e.users[user] = true
	}
	return e.view(), nil
}

// obtain finds or makes a volume; mu is held.
func (s *Store) obtain(r volume.Request) (*entry, error) {
	if err := checkName(r.Name); err != nil {
		return nil, fmt.Errorf("create %s: %w", r.Name, err)
	}
	if e := s.byName[r.Name]; e != nil {
		return e, nil
	}
	if err := checkOptions(r.Options); err != nil {
		return nil, fmt.Errorf("create %s: %w", r.Name, err)
	}
	v := volume.Volume{
		Name: r.Name, Driver: Driver, Path: filepath.Join(s.cfg.Dir, r.Name, dataDir),
		Scope: "local", Labels: r.Labels, Options: maps.Clone(r.Options), CreatedAt: time.Now().UTC(),
	}
	if err := s.write(v); err != nil {
		return nil, fmt.Errorf("create %s: %w", r.Name, err)
	}
	e := newEntry(v)
	s.byName[r.Name] = e
	s.tell(apievents.ActionCreate, r.Name)
	return e, nil
}

// write makes a volume's directory under another name and renames it: it is
// there with all that belongs to it, or not at all.
func (s *Store) write(v volume.Volume) (err error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o701); err != nil {
		return err
	}
	tmp, err := s.make(v)
	if err != nil {
		return err
	}
	if err := s.place(tmp, v.Name); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return nil
}

// place gives what was made its name. A directory that is no volume may be in the way: then
// it stays, and this is told.
func (s *Store) place(tmp, name string) error {
	if err := os.Rename(tmp, filepath.Join(s.cfg.Dir, name)); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.cfg.Dir)
}

// make makes a volume's directory under another name, with an empty tree.
func (s *Store) make(v volume.Volume) (tmp string, err error) {
	tmp, err = os.MkdirTemp(s.cfg.Dir, newPrefix)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	b, err := json.Marshal(record{Version: format, Name: v.Name, Driver: v.Driver, Labels: v.Labels, Options: v.Options, CreatedAt: v.CreatedAt})
	if err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o701); err != nil {
		return "", err
	}
	data := filepath.Join(tmp, dataDir)
	if err := os.Mkdir(data, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(data, 0o755); err != nil { // whatever the umask
		return "", err
	}
	if err := atomicfile.Write(filepath.Join(tmp, recordFile), b, 0o600, atomicfile.Options{Sync: true}); err != nil {
		return "", err
	}
	return tmp, nil
}

// view is the volume with its users; Store.mu is held.
func (e *entry) view() volume.Volume {
	v := e.vol
	v.Users = slices.Sorted(maps.Keys(e.users))
	v.Moving = e.moves
	return v
}

// Get finds a volume. Kind: NotFound.
func (s *Store) Get(_ context.Context, name string) (volume.Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return volume.Volume{}, err
	}
	return e.view(), nil
}

func (s *Store) find(name string) (*entry, error) {
	e := s.byName[name]
	if e == nil {
		return nil, volume.ErrNone(name)
	}
	return e, nil
}

// List gives all volumes, by name.
func (s *Store) List(context.Context) ([]volume.Volume, []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]volume.Volume, 0, len(s.byName))
	for _, name := range slices.Sorted(maps.Keys(s.byName)) {
		out = append(out, s.byName[name].view())
	}
	return out, nil
}

// Size adds up the files of a volume; it walks all of them. Kind: NotFound.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	v, err := s.Get(ctx, name)
	if err != nil {
		return 0, err
	}
	n, err := du.Size(ctx, v.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // removed meanwhile
	}
	return n, err
}

// Release notes that user no longer holds the volume.
func (s *Store) Release(name, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byName[name]; e != nil {
		delete(e.users, user)
	}
}

// Remove deletes a volume and its data. Kinds: NotFound, unless force;
// Conflict while a container holds it.
func (s *Store) Remove(_ context.Context, name string, force bool) error {
	gone, err := s.detach(name, (*entry).free)
	if err != nil {
		if force && errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	s.tell(apievents.ActionDestroy, name)
	s.discard(gone)
	return nil
}

// detach takes a volume off the list: it is renamed, and with that it is gone. May refuses,
// with Store.mu held.
func (s *Store) detach(name string, may func(*entry) error) (gone string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return "", err
	}
	if err := may(e); err != nil {
		return "", err
	}
	if len(e.users) > 0 {
		v := e.view()
		return "", volume.InUse(&v)
	}
	e.mounting.Lock()
	defer e.mounting.Unlock()
	if needsMount(e.vol.Options) {
		if err := unmountAt(e.vol.Path); err != nil {
			return "", fmt.Errorf("remove %s: %w", name, err)
		}
	}
	if on, err := mounted(e.vol.Path); err != nil || on {
		return "", errors.Join(err, errdefs.ErrConflict.WithMessage(fmt.Sprintf("remove %s: %s is a mount point: unmount it first", name, e.vol.Path)))
	}
	dir := filepath.Dir(e.vol.Path)
	gone = filepath.Join(s.cfg.Dir, oldPrefix+rand.Text())
	if err := os.Rename(dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove %s: %w", name, err)
	}
	delete(s.byName, name)
	return gone, atomicfile.SyncDir(s.cfg.Dir)
}

// discard deletes what no name leads to any more; what cannot be deleted now is
// tried again by the next engine.
func (s *Store) discard(dir string) {
	if err := deleteTree(dir); err != nil {
		s.cfg.Logger.Warn("deleting a volume's files", "path", dir, "error", err)
	}
}

// tell publishes an event of a volume.
func (s *Store) tell(action apievents.Action, name string) {
	s.cfg.Events.Publish(events.Message{
		Type: apievents.VolumeEventType, Action: action,
		Actor: apievents.Actor{ID: name, Attributes: map[string]string{"driver": Driver}},
	})
}

// Mount sees to it that what the volume's options name is mounted as long as
// user has it. It blocks as long as the kernel takes. Kind: NotFound.
func (s *Store) Mount(_ context.Context, name, user string) (string, error) {
	s.mu.Lock()
	e, err := s.find(name)
	if err == nil {
		err = e.free()
	}
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	if !needsMount(e.vol.Options) {
		return e.vol.Path, nil
	}
	e.mounting.Lock()
	defer e.mounting.Unlock()
	// An engine before this one may have mounted it.
	on, err := mounted(e.vol.Path)
	if err != nil {
		return "", fmt.Errorf("volume %q: %w", name, err)
	}
	if !on {
		if err := mountAt(e.vol.Path, e.vol.Options); err != nil {
			return "", err
		}
	}
	e.mounts[user] = true
	return e.vol.Path, nil
}

// Unmount ends what Mount began for user. Idempotent.
func (s *Store) Unmount(name, user string) error {
	s.mu.Lock()
	e := s.byName[name]
	s.mu.Unlock()
	if e == nil || !needsMount(e.vol.Options) {
		return nil
	}
	e.mounting.Lock()
	defer e.mounting.Unlock()
	if delete(e.mounts, user); len(e.mounts) > 0 {
		return nil
	}
	return unmountAt(e.vol.Path)
}

// Settle unmounts what an engine before this one had mounted for containers
// that do not run any more. Called once those that run have what they need.
func (s *Store) Settle() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.byName))
	s.mu.Unlock()
	for _, e := range all {
		if err := s.Unmount(e.vol.Name, ""); err != nil {
			s.cfg.Logger.Warn("unmounting volume", "volume", e.vol.Name, "error", err)
		}
	}
}
