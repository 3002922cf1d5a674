package ship

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Log is the log of one container and where it goes.
type Log struct {
	ID       string
	Driver   string
	Path     string // of the json-file
	MaxFiles int
	State    string // file that keeps how far was sent
	Info     Info
}

// Set has the shippers of an engine. Its methods may be called at once from
// several goroutines.
type Set struct {
	kinds Kinds
	log   *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	loops  sync.WaitGroup

	mu   sync.Mutex
	byID map[string]*shipper
}

// New makes a set without shippers.
func New(log *slog.Logger, kinds Kinds) *Set {
	ctx, cancel := context.WithCancel(context.Background()) // detached: lives from New to Close
	return &Set{kinds: kinds, log: log, ctx: ctx, cancel: cancel, byID: map[string]*shipper{}}
}

// Check refuses what no driver takes; see Kinds.Check.
func (s *Set) Check(driver string, opts map[string]string) error { return s.kinds.Check(driver, opts) }

// Begin sends a log on, from where it was left, until ended is closed and all was
// sent. A log whose driver keeps it here needs nothing. Called again for the next
// run of the container. It does not wait for the server. An error: the driver
// cannot be made of its options.
func (s *Set) Begin(l Log, ended <-chan struct{}) error {
	kind, ok := s.kinds.find(l.Driver)
	if !ok || kind.New == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return fmt.Errorf("log of container %s: %w", short(l.ID), s.ctx.Err())
	}
	if sh := s.byID[l.ID]; sh != nil && sh.again(ended) {
		return nil
	}
	driver, policy, err := kind.New(l.Info)
	if err != nil {
		return err
	}
	sh := &shipper{log: s.log.With("container", short(l.ID), "driver", l.Driver), l: l, driver: driver, policy: policy}
	if err := sh.open(s.ctx, ended); err != nil {
		_ = driver.Close() // it was not used
		return err
	}
	s.byID[l.ID] = sh
	s.loops.Go(func() {
		sh.run()
		s.forget(l.ID, sh)
	})
	return nil
}

// forget drops a shipper that has ended.
func (s *Set) forget(id string, sh *shipper) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[id] == sh {
		delete(s.byID, id)
	}
}

// Drop is called before the files of a removed container go: what is unsent is
// held open and sent for at most DrainTime. It does not wait for that.
func (s *Set) Drop(id string) {
	s.mu.Lock()
	sh := s.byID[id]
	delete(s.byID, id)
	s.mu.Unlock()
	if sh == nil {
		return
	}
	sh.hold()
	time.AfterFunc(DrainTime, sh.cancel)
}

// Close ends all shippers; what is unsent stays for the next engine. Blocks until
// they have ended.
func (s *Set) Close() error {
	s.cancel()
	s.loops.Wait()
	return nil
}
