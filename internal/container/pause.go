package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	apievents "github.com/moby/moby/api/types/events"
)

// Pause freezes all processes of a running container.
func (m *Manager) Pause(ctx context.Context, ref string) error {
	e, err := m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	switch st := e.state(); {
	case st.Status == Paused:
		return kindf(errConflict, "container %s is already paused", e.id)
	case st.Status == Restarting:
		return kindf(errConflict, "container %s is restarting, wait until the container is running", e.id)
	case !st.Running():
		return kindf(errConflict, "container %s is not running", e.id)
	}
	return m.freeze(e)
}

// freeze stops all processes of a running container, whose op lock is held.
func (m *runner) freeze(e *entry) error {
	v := e.view()
	m.cfg.Networks.Rotate(m.ctx, string(e.id), false)
	if err := m.cfg.Freezer.Freeze(m.cgroupPath(&v.Record)); err != nil {
		m.takeIn(e)
		return fmt.Errorf("container %s: %w", e.id.Short(), err)
	}
	if err := m.update(e, false, func(rec *Record) error { return rec.State.move(Paused) }); err != nil {
		return err
	}
	m.publish(e, apievents.ActionPause, nil)
	return nil
}

// Unpause lets a paused container go on.
func (m *Manager) Unpause(ctx context.Context, ref string) error {
	e, err := m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	if e.state().Status != Paused {
		return kindf(errConflict, "container %s is not paused", e.id)
	}
	return m.thaw(e)
}

// thaw unfreezes a paused container; its op lock need not be held.
func (m *runner) thaw(e *entry) error {
	v := e.view()
	if err := m.cfg.Freezer.Thaw(m.cgroupPath(&v.Record)); err != nil {
		return fmt.Errorf("container %s: %w", e.id.Short(), err)
	}
	if err := m.update(e, false, func(rec *Record) error {
		if rec.State.Status != Paused {
			return nil
		}
		return rec.State.move(Running)
	}); err != nil {
		return err
	}
	m.takeIn(e)
	os.Remove(filepath.Join(m.runDir(e.id, e.state().Generation), frozenFile)) // a later pause is not the commit's
	m.publish(e, apievents.ActionUnPause, nil)
	return nil
}
