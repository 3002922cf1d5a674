package peer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
)

// Place is a node that has an image, and where it listens.
type Place struct {
	Node, Addr string
	ID         digest.Digest // of the image there; of one wanted by an index each may have its own
}

// Found is an image and who has it.
type Found struct {
	image.Held
	Places []Place
}

// Known are the other nodes that a node knows.
type Known struct {
	Managers []string // ids
	Workers  []string // ids; of a manager all that are up, of a worker none
	All      bool     // these are all there are: a manager knows
}

// MaxPlaces is how many nodes are named that have an image: enough to fetch it from.
const MaxPlaces = 8

// Bounds of a search.
const (
	searchWait  = 20 * time.Second // for a manager's answer
	searchWidth = 32               // nodes that are asked at once
	foundKeeps  = 5 * time.Second  // an answer serves who asks the same meanwhile
	missKeeps   = time.Second
	maxKept     = 256
)

// Finder looks for images on other nodes. Its methods may be called from several
// goroutines.
type Finder struct {
	d     *Dialer
	known func() Known

	once singleflight.Group
	mu   sync.Mutex
	kept map[image.Wanted]answer
}

type answer struct {
	found Found
	err   error
	until time.Time
}

// NewFinder makes a Finder; known tells which other nodes there are now.
func NewFinder(d *Dialer, known func() Known) *Finder {
	return &Finder{d: d, known: known, kept: map[image.Wanted]answer{}}
}

// Find tells which other nodes have an image. By its id or digest it is whosever; by a name
// it is the managers', and only when none of them has it the workers', if they agree. It
// blocks. Kinds: NotFound; Conflict when a name means several images; Unavailable when
// nobody could be asked.
func (f *Finder) Find(ctx context.Context, w image.Wanted) (Found, error) {
	if err := w.Check(); err != nil {
		return Found{}, err
	}
	f.mu.Lock()
	a, ok := f.kept[w]
	f.mu.Unlock()
	if ok && time.Now().Before(a.until) {
		return a.found, a.err
	}
	key := fmt.Sprintf("%q %q %q %q", w.ID, w.Digest, w.Name, w.Platform)
	done := f.once.DoChan(key, func() (any, error) {
		// detached: others may wait for it when this one has gone
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), searchWait)
		defer cancel()
		found, err := f.search(ctx, w)
		f.keep(w, found, err)
		return found, err
	})
	select {
	case got := <-done:
		found, _ := got.Val.(Found)
		found.Places = slices.Clone(found.Places)
		return found, got.Err
	case <-ctx.Done():
		return Found{}, context.Cause(ctx)
	}
}

// keep remembers an answer for a moment.
func (f *Finder) keep(w image.Wanted, found Found, err error) {
	a := answer{found, err, time.Now().Add(foundKeeps)}
	if err != nil {
		a.until = time.Now().Add(missKeeps)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kept) >= maxKept {
		clear(f.kept)
	}
	f.kept[w] = a
}

func (f *Finder) search(ctx context.Context, w image.Wanted) (Found, error) {
	k := f.known()
	if !k.All {
		return f.askManagers(ctx, k.Managers, w)
	}
	found, err := f.ask(ctx, k.Managers, w)
	if err == nil || errdefs.IsConflict(err) || len(k.Workers) == 0 {
		return found, err
	}
	return f.ask(ctx, k.Workers, w)
}

// askManagers has one of the managers search.
func (f *Finder) askManagers(ctx context.Context, managers []string, w image.Wanted) (Found, error) {
	err := fmt.Errorf("no manager is known: %w", errdefs.ErrUnavailable)
	for _, m := range managers {
		var found Found
		found, err = f.d.Holders(ctx, m, w)
		if err == nil || errdefs.IsNotFound(err) || errdefs.IsConflict(err) || ctx.Err() != nil {
			return found, err
		}
	}
	return Found{}, err
}

// ask asks nodes side by side, until enough have the image.
func (f *Finder) ask(ctx context.Context, nodes []string, w image.Wanted) (Found, error) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var mu sync.Mutex
	var list []Found
	var worst error
	turn := make(chan struct{}, searchWidth)
	var asking sync.WaitGroup
	for _, node := range nodes {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		asking.Go(func() {
			defer func() { <-turn }()
			h, err := f.d.Has(ctx, node, w)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil:
				worst = err
			case err == nil:
				addr, _ := f.d.where(node)
				list = append(list, Found{h, []Place{{node, addr, h.ID}}})
				if w.Name == "" && len(list) >= MaxPlaces {
					enough()
				}
			}
		})
	}
	asking.Wait()
	return agree(w, list, worst)
}

// agree makes one answer of those of several nodes.
func agree(w image.Wanted, list []Found, worst error) (Found, error) {
	if len(list) == 0 {
		if worst != nil {
			return Found{}, fmt.Errorf("image %s%s%s: %w: %w", w.ID, w.Digest, w.Name, worst, errdefs.ErrUnavailable)
		}
		return Found{}, fmt.Errorf("image %s%s%s: no node has it: %w", w.ID, w.Digest, w.Name, errdefs.ErrNotFound)
	}
	out := list[0]
	for _, f := range list[1:] {
		if w.Name != "" && f.ID != out.ID {
			return Found{}, fmt.Errorf("image %s: it is %s on node %s, and %s on node %s: %w", w.Name, out.ID, out.Places[0].Node, f.ID, f.Places[0].Node, errdefs.ErrConflict)
		}
		if len(out.Places) < MaxPlaces {
			out.Places = append(out.Places, f.Places...)
		}
	}
	return out, nil
}
