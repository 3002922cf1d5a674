package store

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

// Watch tells of commits, one after the other. One goroutine uses it.
type Watch struct {
	s     *State
	after uint64
	kinds []cluster.Kind
}

// Watch tells of every commit after a revision; see Store.
func (s *State) Watch(after uint64, kinds ...cluster.Kind) (*Watch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reaches(after); err != nil {
		return nil, err
	}
	return &Watch{s, after, kinds}, nil
}

// reaches tells whether what came after a revision is known. Called with mu held.
func (s *State) reaches(after uint64) error {
	if after < s.dropped || after > s.revision {
		return fmt.Errorf("revision %d: commits are kept from %d to %d: %w", after, s.dropped, s.revision, errdefs.ErrOutOfRange)
	}
	return nil
}

// Next blocks until there are commits that concern the watch and gives them in
// order. Kinds: OutOfRange when the reader was so slow that some are lost,
// Unavailable when the store is closed; else that of ctx.
func (w *Watch) Next(ctx context.Context) ([]Commit, error) {
	for {
		list, more, err := w.take()
		if err != nil || len(list) > 0 {
			return list, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// take gives what has come, or what is closed when more does.
func (w *Watch) take() ([]Commit, <-chan struct{}, error) {
	s := w.s
	s.mu.Lock()
	if err := s.reaches(w.after); err != nil {
		s.mu.Unlock()
		return nil, nil, err
	}
	news := s.log[sort.Search(len(s.log), func(i int) bool { return s.log[i].Revision > w.after }):]
	w.after = s.revision
	more, closed := s.more, s.closed
	s.mu.Unlock()
	var out []Commit
	for _, c := range news {
		if c = w.concerns(c); len(c.Events) > 0 {
			out = append(out, c)
		}
	}
	if closed && len(out) == 0 {
		return nil, nil, fmt.Errorf("store is closed: %w", errdefs.ErrUnavailable)
	}
	return out, more, nil
}

// concerns leaves of a commit what the watch is for.
func (w *Watch) concerns(c Commit) Commit {
	if len(w.kinds) > 0 {
		c.Events = slices.DeleteFunc(slices.Clone(c.Events), func(e Event) bool { return !slices.Contains(w.kinds, e.Kind()) })
	}
	return c
}
