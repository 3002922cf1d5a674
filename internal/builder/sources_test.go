package builder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
)

// place is an image in one place, that says what was asked of it.
type place struct {
	name          string
	key, snapshot error
	asked         *[]string
	source.SourceInstance
}

func (p *place) CacheKey(context.Context, solver.JobContext, int) (string, string, solver.CacheOpts, bool, error) {
	*p.asked = append(*p.asked, p.name+" key")
	return "key of " + p.name, "", nil, true, p.key
}

func (p *place) Snapshot(context.Context, solver.JobContext) (cache.ImmutableRef, error) {
	*p.asked = append(*p.asked, p.name+" snapshot")
	return nil, p.snapshot
}

// An image that is removed while a build wants it comes from the registry, and what
// else goes wrong is told as it is.
func TestImageRemovedAmidABuild(t *testing.T) {
	gone := fmt.Errorf("x: %w", errdefs.ErrNotFound)
	other := errors.New("disk")
	for name, c := range map[string]struct {
		key, snapshot error // of ours
		away          error // of finding the registry's
		asked         string
		wrong         error
	}{
		"stays":               {asked: "here key, here snapshot"},
		"gone before the key": {key: gone, asked: "here key, away key, away snapshot"},
		"gone after it":       {snapshot: gone, asked: "here key, here snapshot, away key, away snapshot"},
		"another trouble":     {key: other, asked: "here key", wrong: other},
		"and of the layers":   {snapshot: other, asked: "here key, here snapshot", wrong: other},
		"nowhere":             {key: gone, away: other, asked: "here key", wrong: gone},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			p := &passing{here: &place{name: "here", key: c.key, snapshot: c.snapshot, asked: &asked}}
			p.away = func() (source.SourceInstance, error) { return &place{name: "away", asked: &asked}, c.away }
			_, _, _, _, err := p.CacheKey(t.Context(), nil, 0)
			if err == nil {
				_, err = p.Snapshot(t.Context(), nil)
			}
			if got := strings.Join(asked, ", "); got != c.asked || !errors.Is(err, c.wrong) {
				t.Errorf("asked %s, %v; want %s, %v", got, err, c.asked, c.wrong)
			}
		})
	}
}
