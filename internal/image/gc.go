package image

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// collectDelay is how long removals are gathered before one collection: each
// stops writers of the metadata for some milliseconds.
const collectDelay = time.Second / 2

// collector removes what nothing refers to any more, in the background, and
// sees to it that unpacked layers reach the disk.
type collector struct {
	s      *Store
	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}
	sync   chan struct{} // wakes what brings layers to the disk

	running sync.Mutex // one collection at a time: containerd's locks ask for it

	mu   sync.Mutex
	full bool // look at what is on the disk too, not only at what was removed
}

func newCollector(s *Store) *collector {
	return &collector{s: s, wake: make(chan struct{}, 1), done: make(chan struct{}), sync: make(chan struct{}, 1)}
}

// start runs the collector until stop.
func (g *collector) start(ctx context.Context) {
	ctx, g.cancel = context.WithCancel(ctx)
	var loops sync.WaitGroup
	loops.Go(func() {
		for next(ctx, g.wake, collectDelay) {
			if err := g.run(ctx); err != nil && ctx.Err() == nil {
				g.s.log.Warn("collecting unused layers", "error", err)
			}
			ring(g.sync)
		}
	})
	// A busy disk may take seconds to settle: no collection waits for that.
	loops.Go(func() {
		for next(ctx, g.sync, 0) {
			if err := g.s.settle(ctx); err != nil && ctx.Err() == nil {
				g.s.log.Warn("writing layers to the disk", "error", err)
			}
		}
	})
	go func() { loops.Wait(); close(g.done) }()
}

// next waits until it is rung and delay has passed; false when ctx has ended.
func next(ctx context.Context, bell <-chan struct{}, delay time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-bell:
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}

// ring rings a bell that holds one ring.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// stop ends the collector and waits for it.
func (g *collector) stop() {
	if g.cancel != nil {
		g.cancel()
		<-g.done
	}
}

// kick asks for a collection soon. full: also of what no record knows of.
func (g *collector) kick(full bool) {
	g.mu.Lock()
	g.full = g.full || full
	g.mu.Unlock()
	ring(g.wake)
}

// run collects now, and returns when directories and blobs are gone.
func (g *collector) run(ctx context.Context) error {
	g.running.Lock()
	defer g.running.Unlock()
	g.mu.Lock()
	full := g.full
	g.full = false
	g.mu.Unlock()
	ctx = g.s.namespace(ctx)
	if full {
		g.bait(ctx)
	}
	g.s.commits.Lock()
	_, err := g.s.db.GarbageCollect(ctx)
	g.s.commits.Unlock()
	if c, ok := g.s.backend.(snapshots.Cleaner); ok && err == nil {
		err = c.Cleanup(ctx)
	}
	return err
}

// plain is a snapshotter without a Cleanup: deleting directories takes long,
// and the collector does it when nobody waits for it any more.
type plain struct{ snapshots.Snapshotter }

// bait lays out one unused blob and one unused snapshot. containerd compares
// its records with the disk only for a store from which something was removed;
// what a killed engine left on the disk without a record goes along with them.
func (g *collector) bait(ctx context.Context) {
	if _, err := g.s.snaps.Prepare(ctx, "bait", ""); err != nil {
		g.s.log.Debug("collecting snapshots", "error", err)
	}
	data := "unused"
	desc := ocispec.Descriptor{Digest: digest.FromString(data), Size: int64(len(data))}
	err := content.WriteBlob(ctx, g.s.content, baitRef, strings.NewReader(data), desc)
	if err == nil {
		return
	}
	g.s.log.Debug("collecting content", "error", err)
	// On a full disk half a blob would stay. The next collection lays out another.
	if err := g.s.content.Abort(ctx, baitRef); err != nil {
		g.s.log.Debug("collecting content", "error", err)
	}
	g.mu.Lock()
	g.full = true
	g.mu.Unlock()
}

// baitRef is the name under which the blob is written.
const baitRef = "bait"

// settle brings what images were unpacked to onto the disk, and then notes that
// it is there. Until then a power cut makes the next Open unpack them again.
func (s *Store) settle(ctx context.Context) error {
	var young []digest.Digest
	s.mu.RLock()
	for id, r := range s.byID {
		if r.Boot != "" {
			young = append(young, id)
		}
	}
	s.mu.RUnlock()
	if len(young) == 0 {
		return nil
	}
	dir, err := os.Open(s.cfg.Root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: s.cfg.Root, Err: err}
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	for _, id := range young {
		if c.current(id) != nil {
			c.edit(id).Boot = ""
		}
	}
	return c.commit(ctx, nil)
}

// Collect removes what nothing refers to, and returns when the disk has its
// space back.
func (s *Store) Collect(ctx context.Context) error { return s.gc.run(ctx) }

// dropWork ends what a killed engine was at.
func (s *Store) dropWork(ctx context.Context) error {
	list, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range list {
		if strings.HasPrefix(l.ID, workPrefix) {
			s.log.Info("dropping unfinished work", "lease", l.ID, "since", l.CreatedAt)
			if err := s.leases.Delete(ctx, leases.Lease{ID: l.ID}); err != nil {
				return err
			}
		}
	}
	return nil
}
