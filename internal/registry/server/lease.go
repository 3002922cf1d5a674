package server

import (
	"sync"
	"time"
)

// leases say what clients are busy with: digests, tags ("name:tag") and uploads
// ("upload:id"). A collection takes nothing that is held, nor what was held
// since it began, nor within its grace. One mutex orders both: who holds
// something before it is taken finds it kept, who comes later finds it gone.
type leases struct {
	now func() time.Time

	mu    sync.Mutex
	held  map[string]int       // by requests under way
	until map[string]time.Time // when last used
	sweep int                  // entries of until at which the old ones are forgotten
	keep  time.Duration        // how long they matter
}

const sweepLeases = 4096

func newLeases(keep time.Duration, now func() time.Time) *leases {
	return &leases{now: now, held: map[string]int{}, until: map[string]time.Time{}, sweep: sweepLeases, keep: keep}
}

// hold keeps collections off keys until release is called, and for their grace
// after that if they were used.
func (l *leases) hold(keys ...string) (release func(used bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		l.held[k]++
	}
	return func(used bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		now := l.now()
		for _, k := range keys {
			if l.held[k]--; l.held[k] <= 0 {
				delete(l.held, k)
			}
			if used {
				l.until[k] = now
			}
		}
		l.forget(now)
	}
}

// forget drops what no collection asks for any more, now and then. Callers hold mu.
func (l *leases) forget(now time.Time) {
	if len(l.until) < l.sweep {
		return
	}
	for k, t := range l.until {
		if now.Sub(t) > l.keep {
			delete(l.until, k)
		}
	}
	l.sweep = max(sweepLeases, 2*len(l.until))
}

// unlessHeld does something to key that nobody may be busy with, nor have been
// at or after cutoff. It reports whether it did.
func (l *leases) unlessHeld(key string, cutoff time.Time, do func() (bool, error)) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.until[key]; l.held[key] > 0 || ok && !t.Before(cutoff) {
		return false, nil
	}
	return do()
}

// last is when key was last used; the zero time when nobody knows.
func (l *leases) last(key string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until[key]
}
