package daemon

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/sys/resident"
)

const (
	restFirst = 2 * time.Second  // after the start, whatever is asked meanwhile
	restQuiet = 10 * time.Second // without a request: then the engine rests

	// garbage is what may lie about, in bytes and beside as much as is in use, until it is collected, or the engine rests: a start
	// of a container leaves some 0.3 MB, and a collection for every few of them would cost 1 ms each.
	garbage = 8 << 20
)

// rest gives back, whenever nobody asks the engine anything, the memory that it took to
// start, or to do what it was asked. A resting engine is woken by requests alone.
type rest struct {
	requests atomic.Uint64 // begun and ended
	woken    chan struct{}
	release  func() (int64, error)
	ballast  *byte
	log      *slog.Logger
}

func newRest(log *slog.Logger) *rest {
	return &rest{woken: make(chan struct{}, 1), release: resident.Release, ballast: resident.Ballast(garbage), log: log}
}

// touch tells that a request begins or ends. It does not block.
func (r *rest) touch() {
	r.requests.Add(1)
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

// run rests the engine until ctx ends.
func (r *rest) run(ctx context.Context) {
	timer := time.NewTimer(restFirst)
	defer timer.Stop()
	if !await(ctx, timer.C) {
		return
	}
	for {
		n, err := r.release()
		r.log.Debug("at rest", "unmapped", n, "error", err)
		if !await(ctx, r.woken) {
			return
		}
		for seen := uint64(0); seen != r.requests.Load(); {
			select {
			case <-r.woken: // by one that is counted below
			default:
			}
			seen = r.requests.Load()
			timer.Reset(restQuiet)
			if !await(ctx, timer.C) {
				return
			}
		}
	}
}

// await blocks until something comes or ctx has ended, which is false.
func await[T any](ctx context.Context, c <-chan T) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c:
		return true
	}
}
