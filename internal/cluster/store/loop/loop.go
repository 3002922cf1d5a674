// Package loop runs the loops of the orchestrator: each looks at a view of the store,
// for one thing at a time, and decides what to change. A decision rests on the view
// and the time alone, so loops are tested without a clock or a machine.
package loop

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Loop is one of the orchestrator's. Its methods do not block and change nothing.
type Loop interface {
	// Name is the loop's, for logs.
	Name() string

	// Kinds are those whose changes concern it.
	Kinds() []cluster.Kind

	// Keys are what has to be looked at after a change: ids, as Decide takes them.
	Keys(v store.View, e store.Event) []string

	// All is everything that could need a look.
	All(v store.View) []string

	// Decide looks at one thing. It is asked again after its changes are made, so
	// a decision may be one step of several.
	Decide(v store.View, key string, now time.Time) Decision
}

// Decision is what a loop wants done.
type Decision struct {
	// Changes are one commit. When there are too many for one, the first are made
	// and Decide is asked again.
	Changes []store.Change

	// Again is when to look at the thing again though nothing has changed; the zero
	// Time is never.
	Again time.Time
}

// Soonest is the earlier of two times, of which the zero Time is never.
func Soonest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Services are the ids of all services: what All is for loops that look at each.
func Services(v store.View) (out []string) {
	for _, s := range store.List[*cluster.Service](v) {
		out = append(out, s.ID)
	}
	return out
}

// Run drives loops until ctx ends, each in a goroutine of its own. It blocks. The
// error is the first that was not the end of ctx; it ends all of them.
func Run(ctx context.Context, s store.Store, log *slog.Logger, loops ...Loop) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(loops))
	var group sync.WaitGroup
	for i, l := range loops {
		group.Go(func() {
			r := runner{s: s, l: l, log: log.With("loop", l.Name()), queued: map[string]bool{}, timers: map[string]time.Time{}}
			if err := r.run(ctx); err != nil && ctx.Err() == nil {
				errs[i] = fmt.Errorf("loop %s: %w", l.Name(), err)
				cancel()
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// runner drives one loop.
type runner struct {
	s   store.Store
	l   Loop
	log *slog.Logger

	queue  []string
	queued map[string]bool
	due    timers
	timers map[string]time.Time // the time that counts of each key in due
}

func (r *runner) run(ctx context.Context) error {
	for {
		// What is missed between two watches is made good by looking at everything.
		v := r.s.View()
		w, err := r.s.Watch(v.Revision(), r.l.Kinds()...)
		if errdefs.IsOutOfRange(err) {
			continue // between the two lines above much was written
		}
		if err != nil {
			return err
		}
		for _, k := range r.l.All(v) {
			r.add(k)
		}
		news, failed := make(chan []store.Commit), make(chan error, 1)
		watching, stop := context.WithCancel(ctx)
		go func() { failed <- listen(watching, w, news) }()
		err = r.work(ctx, news, failed)
		stop()
		if !errdefs.IsOutOfRange(err) {
			return err
		}
		r.log.Warn("the loop was slower than the changes: it looks at everything anew")
	}
}

// listen hands on what a watch tells until it fails.
func listen(ctx context.Context, w *store.Watch, news chan<- []store.Commit) error {
	for {
		list, err := w.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case news <- list:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// work looks at what is queued, and at what becomes so, until the watch fails.
func (r *runner) work(ctx context.Context, news <-chan []store.Commit, failed <-chan error) error {
	for {
		r.expire(time.Now())
		if len(r.queue) > 0 {
			select {
			case list := <-news:
				r.note(list)
				continue
			case err := <-failed:
				return err
			default:
			}
			key := r.queue[0]
			r.queue = r.queue[1:]
			delete(r.queued, key)
			if err := r.look(ctx, key); err != nil {
				return err
			}
			continue
		}
		timer := r.timer()
		select {
		case list := <-news:
			r.note(list)
		case err := <-failed:
			timer.Stop()
			return err
		case <-timer.C:
		}
		timer.Stop()
	}
}

// patience is how long a loop waits before it tries again what could not be written.
const patience = time.Second

// look decides on one thing and does it.
func (r *runner) look(ctx context.Context, key string) error {
	d := r.l.Decide(r.s.View(), key, time.Now())
	r.at(key, d.Again)
	if len(d.Changes) == 0 {
		return nil
	}
	if len(d.Changes) > store.MaxChanges {
		d.Changes = d.Changes[:store.MaxChanges]
	}
	_, err := r.s.Commit(ctx, d.Changes...)
	switch {
	case err == nil, errdefs.IsConflict(err), errdefs.IsNotFound(err), errdefs.IsAlreadyExists(err):
		// Somebody was quicker, or it is done: look again, at what is there now.
		r.add(key)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errdefs.IsUnavailable(err):
		r.log.Error("the store cannot be written: trying again", "error", err)
		r.at(key, time.Now().Add(patience))
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

func (r *runner) note(list []store.Commit) {
	v := r.s.View()
	for _, c := range list {
		for _, e := range c.Events {
			for _, k := range r.l.Keys(v, e) {
				r.add(k)
			}
		}
	}
}

func (r *runner) add(key string) {
	if key != "" && !r.queued[key] {
		r.queued[key] = true
		r.queue = append(r.queue, key)
	}
}

// at sets when a thing is looked at again, if it was not before.
func (r *runner) at(key string, t time.Time) {
	if t.IsZero() {
		delete(r.timers, key)
		return
	}
	r.timers[key] = t
	heap.Push(&r.due, due{key, t})
}

// expire queues what is due.
func (r *runner) expire(now time.Time) {
	for len(r.due) > 0 && !r.due[0].at.After(now) {
		d := heap.Pop(&r.due).(due)
		if r.timers[d.key].Equal(d.at) {
			delete(r.timers, d.key)
			r.add(d.key)
		}
	}
}

// timer fires when the next thing is due.
func (r *runner) timer() *time.Timer {
	for len(r.due) > 0 && !r.timers[r.due[0].key].Equal(r.due[0].at) {
		heap.Pop(&r.due) // it was set anew
	}
	if len(r.due) == 0 {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTimer(time.Until(r.due[0].at))
}

// due is a key and when it is to be looked at.
type due struct {
	key string
	at  time.Time
}

// timers are in order of time: a heap.
type timers []due

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(due)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}
