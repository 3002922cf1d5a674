package container

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"
)

// Stop asks a container to end, and kills it when it does not in time. Blocks
// until it has ended. ErrNotModified when it does not run. While it waits, other
// clients may do with the container what they like.
func (m *Manager) Stop(ctx context.Context, ref string, s Stop) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	if _, err := stopSignal(s, nil); err != nil {
		return err
	}
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	for other := e.stopUnderWay(); s.Join && other != nil; other = e.stopUnderWay() {
		e.op.unlock()
		<-other
		if err := e.op.lock(ctx); err != nil {
			return err
		}
	}
	if s.Before != nil {
		if err := e.allow(ctx, s.Before); err != nil {
			e.op.unlock()
			return err
		}
	}
	r, err := m.askToStop(ctx, e, s)
	var over func()
	if err == nil {
		over = e.beginStop()
	}
	e.op.unlock()
	if err != nil {
		return err
	}
	defer over()
	return m.awaitStop(ctx, e, r, s)
}

// stopTimeout is how many seconds a stop waits: the client's, else the
// container's, else the engine's. Negative: for ever.
func (m *core) stopTimeout(c *container.Config, s Stop) int {
	switch {
	case s.Timeout != nil:
		return *s.Timeout
	case c.StopTimeout != nil:
		return *c.StopTimeout
	}
	return m.defaults().StopTimeout
}

// seconds is n seconds, or as long as a duration can be.
func seconds(n int) time.Duration {
	return time.Duration(min(int64(n), int64(math.MaxInt64/time.Second))) * time.Second
}

// askToStop rests e's restart policy and sends the stop signal; its op lock is
// held. The run it gives is for awaitStop; nil: there is nothing to wait for.
// ErrNotModified when e does not run.
func (m *runner) askToStop(ctx context.Context, e *entry, s Stop) (*run, error) {
	waiting := e.cancelRestart()
	if st := e.state(); !st.Running() && !waiting {
		return nil, ErrNotModified
	}
	if err := m.update(e, true, func(rec *Record) error { rec.ManuallyStopped = true; return nil }); err != nil {
		// A full disk is no reason to let it run: only a crash now would forget.
		m.log.Warn("recording stop", "container", e.id.Short(), "error", err)
	}
	if waiting {
		return nil, m.settle(e)
	}
	return m.signalStop(ctx, e, s)
}

// awaitStop waits for the end of a run that was asked to stop, kills it when its
// time is over, and tells. The op lock need not be held.
func (m *runner) awaitStop(ctx context.Context, e *entry, r *run, s Stop) error {
	if r == nil {
		return nil
	}
	if err := m.awaitEnd(ctx, e, r, s); err != nil {
		return err
	}
	if !s.forRemoval {
		m.publish(e, apievents.ActionStop, nil)
	}
	return nil
}

// settle turns a container that waited for its restart into an ended one.
func (m *runner) settle(e *entry) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.tellChange()
	defer e.notify(false, WaitResult{ExitCode: e.rec.State.ExitCode})
	return m.updateLocked(e, true, func(rec *Record) error {
		if rec.State.Status != Restarting {
			return nil
		}
		return rec.State.move(Exited)
	})
}

// signalStop sends the stop signal, as somebody wishes; the run it gives is the
// one that got it.
func (m *runner) signalStop(ctx context.Context, e *entry, s Stop) (*run, error) {
	e.mu.Lock()
	r := e.run
	e.stopping = true
	e.mu.Unlock()
	if r == nil {
		return nil, nil
	}
	return r, m.sendStop(ctx, e, r, s)
}

// leave lets new connections by shared ports and names go elsewhere, before a run is
// ended: those that it has may come to their end in the time of grace.
func (m *runner) leave(e *entry, r *run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !r.leaving {
		r.leaving = true
		m.cfg.Networks.Rotate(m.ctx, string(e.id), false)
	}
}

// takeIn lets new connections come to a container again, if it runs, is well and is
// not being ended.
func (m *runner) takeIn(e *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.cfg.Networks.Rotate(m.ctx, string(e.id), e.rec.State.takes() && (e.run == nil || !e.run.leaving))
}

// sendStop sends the stop signal, also when no time is left for it to be heard: it is
// among the events, and what reads signals from a descriptor finds it. A KILL that
// awaitEnd sends at once is not sent twice.
func (m *runner) sendStop(ctx context.Context, e *entry, r *run, s Stop) error {
	v := e.view()
	sig, err := stopSignal(s, v.Config)
	if err != nil || r.task == nil || sig == syscall.SIGKILL && m.stopTimeout(v.Config, s) == 0 {
		return err
	}
	m.leave(e, r)
	if v.State.Status == Paused {
		err = m.thaw(e)
	}
	if err == nil {
		err = m.signal(ctx, e, r, sig)
	}
	if err != nil { // it does not end
		e.mu.Lock()
		r.leaving = false
		e.mu.Unlock()
		m.takeIn(e)
	}
	return err
}

// awaitEnd returns when the exit of the run is recorded: by itself in time, or killed.
func (m *runner) awaitEnd(ctx context.Context, e *entry, r *run, s Stop) error {
	if r.task == nil {
		return nil
	}
	if timeout := m.stopTimeout(e.view().Config, s); timeout != 0 && waitEnd(ctx, r, timeout) {
		return nil
	}
	return m.killRun(ctx, e, r)
}

