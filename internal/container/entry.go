package container

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/runtime"
)

// entry is a container in memory. Two locks, always taken in this order:
// op serialises what clients and loops do to the container (start, stop,
// remove, …) and may be held for seconds; mu guards the fields and is never
// held across anything that blocks on the kernel or another process.
type entry struct {
	id      ID
	created time.Time

	op         *opLock
	committing *opLock // held by a commit, which lets go of op while it reads what runs; taken before op

	mu        sync.Mutex
	rec       Record
	run       *run // the present or last run; nil before the first
	waiters   []*waiter
	early     []*earlyAttach // clients that attached before the start
	execs     map[string]*exec
	followers map[*follower]struct{} // of the log
	sockets   []*os.File             // of ports that were published while it ran
	probing   context.CancelFunc     // ends the health check of this run
	restart   restartState
	removed   bool
	killTold  bool                    // a removal has published that it kills this run
	unsaved   bool                    // the record on the disk is not what it is here: it could not be written
	adopted   bool                    // the run was taken up from an earlier engine
	stopping  bool                    // a client's stop or kill is under way: the exit is intended
	signalled time.Time               // a signal was sent that may mean a stop (see meaningOf); zero: none
	stops     []chan struct{}         // those under way; each is closed at its end
	restarts  int                     // clients' restarts that are under way: --rm does not act
	healing   *run                    // that is ended because it is unhealthy
	changed   chan struct{}           // closed at the next change of state or health; nil: nobody waits
	abort     context.CancelCauseFunc // ends the start that is under way; nil: none is
	uncommit  context.CancelCauseFunc // ends the commit that is under way; nil: none is
}

// run is one start of a container, until the kernel holds nothing of it.
type run struct {
	generation uint64
	task       runtime.Task
	started    time.Time
	ended      chan struct{} // closed when the exit is recorded
	reaped     chan struct{} // closed when mounts, network and cgroup are gone
	root       bareRoot
	leaving    bool       // it is being ended: what is new goes elsewhere; under the entry's mu
	sending    []*sending // under the entry's mu
}

func newEntry(rec Record) *entry {
	return &entry{id: rec.ID, created: rec.Created, rec: rec, op: newOpLock(), committing: newOpLock(), execs: map[string]*exec{}, followers: map[*follower]struct{}{}}
}

// view is a copy of the record for readers. What Config, HostConfig and the
// other pointers lead to is never changed in place.
func (e *entry) view() View {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := View{Record: e.rec}
	if v.State.Health != nil {
		h := *v.State.Health
		v.State.Health = &h
	}
	for id, x := range e.execs {
		select {
		case <-x.done: // no longer part of the container
		default:
			v.ExecIDs = append(v.ExecIDs, id)
		}
	}
	return v
}

// state is a copy of the present state.
func (e *entry) state() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec.State
}

// live returns the task of a running container, nil otherwise.
func (e *entry) live() runtime.Task {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.run == nil || !e.rec.State.Running() {
		return nil
	}
	return e.run.task
}

// gone tells whether the container has been removed.
func (e *entry) gone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.removed
}

// doom notes that a client wants the end of the container for good, ends a start
// that is under way, and returns the run to kill; nil: it does not run.
func (e *entry) doom() *run {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.abort != nil {
		e.abort(errAborted)
	}
	if e.run == nil || e.run.task == nil || !e.rec.State.Running() {
		return nil
	}
	e.stopping, e.rec.ManuallyStopped = true, true
	return e.run
}

// holdRemoval adds n restarts to those under way.
func (e *entry) holdRemoval(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.restarts += n
	e.tellChange()
}

// allow asks whether an operation may be done.
func (e *entry) allow(ctx context.Context, before func(context.Context, *Record) error) error {
	v := e.view()
	return before(ctx, &v.Record)
}

// beginStop notes that a stop is under way, and gives what notes its end.
func (e *entry) beginStop() (over func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	done := make(chan struct{})
	e.stops = append(e.stops, done)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.stops = slices.DeleteFunc(e.stops, func(o chan struct{}) bool { return o == done })
		close(done)
	}
}

// stopUnderWay is closed when a stop that is under way has ended; nil: there is none.
func (e *entry) stopUnderWay() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.stops) == 0 {
		return nil
	}
	return e.stops[0]
}

// setAbort says what ends the start that is under way.
func (e *entry) setAbort(abort context.CancelCauseFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.abort = abort
}

// paused tells whether r is the present run, and frozen.
func (e *entry) paused(r *run) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.run == r && e.rec.State.Status == Paused
}

// waiter is a client that waits for a condition.
type waiter struct {
	removed bool // wait for removal; otherwise for the next exit
	ch      chan WaitResult
}

// wait adds a waiter until it is woken or ctx ends. Called with mu held.
func (e *entry) wait(ctx context.Context, w *waiter) {
	e.waiters = append(e.waiters, w)
	context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.waiters = slices.DeleteFunc(e.waiters, func(o *waiter) bool { return o == w })
	})
}

// notify wakes the waiters of an exit, or of a removal. Called with mu held.
func (e *entry) notify(removed bool, r WaitResult) {
	keep := e.waiters[:0]
	for _, w := range e.waiters {
		if w.removed && !removed {
			keep = append(keep, w)
			continue
		}
		w.ch <- r // buffered: one result a waiter
	}
	e.waiters = keep
}
