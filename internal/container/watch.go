package container

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"escale.dev/escale/internal/stats"
	"github.com/moby/moby/api/types/container"
)

// sampleEvery is how often a container's figures are read while somebody looks.
const sampleEvery = time.Second

// StatsOptions say what a reader of figures wants: samples without end, or one,
// which compares with one of a second before unless OneShot.
type StatsOptions struct{ Stream, OneShot bool }

// watcher shows containers at work: their figures and processes. A container
// that somebody looks at has one sampler, shared by all readers.
type watcher struct {
	c *core

	mu       sync.Mutex
	samplers map[ID]*sampler
}

// sampler reads one container's figures for all who look at it. Guarded by the
// watcher's lock.
type sampler struct {
	cancel  context.CancelFunc
	readers map[chan *container.StatsResponse]struct{} // of one sample: who is slow misses some
	last    *container.StatsResponse
}

// Stats sends figures, each with those before. It blocks until it has sent the
// only sample or, streaming, until ctx ends, send returns an error or the
// container is removed. A container that does not run has zeros.
func (w *watcher) Stats(ctx context.Context, ref string, o StatsOptions, send func(*container.StatsResponse) error) error {
	e, err := w.c.store.find(ref)
	if err != nil {
		return err
	}
	if !o.Stream && (o.OneShot || !e.state().Running()) {
		s, err := w.sample(e)
		if err != nil {
			return err
		}
		return send(s)
	}
	samples := w.join(e)
	defer w.leave(e, samples)
	var before *container.StatsResponse
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, ok := <-samples:
			if !ok {
				return nil
			}
			first := before == nil
			out := *s // readers came at different times
			if !first {
				out.PreRead, out.PreCPUStats = before.Read, before.CPUStats
			}
			before = s
			if first && !o.Stream {
				continue
			}
			if err := send(&out); err != nil || !o.Stream {
				return err
			}
		}
	}
}

// join adds a reader, who gets the last sample at once if there is one.
func (w *watcher) join(e *entry) chan *container.StatsResponse {
	ch := make(chan *container.StatsResponse, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.samplers[e.id]
	if s == nil {
		ctx, cancel := context.WithCancel(w.c.ctx)
		s = &sampler{cancel: cancel, readers: map[chan *container.StatsResponse]struct{}{}}
		w.samplers[e.id] = s
		w.c.background(func(context.Context) { w.run(ctx, e, s) })
	}
	s.readers[ch] = struct{}{}
	if s.last != nil {
		ch <- s.last
	}
	return ch
}

// leave ends a reader, and the sampler with its last one.
func (w *watcher) leave(e *entry, ch chan *container.StatsResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.samplers[e.id]
	if s == nil {
		return
	}
	if delete(s.readers, ch); len(s.readers) == 0 {
		w.end(e, s)
	}
}

// end stops a sampler and its readers. Called with the lock held.
func (w *watcher) end(e *entry, s *sampler) {
	s.cancel()
	if w.samplers[e.id] == s {
		delete(w.samplers, e.id)
	}
	for ch := range s.readers {
		close(ch)
	}
	clear(s.readers)
}

// run samples until nobody looks, the container is removed or the engine stops.
func (w *watcher) run(ctx context.Context, e *entry, s *sampler) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.end(e, s)
	}()
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	for {
		figures, err := w.sample(e)
		if err != nil {
			w.c.log.Warn("reading figures", "container", e.id.Short(), "error", err)
		}
		if err != nil || ctx.Err() != nil || e.gone() {
			return
		}
		w.mu.Lock()
		s.last = figures
		for ch := range s.readers {
			select {
			case <-ch: // it has not taken the one before
			default:
			}
			ch <- figures
		}
		w.mu.Unlock()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// sample reads a container's figures; zeros when it does not run.
func (w *watcher) sample(e *entry) (*container.StatsResponse, error) {
	v := e.view()
	empty := &container.StatsResponse{ID: string(v.ID), Name: "/" + v.Name, OSType: "linux"}
	if !v.State.Running() {
		return empty, nil
	}
	s, err := w.c.cfg.Figures.Read(stats.Target{Cgroup: w.c.cgroupPath(&v.Record), Pid: v.State.Pid, Links: w.links(&v.Record)})
	switch {
	case errors.Is(err, fs.ErrNotExist): // it has just ended
		return empty, nil
	case err != nil:
		return nil, err
	}
	s.ID, s.Name = empty.ID, empty.Name
	return s, nil
}

// links are the interfaces of a container's network, which may be another's.
// The host's are not counted as any container's.
func (w *watcher) links(rec *Record) []string {
	eps := rec.Endpoints
	if mode := rec.HostConfig.NetworkMode; mode.IsContainer() {
		other, err := w.c.store.find(mode.ConnectedContainer())
		if err != nil {
			return nil
		}
		eps = other.view().Endpoints
	}
	var out []string
	for _, ep := range eps {
		if ep.Interface != "" {
			out = append(out, ep.Interface)
		}
	}
	return out
}