// monitorPatience is how long a monitor may take to pass a signal on, and a
// killed process to end, until the monitor is taken for hung.
const monitorPatience = 5 * time.Second

// killRun sends SIGKILL and waits for the end. A monitor that does not do its
// part is killed with all that it watches over.
func (m *runner) killRun(ctx context.Context, e *entry, r *run) error {
	m.leave(e, r)
	if e.paused(r) {
		if err := m.thaw(e); err != nil {
			return err
		}
	}
	if err := m.signal(ctx, e, r, syscall.SIGKILL); err != nil {
		return err
	}
	if waitEnd(ctx, r, int(monitorPatience.Seconds())) {
		return nil
	}
	v := e.view()
	m.log.Warn("monitor does not answer: ending it with its container", "container", e.id.Short(), "monitor", v.State.Monitor)
	if err := m.cfg.Runtime.Cleanup(ctx, m.cleanup(&v.Record, r.generation)); err != nil {
		return fmt.Errorf("container %s: %w", e.id.Short(), err)
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signal sends sig to the container's process and tells it; one that has ended
// meanwhile is no error, nor is a monitor that does not answer: who waits for the
// end finds that out.
func (m *runner) signal(ctx context.Context, e *entry, r *run, sig syscall.Signal) error {
	brief, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	err := m.send(brief, e, r, sig)
	if gone(err) || (brief.Err() != nil && ctx.Err() == nil) {
		return nil // ending: watch records it
	}
	return err
}

// waitEnd waits for the end of a run at most timeout seconds; negative: for ever.
func waitEnd(ctx context.Context, r *run, timeout int) bool {
	if timeout < 0 {
		select {
		case <-r.ended:
			return true
		case <-ctx.Done():
			return false
		}
	}
	t := time.NewTimer(seconds(timeout))
	defer t.Stop()
	select {
	case <-r.ended:
		return true
	case <-t.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// stopSignal is the signal a stop sends: the client's, else the container's, else TERM.
func stopSignal(s Stop, c *container.Config) (syscall.Signal, error) {
	name := s.Signal
	if name == "" && c != nil {
		name = c.StopSignal
	}
	if name == "" {
		return syscall.SIGTERM, nil
	}
	return parseSignal(name)
}

func parseSignal(name string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, kindf(errInvalid, "%s", err)
	}
	if sig < 0 || sig > maxSignal {
		return 0, kindf(errInvalid, "the linux daemon does not support signal %d", sig)
	}
	return sig, nil
}

// Restart stops a container if it runs and starts it.
func (m *Manager) Restart(ctx context.Context, ref string, s Stop) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	if _, err := stopSignal(s, nil); err != nil {
		return err
	}
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	e.holdRemoval(1) // --rm waits: this is not the end
	r, err := m.askToStop(ctx, e, s)
	e.op.unlock()
	if err == nil {
		err = m.awaitStop(ctx, e, r, s)
	}
	if err == nil || errors.Is(err, ErrNotModified) {
		err = m.startAgain(ctx, e)
	}
	e.holdRemoval(-1)
	if err != nil {
		m.background(func(ctx context.Context) { m.autoRemove(ctx, e) }) // what --rm would have done
		return err
	}
	m.publish(e, apievents.ActionRestart, nil)
	return nil
}

// startAgain starts what a restart has stopped, unless somebody else just did.
func (m *runner) startAgain(ctx context.Context, e *entry) error {
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	defer e.op.unlock()
	if err := m.startLocked(ctx, e, true); !errors.Is(err, ErrNotModified) {
		return err
	}
	return nil
}

// Wait tells when a container ends (condition "", "not-running"), ends next
// ("next-exit"), or is gone ("removed"). The channel gets one result.
func (m *Manager) Wait(ctx context.Context, ref, condition string) (<-chan WaitResult, error) {
	e, err := m.store.find(ref)
	if err != nil {
		return nil, err
	}
	ch := make(chan WaitResult, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	st := e.rec.State
	switch container.WaitCondition(condition) {
	case "", container.WaitConditionNotRunning:
		if !st.Running() && st.Status != Restarting && st.Status != Starting {
			ch <- WaitResult{ExitCode: st.ExitCode}
			return ch, nil
		}
		e.wait(ctx, &waiter{ch: ch})
	case container.WaitConditionNextExit:
		if e.removed { // there is no next
			ch <- WaitResult{ExitCode: st.ExitCode}
			return ch, nil
		}
		e.wait(ctx, &waiter{ch: ch})
	case container.WaitConditionRemoved:
		if e.removed {
			ch <- WaitResult{ExitCode: st.ExitCode}
			return ch, nil
		}
		e.wait(ctx, &waiter{removed: true, ch: ch})
	default:
		return nil, kindf(errInvalid, "invalid condition: %q", condition)
	}
	return ch, nil
}

// Resize sets the size of a container's terminal.
func (m *Manager) Resize(ctx context.Context, ref string, rows, cols uint16) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	task := e.live()
	if task == nil {
		return kindf(errConflict, "container %s is not running", e.id)
	}
	if !e.view().Config.Tty {
		return nil // there is nothing to resize, and Docker's clients ask for it
	}
	if err := task.Resize(ctx, "", rows, cols); err != nil {
		return notRunning(e.id, err)
	}
	m.publish(e, apievents.ActionResize, map[string]string{"height": strconv.Itoa(int(rows)), "width": strconv.Itoa(int(cols))})
	return nil
}
