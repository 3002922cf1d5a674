// Package ready keeps a few of a thing that takes long to make, made ahead of need
// while they are in demand.
package ready

import (
	"sync"
	"time"
)

// Spares are things made ahead. The first Take finds none: nothing is made before there is demand,
// and what nobody has taken for a while is ended. Safe for concurrent use.
type Spares[T any] struct {
	cfg Config[T]

	mu     sync.Mutex
	list   []T
	closed bool
	idle   bool // nobody has taken one for Rest
	making bool
	fill   *time.Timer // nil before the first Take
	rest   *time.Timer
	done   sync.WaitGroup // of what is being made
}

// Config says what is made, and when.
type Config[T any] struct {
	Make func() (T, error) // called by one goroutine at a time; after an error it is tried again after the next Take
	End  func(T)           // of what is not wanted any more

	Size  int           // how many lie ready
	Delay time.Duration // after the last Take until more are made: in a storm there is better to do
	Rest  time.Duration // after the last Take until they are ended
}

// New makes nothing yet.
func New[T any](cfg Config[T]) *Spares[T] { return &Spares[T]{cfg: cfg} }

// Take gives one that is ready; false: there is none. It never blocks for one to be made.
func (s *Spares[T]) Take() (one T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return one, false
	}
	s.idle = false
	if s.fill == nil {
		s.fill = time.AfterFunc(s.cfg.Delay, s.refill)
		s.rest = time.AfterFunc(s.cfg.Rest, func() { s.drop(false) })
	} else {
		s.fill.Reset(s.cfg.Delay)
		s.rest.Reset(s.cfg.Rest)
	}
	if len(s.list) == 0 {
		return one, false
	}
	one = s.list[0]
	s.list = append(s.list[:0:0], s.list[1:]...)
	return one, true
}

// Soon has what is missing made after d, earlier or later than Delay would have it: who took
// one knows better when there is nothing else to do. It does nothing before the first Take, nor Rest after
// the last, and a later Take counts again.
func (s *Spares[T]) Soon(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fill != nil && !s.closed && !s.idle {
		s.fill.Reset(d)
	}
}

// refill makes what is missing.
func (s *Spares[T]) refill() {
	s.mu.Lock()
	if s.making || s.closed || s.idle {
		s.mu.Unlock()
		return
	}
	s.making = true
	s.done.Add(1)
	defer s.done.Done()
	for !s.closed && !s.idle && len(s.list) < s.cfg.Size {
		s.mu.Unlock()
		one, err := s.cfg.Make()
		s.mu.Lock()
		if err != nil {
			break
		}
		s.list = append(s.list, one)
	}
	s.making = false
	var late []T // made while all was ended
	if s.closed || s.idle {
		late, s.list = s.list, nil
	}
	s.mu.Unlock()
	for _, one := range late {
		s.cfg.End(one)
	}
}

// drop ends what lies ready; last: there will be none again.
func (s *Spares[T]) drop(last bool) {
	s.mu.Lock()
	list := s.list
	s.list = nil
	s.closed, s.idle = s.closed || last, true
	s.mu.Unlock()
	for _, one := range list {
		s.cfg.End(one)
	}
}

// Close ends what lies ready and waits for what is being made, which is ended too.
// Take finds none from now on. Idempotent.
func (s *Spares[T]) Close() {
	s.mu.Lock()
	if s.fill != nil {
		s.fill.Stop()
		s.rest.Stop()
	}
	s.mu.Unlock()
	s.drop(true)
	s.done.Wait()
}
