package container

import (
	"context"
	"sync"
)

// opLock is a mutex whose waiting a context can end, and whose holder can find
// out that somebody waits.
type opLock struct {
	held chan struct{}

	mu      sync.Mutex
	waiting int
	wanted  chan struct{} // closed while somebody waits
	forced  int
	urgent  chan struct{} // closed while somebody waits who does not care for the holder
}

func newOpLock() *opLock {
	return &opLock{held: make(chan struct{}, 1), wanted: make(chan struct{}), urgent: make(chan struct{})}
}

func (l *opLock) lock(ctx context.Context) error {
	select {
	case l.held <- struct{}{}:
		return nil
	default:
	}
	defer l.raise(&l.waiting, &l.wanted)()
	select {
	case l.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// force is lock for who wants the end of what the holder works on.
func (l *opLock) force(ctx context.Context) error {
	defer l.raise(&l.forced, &l.urgent)()
	return l.lock(ctx)
}

func (l *opLock) unlock() { <-l.held }

// raise shows a signal until what it gives is called.
func (l *opLock) raise(count *int, signal *chan struct{}) (lower func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if *count++; *count == 1 {
		close(*signal)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if *count--; *count == 0 {
			*signal = make(chan struct{})
		}
	}
}

// signals give channels that are closed when somebody waits for the lock, and
// when that is somebody who does not care for the holder.
func (l *opLock) signals() (wanted, urgent <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wanted, l.urgent
}
