// Package local keeps volumes as directories under the data root:
// volumes/<name>/_data beside a small record of the volume.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

const recordFile = "volume.json"

// Store is the local volume driver. Safe for concurrent use.
type Store struct {
	dir string

	mu    sync.Mutex
	users map[string]map[string]bool // by volume name: the containers that hold it
}

// New makes a store in dir, which is made when the first volume is.
func New(dir string) *Store {
	return &Store{dir: dir, users: map[string]map[string]bool{}}
}

// Acquire gives the path of a volume's data and notes that user holds it; a
// volume that is not there is made.
func (s *Store) Acquire(_ context.Context, name, user string, labels map[string]string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := filepath.Join(s.dir, name, "_data")
	if _, err := os.Stat(data); errors.Is(err, os.ErrNotExist) {
		if err := s.create(name, labels); err != nil {
			return "", fmt.Errorf("volume %q: %w", name, err)
		}
	} else if err != nil {
		return "", fmt.Errorf("volume %q: %w", name, err)
	}
	if s.users[name] == nil {
		s.users[name] = map[string]bool{}
	}
	s.users[name][user] = true
	return data, nil
}

// create writes the record first: a directory without data is collected or
// completed by whoever asks next.
func (s *Store) create(name string, labels map[string]string) error {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o701); err != nil {
		return err
	}
	v := volume.Volume{Name: name, Driver: "local", Path: filepath.Join(dir, "_data"), Labels: labels, CreatedAt: time.Now().UTC()}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, recordFile), b, 0o600, atomicfile.Options{Sync: true}); err != nil {
		return err
	}
	return os.Mkdir(v.Path, 0o755)
}

// Release notes that user no longer holds the volume.
func (s *Store) Release(name, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.users[name], user)
	if len(s.users[name]) == 0 {
		delete(s.users, name)
	}
}

// Remove deletes a volume and its data; Conflict while a container holds it.
// A volume that is not there is no error.
func (s *Store) Remove(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.users[name]); n > 0 {
		return fmt.Errorf("volume %q is in use by %d containers: %w", name, n, errdefs.ErrConflict)
	}
	return os.RemoveAll(filepath.Join(s.dir, name))
}
