package image

import (
	"context"
	"slices"

	"github.com/containerd/errdefs"
)

// Prune removes images that no container uses: those without a tag, or with
// o.All every one. It returns when the disk has its space back.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	users := usersOf(o.Users)
	s.write.Lock()
	defer s.write.Unlock()
	rm := &removal{s: s, c: newChange(s), users: users}
	s.mu.RLock()
	var list []*record
	for _, id := range s.sorted {
		list = append(list, s.byID[id])
	}
	s.mu.RUnlock()
	slices.SortStableFunc(list, func(a, b *record) int { return created(b.image).Compare(created(a.image)) })
	for _, r := range list {
		if len(r.Tags) > 0 && !o.All || o.Match != nil && !o.Match(r.image) || len(users(r.ID.String())) > 0 {
			continue
		}
		rm.delete(r)
	}
	if len(rm.c.drops) == 0 {
		return Pruned{}, nil
	}
	if err := rm.c.commit(ctx, nil); err != nil {
		return Pruned{}, err
	}
	if err := s.gc.run(ctx); err != nil && !errdefs.IsCanceled(err) {
		return Pruned{Deleted: rm.out}, err
	}
	return Pruned{Deleted: rm.out, Bytes: rm.bytes}, nil
}
