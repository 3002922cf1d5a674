package image

import (
	"context"
	"time"
)

// History tells how an image came to be, newest step first.
func (s *Store) History(_ context.Context, ref string) ([]HistoryItem, error) {
	r, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	steps := r.image.Config.History
	out := make([]HistoryItem, len(steps))
	next := 0 // layer of the next step that has one
	for i, h := range steps {
		item := HistoryItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = *h.Created
		}
		if !h.EmptyLayer {
			if next >= len(r.Layers) {
				return nil, invalidf("too many non-empty layers in History section")
			}
			item.Size = r.Layers[next].Size
			next++
		}
		out[len(steps)-1-i] = item
	}
	if len(out) > 0 {
		out[0].ID, out[0].Tags = r.image.ID, r.image.RepoTags
	}
	return out, nil
}

// created is when an image was made; the zero time when it does not say.
func created(i Image) time.Time {
	if i.Config.Created == nil {
		return time.Time{}
	}
	return *i.Config.Created
}
