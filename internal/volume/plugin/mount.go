package plugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/volume"
)

// lost stands in front of the id of a mount that the plugin could not be told the
// end of. It is told when it can be reached again.
const lost = "lost/"

// takeMounts reads what an engine before this one had mounted.
func (s *Store) takeMounts(file string, b []byte) error {
	m, err := parseMounts(file, b)
	if err != nil {
		s.cfg.Logger.Error("record of mounts cannot be read: it is left alone", "file", file, "error", err)
		return nil
	}
	e := s.byName[m.Name]
	if e == nil {
		if e, err = s.keep(record{Name: m.Name, Driver: m.Driver}, ""); err != nil {
			return err
		}
	}
	for user, one := range m.Users {
		e.mounts[user] = one
		e.stale[user] = true
	}
	e.path = e.mountedAt()
	return nil
}

// mountedAt is a place where the volume is mounted; op is held, or nobody else knows e.
func (e *entry) mountedAt() string {
	for _, user := range slices.Sorted(maps.Keys(e.mounts)) {
		if one := e.mounts[user]; one.Path != "" && !strings.HasPrefix(user, lost) {
			return one.Path
		}
	}
	return ""
}

// save writes what is mounted; op is held.
func (s *Store) save(e *entry) error {
	s.mu.Lock()
	e.path = e.mountedAt()
	gone := e.gone
	s.mu.Unlock()
	if len(e.mounts) == 0 || gone {
		return erase(s.cfg.RunDir, e.rec.Name)
	}
	return write(s.cfg.RunDir, e.rec.Name, mounts{format, e.rec.Name, e.rec.Driver, e.mounts}, false)
}

// Mount has the plugin mount a volume for user, once, and gives the place. It blocks
// as long as the plugin takes, two minutes at most. Kind: NotFound.
func (s *Store) Mount(ctx context.Context, name, user string) (string, error) {
	ctx, end := s.bound(ctx)
	defer end()
	e := s.entry(name)
	if e == nil {
		return "", volume.ErrNone(name)
	}
	if err := e.lock(ctx); err != nil {
		return "", err
	}
	defer e.unlock()
	delete(e.stale, user)
	one, asked := e.mounts[user]
	if one.Path != "" {
		return one.Path, nil // also when another engine asked for it
	}
	path, err := s.mountLocked(ctx, e, user, one.ID)
	if err != nil && !asked {
		// The plugin may have done it all the same.
		if one, ok := e.mounts[user]; ok && errors.Is(err, plugin.ErrUnreachable) {
			e.mounts[lost+one.ID] = one
		}
		delete(e.mounts, user)
		err = errors.Join(err, s.save(e))
	}
	if err != nil {
		return "", fmt.Errorf("error while mounting volume '%s': %w", e.path, err)
	}
	return path, nil
}

// mountLocked asks the plugin, under an id that is on disk before.
func (s *Store) mountLocked(ctx context.Context, e *entry, user, id string) (string, error) {
	d, err := s.driver(ctx, e.rec.Driver)
	if err != nil {
		return "", err
	}
	for _, other := range slices.Sorted(maps.Keys(e.mounts)) {
		if strings.HasPrefix(other, lost) {
			s.unmountLocked(ctx, e, other)
		}
	}
	if id == "" {
		var raw [32]byte
		rand.Read(raw[:])
		id = hex.EncodeToString(raw[:])
		e.mounts[user] = mounted{ID: id}
		if err := s.save(e); err != nil {
			return "", err
		}
	}
	path, err := d.mount(ctx, e.rec.Name, id)
	if err != nil {
		return "", err
	}
	if path == "" {
		err := errors.New("the plugin does not say where it has mounted it")
		return "", errors.Join(err, d.unmount(ctx, e.rec.Name, id, false))
	}
	e.mounts[user] = mounted{ID: id, Path: path}
	return path, s.save(e)
}

// Unmount tells the plugin that user does not have the volume any more. When it
// cannot be told, it is told later. Idempotent.
func (s *Store) Unmount(name, user string) error {
	e := s.entry(name)
	if e == nil {
		return nil
	}
	if err := e.lock(s.ctx); err != nil {
		return err
	}
	defer e.unlock()
	delete(e.stale, user)
	return s.unmountLocked(s.ctx, e, user)
}

func (s *Store) unmountLocked(ctx context.Context, e *entry, user string) error {
	one, ok := e.mounts[user]
	if !ok {
		return nil
	}
	d, err := s.driver(ctx, e.rec.Driver)
	if err == nil {
		err = d.unmount(ctx, e.rec.Name, one.ID, strings.HasPrefix(user, lost))
	}
	if s.ctx.Err() != nil {
		return err // the next engine knows what is left to do
	}
	delete(e.mounts, user)
	delete(e.stale, user)
	switch {
	case isRemote(err): // it has been told, and that is all there is to do
		s.cfg.Logger.Warn("a plugin cannot unmount a volume", "volume", e.rec.Name, "driver", e.rec.Driver, "error", err)
	case err != nil:
		e.mounts[lost+one.ID] = one
		s.cfg.Logger.Warn("a plugin could not be told that a volume is not used any more: it is told later", "volume", e.rec.Name, "driver", e.rec.Driver, "error", err)
	}
	return s.save(e)
}

// Settle tells plugins the end of what an engine before this one had mounted for
// users that have not asked since. It does not block.
func (s *Store) Settle() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.byName))
	s.mu.Unlock()
	for _, e := range all {
		s.loops.Go(func() {
			if e.lock(s.ctx) != nil {
				return
			}
			defer e.unlock()
			for _, user := range slices.Sorted(maps.Keys(e.stale)) {
				if err := s.unmountLocked(s.ctx, e, user); err != nil {
					s.cfg.Logger.Warn("unmounting a plugin's volume", "volume", e.rec.Name, "error", err)
				}
			}
		})
	}
}
