// Package mem is the store that keeps objects in memory only: for tests and
// simulations, and to look at what was saved.
package mem

import (
	"context"
	"fmt"
	"sync"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Store is a store in memory.
type Store struct {
	state *store.State

	mu     sync.Mutex // who writes
	closed bool
}

var _ store.Store = (*Store)(nil)

// New makes a Store of a State, which is its own from then on.
func New(s *store.State) *Store { return &Store{state: s} }

// View implements store.Store.
func (s *Store) View() store.View { return s.state.View() }

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, fmt.Errorf("store is closed: %w", errdefs.ErrUnavailable)
	}
	g := s.state.Stage()
	at, err := g.Add(changes)
	if err != nil {
		g.Abort()
		return 0, err
	}
	g.Apply()
	return at, nil
}

// Watch implements store.Store.
func (s *Store) Watch(after uint64, kinds ...cluster.Kind) (*store.Watch, error) {
	return s.state.Watch(after, kinds...)
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.state.Close()
	return nil
}
