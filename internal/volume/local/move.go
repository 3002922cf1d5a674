package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"
)

// movingFile, beside the record, says that a volume is on its way; see docs/formats.md.
const movingFile = "moving.json"

// movingNote is its content.
type movingNote struct {
	Version int // 1
	volume.Moving
}

// parse reads a note.
func (n *movingNote) parse(b []byte) error {
	if err := json.Unmarshal(b, n); err != nil {
		return err
	}
	if n.Version > format {
		return fmt.Errorf("format %d is a later one: %w", n.Version, errdefs.ErrFailedPrecondition)
	}
	if n.Version < 1 || n.ID == "" {
		return fmt.Errorf("it is of no move: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// readMoving is read for a volume that may be on its way. What says so and cannot be read
// still means that nobody gets it: it may be in use on another node.
func (s *Store) readMoving(name string) (volume.Volume, error) {
	v, err := s.read(name)
	if err != nil {
		return v, err
	}
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, name, movingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	var n movingNote
	if err == nil {
		err = n.parse(b)
	}
	if err != nil {
		s.cfg.Logger.Error("that a volume is on its way to or from another node cannot be read: nobody gets it", "volume", name, "error", err)
	}
	v.Moving = &n.Moving
	return v, nil
}

// free refuses a volume that is on its way; Store.mu is held. Kind: Conflict.
func (e *entry) free() error {
	switch m := e.moves; {
	case m == nil:
		return nil
	case m.In:
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("volume %s is being moved here from node %s", e.vol.Name, m.Peer))
	default:
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("volume %s is being moved to node %s", e.vol.Name, m.Peer))
	}
}

// Hold keeps a volume for a move that takes it to another node: no container gets it any more,
// and nobody removes it. Who has it mounted already has it still. It is durable when it returns,
// and idempotent for one move. Kinds: NotFound; Conflict when another move has it;
// NotImplemented when its content is not in its directory.
func (s *Store) Hold(name string, m volume.Moving) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return err
	}
	if e.moves != nil {
		if *e.moves == m {
			return nil
		}
		return e.free()
	}
	if needsMount(e.vol.Options) {
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("volume %s has its content elsewhere: its driver mounts %s of type %q", name, e.vol.Options["device"], e.vol.Options["type"]))
	}
	if err := writeMoving(filepath.Dir(e.vol.Path), m); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	e.moves = &m
	return nil
}

func writeMoving(dir string, m volume.Moving) error {
	b, err := json.Marshal(movingNote{format, m})
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, movingFile), b, 0o600, atomicfile.Options{Sync: true})
}

// Free lets containers have a volume that a move has kept from them; id "" is any move. A volume
// that is not there, or that this move does not have, is left alone: it was freed before.
func (s *Store) Free(name, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil || e.moves == nil || id != "" && e.moves.ID != id {
		return nil
	}
	dir := filepath.Dir(e.vol.Path)
	if err := os.Remove(filepath.Join(dir, movingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	e.moves = nil
	return atomicfile.SyncDir(dir)
}

// FreeAll frees all volumes, on a host that is in no cluster any more.
func (s *Store) FreeAll() error {
	list, _ := s.List(context.Background()) // detached: it works in memory
	var err error
	for i := range list {
		if list[i].Moving != nil {
			err = errors.Join(err, s.Free(list[i].Name, ""))
		}
	}
	return err
}

// Drop removes a volume that a move has: its content is elsewhere, or was not taken. One that is
// not there, or that this move does not have, is left alone. Kind: Conflict while somebody holds it.
func (s *Store) Drop(name, id string) error {
	gone, err := s.detach(name, func(e *entry) error {
		if e.moves == nil || e.moves.ID != id {
			return errdefs.ErrNotFound
		}
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s.tell(apievents.ActionDestroy, name)
	s.discard(gone)
	return nil
}

// arrival is a volume that is on its way here.
type arrival struct {
	root *os.File // its tree
	s    *Store
	v    volume.Volume
	tmp  string
}

// Arrive begins a volume that comes from another node, as r and created say. AlreadyExists when
// there is one of the name. InvalidArgument.
func (s *Store) Arrive(r volume.Request, created time.Time, m volume.Moving) (volume.Arrival, error) {
	if err := errors.Join(checkName(r.Name), checkOptions(r.Options)); err != nil {
		return nil, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	if s.Has(r.Name) {
		return nil, alreadyHere(r.Name)
	}
	if err := os.MkdirAll(s.cfg.Dir, 0o701); err != nil {
		return nil, err
	}
	a := &arrival{s: s, v: volume.Volume{
		Name: r.Name, Driver: Driver, Path: filepath.Join(s.cfg.Dir, r.Name, dataDir), Scope: "local", Labels: r.Labels, Options: r.Options, CreatedAt: created, Moving: &m,
	}}
	var err error
	if a.tmp, err = s.make(a.v); err != nil {
		return nil, err
	}
	a.root, err = os.Open(filepath.Join(a.tmp, dataDir))
	if err == nil {
		err = writeMoving(a.tmp, m)
	}
	if err != nil {
		return nil, errors.Join(err, a.Abort())
	}
	return a, nil
}

func alreadyHere(name string) error {
	return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("there is a volume %s here already", name))
}

// Root implements volume.Arrival.
func (a *arrival) Root() *os.File { return a.root }

// Abort implements volume.Arrival.
func (a *arrival) Abort() error {
	if a.root != nil {
		a.root.Close()
		a.root = nil
	}
	if a.tmp == "" {
		return nil
	}
	tmp := a.tmp
	a.tmp = ""
	return deleteTree(tmp)
}

// Keep implements volume.Arrival.
func (a *arrival) Keep() error {
	if err := unix.Syncfs(int(a.root.Fd())); err != nil {
		return err
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.s.byName[a.v.Name] != nil {
		return alreadyHere(a.v.Name)
	}
	if err := a.s.place(a.tmp, a.v.Name); err != nil {
		return err
	}
	a.tmp = ""
	a.root.Close()
	a.root = nil
	a.s.byName[a.v.Name] = newEntry(a.v)
	a.s.tell(apievents.ActionCreate, a.v.Name)
	return nil
}
