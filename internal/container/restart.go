package container

import (
	"context"
	"time"

	"escale.dev/escale/internal/runtime"
)

// Restart policies wait longer after each failure and start afresh once a run
// has lasted.
const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	goodRun      = 10 * time.Second
)

// restartState is what a restart policy remembers between runs.
type restartState struct {
	backoff time.Duration
	cancel  context.CancelFunc // ends a waiting restart; nil when none waits

	heals     int                // restarts for its health since it was last well for long
	heal      context.CancelFunc // ends a waiting one; nil when none waits
	wellSince time.Time          // zero: it is not healthy
}

// decideRestart tells whether the policy starts the container again, and after
// how long. Called with mu held, before RestartCount is raised.
func (e *entry) decideRestart(exit runtime.Exit, lived time.Duration) (bool, time.Duration) {
	healed := e.healing != nil && e.healing == e.run
	e.healing = nil
	if !healed && !exit.OOMKilled && !e.signalled.IsZero() && time.Since(e.signalled) < afterSignal { // its work, most likely
		e.rec.ManuallyStopped = true
	}
	if e.stopping || e.rec.ManuallyStopped || !healed && !e.wantsRestart(exit.Code) {
		return false, 0
	}
	if healed { // it has waited already
		return true, firstBackoff
	}
	switch {
	case lived >= goodRun || e.restart.backoff == 0:
		e.restart.backoff = firstBackoff
	default:
		e.restart.backoff = min(2*e.restart.backoff, maxBackoff)
	}
	return true, e.restart.backoff
}

// wantsRestart is the policy alone: what it says of an exit with code.
func (e *entry) wantsRestart(code int) bool {
	p := &e.rec.HostConfig.RestartPolicy
	switch {
	case p.IsAlways(), p.IsUnlessStopped():
		return true
	case p.IsOnFailure():
		return code != 0 && (p.MaximumRetryCount == 0 || e.rec.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// pendingRestart is a restart that waits for its time.
type pendingRestart struct {
	ctx    context.Context // ends when the restart is not wanted any more
	cancel context.CancelFunc
}

// armRestart prepares a restart, so that it can be cancelled from the moment
// the container is Restarting. Called with mu held; scheduleRestart follows.
func (m *runner) armRestart(e *entry) pendingRestart {
	ctx, cancel := context.WithCancel(m.ctx)
	e.restart.cancel = cancel
	return pendingRestart{ctx, cancel}
}

// scheduleRestart starts the container again after delay unless somebody stops,
// starts or removes it first.
func (m *runner) scheduleRestart(e *entry, p pendingRestart, delay time.Duration) {
	ctx := p.ctx
	m.background(func(context.Context) {
		defer p.cancel()
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if m.gate.wait(ctx) == nil {
			m.restartNow(ctx, e)
		}
	})
}

// cancelRestart ends a waiting restart; false when none waited. One that Resume
// has not come to yet waits too.
func (e *entry) cancelRestart() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.restart.backoff = 0
	if e.restart.cancel != nil {
		e.restart.cancel()
		e.restart.cancel = nil
	}
	return e.rec.State.Status == Restarting
}
