package container

import (
	"context"
	"errors"
	"strconv"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
)

// watch waits for the end of a run and handles it.
func (m *runner) watch(e *entry, r *run) {
	m.background(func(ctx context.Context) {
		exit, err := r.task.Wait(ctx, "")
		if ctx.Err() != nil {
			return // the engine stops; the container goes on
		}
		if errors.Is(err, runtime.ErrMonitorLost) {
			exit, err = m.monitorLost(e, r)
		}
		if err != nil {
			m.log.Error("waiting for container", "container", e.id.Short(), "error", err)
			exit = runtime.Exit{Code: 137, At: now()}
		}
		m.exited(e, r, exit, err)
	})
	m.background(func(ctx context.Context) { m.watchMemory(ctx, e, r) })
}

// watchMemory tells when memory runs out, whichever process is killed for it,
// as long as the run lasts.
func (m *runner) watchMemory(ctx context.Context, e *entry, r *run) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	v := e.view()
	err := m.cfg.Processes.OOMs(ctx, m.cgroupPath(&v.Record), func(before bool) { m.outOfMemory(e, r, before) })
	if err != nil && ctx.Err() == nil {
		m.log.Warn("out of memory will be told at the end only", "container", e.id.Short(), "error", err)
	}
}

// outOfMemory notes and tells it; what was before the watch began may have been
// told by an engine before this one. The end of a run tells what this could not.
func (m *runner) outOfMemory(e *entry, r *run, before bool) {
	e.mu.Lock()
	if e.run != r || !e.rec.State.Running() || before && e.rec.State.OOMKilled {
		e.mu.Unlock()
		return
	}
	err := m.updateLocked(e, false, func(rec *Record) error {
		rec.State.OOMKilled = true
		return nil
	})
	m.publishLocked(e, apievents.ActionOOM, nil) // before the end finds that it was told
	e.mu.Unlock()
	if err != nil {
		m.log.Warn("recording that memory ran out", "container", e.id.Short(), "error", err)
	}
}

// monitorLost handles a monitor that died: what it last recorded counts, else
// its container goes with it.
func (m *runner) monitorLost(e *entry, r *run) (runtime.Exit, error) {
	if exit, err := m.cfg.Runtime.LastExit(m.store.path(e.id), r.generation); err == nil {
		return exit, nil
	}
	v := e.view()
	if err := m.cfg.Runtime.Cleanup(m.ctx, m.cleanup(&v.Record, r.generation)); err != nil {
		m.log.Error("ending container without monitor", "container", e.id.Short(), "error", err)
	}
	return runtime.Exit{Code: 137, At: now()}, runtime.ErrMonitorLost
}

// exited records the end of a run, tells who waits, and decides what comes next.
func (m *runner) exited(e *entry, r *run, exit runtime.Exit, cause error) {
	e.mu.Lock()
	eps := e.rec.Endpoints
	e.mu.Unlock()
	// Published ports close before anyone learns of the exit, so that the next
	// container may have them at once.
	if len(eps) > 0 {
		if err := m.cfg.Networks.Unpublish(m.ctx, string(e.id), eps); err != nil {
			m.log.Warn("unpublishing ports", "container", e.id.Short(), "error", err)
		}
	}
	e.mu.Lock()
	if e.probing != nil {
		e.probing()
		e.probing = nil
	}
	e.restart.cancelHeal()
	lived := time.Since(r.started)
	again, delay := e.decideRestart(exit, lived)
	next := Exited
	var pending pendingRestart
	if again {
		next, pending = Restarting, m.armRestart(e)
	}
	told := e.rec.State.OOMKilled
	passing := e.rec.passing() && m.store.passing(e.id) // an engine of before may have made it
	err := m.updateLocked(e, again || !passing, func(rec *Record) error {
		st := &rec.State
		st.ExitCode, st.OOMKilled, st.FinishedAt, st.Error = exit.Code, exit.OOMKilled || told, exit.At.UTC(), ""
		if cause != nil {
			st.Error = cause.Error()
		}
		st.clearProcess()
		if st.Health != nil {
			h := *st.Health
			h.Status = string(container.Unhealthy) // as Docker shows what is not running
			st.Health = &h
		}
		rec.Endpoints = nil
		if again {
			rec.RestartCount++
		}
		return st.move(next)
	})
	rec := e.rec
	closeAll(e.sockets)
	e.sockets = nil
	close(r.ended)
	e.tellChange()
	e.endExecs()
	r.task.Close()
	for _, s := range r.sending {
		m.tellKillLocked(e, s)
	}
	m.tellExitLocked(e, exit, exit.OOMKilled && !told, lived) // who waited finds it among the events
	e.notify(false, WaitResult{ExitCode: exit.Code, Err: cause})
	e.mu.Unlock()
	if err != nil {
		m.log.Error("recording exit", "container", e.id.Short(), "error", err)
	}
	m.tellNetworks(apievents.ActionDisconnect, &rec, eps)
	m.background(func(ctx context.Context) { m.reap(ctx, &rec, r, eps) })
	switch {
	case again:
		m.scheduleRestart(e, pending, delay)
	case rec.HostConfig.AutoRemove:
		m.background(func(ctx context.Context) { m.autoRemove(ctx, e) })
	}
}

// tellExitLocked tells the end of a run, and that memory ran out if nobody has yet.
func (m *runner) tellExitLocked(e *entry, exit runtime.Exit, oom bool, lived time.Duration) {
	if oom {
		m.publishLocked(e, apievents.ActionOOM, nil)
	}
	m.publishLocked(e, apievents.ActionDie, map[string]string{
		"exitCode":     strconv.Itoa(exit.Code),
		"execDuration": strconv.Itoa(int(lived.Seconds())),
	})
}

// reap gives back what the kernel keeps of a run. Its run directory goes last:
// as long as it is there, a later engine knows that there is something to reap.
func (m *runner) reap(ctx context.Context, rec *Record, r *run, eps []network.Endpoint) {
	defer close(r.reaped)
	warn := func(what string, err error) bool {
		if err != nil && ctx.Err() == nil {
			m.log.Warn("reaping", "container", rec.ID.Short(), "what", what, "error", err)
		}
		return err == nil
	}
	ok := warn("runtime", m.cfg.Runtime.Cleanup(ctx, m.cleanup(rec, r.generation)))
	r.root.close()
	ok = warn("root file system", m.unmountRun(rec.ID, r.generation)) && ok
	ok = warn("volumes", m.mounts.unmount(rec, rec.Mounts, true)) && ok
	if len(eps) > 0 {
		ok = warn("network", m.cfg.Networks.Teardown(ctx, string(rec.ID), eps)) && ok
	}
	if ok {
		m.removeRunDir(rec.ID, r.generation)
	}
}

// autoRemove removes a container that was started with --rm.
func (m *runner) autoRemove(ctx context.Context, e *entry) {
	// An image that is being made of it is made first.
	if err := e.committing.lock(ctx); err != nil {
		return
	}
	defer e.committing.unlock()
	if err := e.op.lock(ctx); err != nil {
		return
	}
	defer e.op.unlock()
	e.mu.Lock()
	wanted := e.rec.HostConfig.AutoRemove && e.restarts == 0 && !e.rec.State.Running()
	e.mu.Unlock()
	if !wanted {
		return
	}
	if err := m.removeLocked(ctx, e, Remove{Volumes: true}); err != nil && ctx.Err() == nil {
		m.log.Warn("removing", "container", e.id.Short(), "error", err)
	}
}
