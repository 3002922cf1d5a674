package container

import (
	"context"
	"errors"
	"syscall"
	"time"

	apievents "github.com/moby/moby/api/types/events"
)

// Remove removes a container. Answers when its record is gone; what the kernel
// takes its time over goes on behind.
func (m *Manager) Remove(ctx context.Context, ref string, o Remove) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	if o.Force && o.Before != nil {
		if err := e.allow(ctx, o.Before); err != nil {
			return err
		}
	}
	if o.Force {
		// A start or stop under way may hold the container for long: force goes ahead.
		if r := e.doom(); r != nil {
			brief, cancel := context.WithTimeout(ctx, time.Second)
			if m.send(brief, e, r, syscall.SIGKILL) == nil { // else the stop below tells what is wrong
				e.mu.Lock()
				e.killTold = true
				e.mu.Unlock()
			}
			cancel()
		}
	}
	take := e.op.lock
	if o.Force {
		take = e.op.force
	}
	if err := take(ctx); err != nil {
		return err
	}
	defer e.op.unlock()
	ctx = context.WithoutCancel(ctx)
	e.mu.Lock()
	removed, st := e.removed, e.rec.State
	e.mu.Unlock()
	switch {
	case removed:
		return errNoSuch(ref)
	case st.Status == Paused && !o.Force:
		return kindf(errConflict, "cannot remove container %q: container is paused and must be unpaused first", ref)
	case st.Running() && !o.Force:
		return kindf(errConflict, "cannot remove container %q: container is %s: stop the container before removing or force remove", ref, st.Status)
	case st.Status == Restarting && !o.Force:
		return kindf(errConflict, "cannot remove container %q: container is restarting: stop the container before removing or force remove", ref)
	}
	if !o.Force && o.Before != nil {
		if err := e.allow(ctx, o.Before); err != nil {
			return err
		}
	}
	now := Stop{Signal: "KILL", Timeout: new(int), forRemoval: true}
	r, err := m.askToStop(ctx, e, now)
	if err == nil {
		err = m.awaitStop(ctx, e, r, now)
	}
	if err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	return m.removeLocked(ctx, e, o)
}

// removeLocked removes a container that does not run; its op lock is held.
func (m *runner) removeLocked(ctx context.Context, e *entry, o Remove) error {
	e.mu.Lock()
	if e.removed {
		e.mu.Unlock()
		return nil
	}
	if err := e.rec.State.move(Removing); err != nil {
		e.mu.Unlock()
		return err
	}
	e.rec.RemoveVolumes = e.rec.RemoveVolumes || o.Volumes
	if e.uncommit != nil {
		e.uncommit(errRemovedAmid)
	}
	err := m.store.save(&e.rec, false)
	e.mu.Unlock()
	if err != nil { // a full disk: removing is how it gets room
		m.log.Warn("recording removal", "container", e.id.Short(), "error", err)
	}
	e.cancelRestart()
	return m.finishRemoval(e, errors.Is(err, syscall.ENOSPC))
}

// finishRemoval drops a container that is marked for removal. Also used after
// the engine was killed half-way: every step may have been done already. now:
// the disk is full, and the client is answered when it has its space back.
func (m *runner) finishRemoval(e *entry, now bool) error {
	v := e.view()
	m.mounts.release(&v.Record)
	if v.RemoveVolumes {
		m.mounts.removeAnonymous(&v.Record)
	}
	m.cfg.Logs.Drop(string(e.id))
	m.holdLog(e)
	if err := m.store.remove(e); err != nil {
		return err
	}
	m.publish(e, apievents.ActionDestroy, nil)
	e.mu.Lock()
	e.removed = true
	e.tellChange()
	m.cfg.Networks.Unkeep(string(e.id))
	r := e.run
	e.notify(true, WaitResult{ExitCode: e.rec.State.ExitCode})
	early := e.early
	e.early = nil
	e.mu.Unlock()
	for _, a := range early {
		a.fail(errNoSuch(string(e.id)))
	}
	m.execs.drop(e)
	if now {
		m.discard(m.ctx, &v.Record, r)
		return nil
	}
	m.background(func(ctx context.Context) { m.discard(ctx, &v.Record, r) })
	return nil
}

// discard gives the disk back what a removed container had on it.
func (m *runner) discard(ctx context.Context, rec *Record, last *run) {
	if last != nil {
		select {
		case <-last.reaped:
		case <-ctx.Done():
			return // the next engine finds the snapshot without a record
		}
	}
	m.store.collect()
	err := errors.Join(m.cfg.Rootfs.Remove(ctx, string(rec.ID)), m.mounts.dropImages(ctx, rec))
	if err != nil && ctx.Err() == nil {
		m.log.Warn("removing root file system", "container", rec.ID.Short(), "error", err)
	}
}
