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
// until it has ended. ErrNotModified when it does not run.
func (m *Manager) Stop(ctx context.Context, ref string, s Stop) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	if _, err := stopSignal(s, nil); err != nil {
		return err
	}
	if err := m.lockToStop(ctx, e, s); err != nil {
		return err
	}
	defer e.op.unlock()
	return m.stopByClient(context.WithoutCancel(ctx), e, s)
}

// lockToStop takes the op lock. A stop that holds it may wait for its container
// much longer than s would, for ever if so asked: s's own patience counts too.
func (m *runner) lockToStop(ctx context.Context, e *entry, s Stop) error {
	e.mu.Lock()
	r, timeout := e.run, m.stopTimeout(e.rec.Config, s)
	stopping := e.stopping && e.rec.State.Running() && r != nil && r.task != nil
	e.mu.Unlock()
	if !stopping || timeout < 0 {
		return e.op.lock(ctx)
	}
	t := time.NewTimer(seconds(timeout))
	defer t.Stop()
	return e.op.lockAlarm(ctx, t.C, func() error { return m.signal(ctx, e, r, syscall.SIGKILL) })
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
	return m.cfg.Defaults.StopTimeout
}

// seconds is n seconds, or as long as a duration can be.
func seconds(n int) time.Duration {
	return time.Duration(min(int64(n), int64(math.MaxInt64/time.Second))) * time.Second
}

// stopByClient stops e, whose op lock is held, and rests its restart policy.
func (m *runner) stopByClient(ctx context.Context, e *entry, s Stop) error {
	waiting := e.cancelRestart()
	if st := e.state(); !st.Running() && !waiting {
		return ErrNotModified
	}
	if err := m.update(e, true, func(rec *Record) error { rec.ManuallyStopped = true; return nil }); err != nil {
		// A full disk is no reason to let it run: only a crash now would forget.
		m.log.Warn("recording stop", "container", e.id.Short(), "error", err)
	}
	if waiting {
		return m.settle(e)
	}
	if err := m.stop(ctx, e, s); err != nil {
		return err
	}
	m.publish(e, apievents.ActionStop, nil)
	return nil
}

// settle turns a container that waited for its restart into an ended one.
func (m *runner) settle(e *entry) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.notify(false, WaitResult{ExitCode: e.rec.State.ExitCode})
	return m.updateLocked(e, true, func(rec *Record) error {
		if rec.State.Status != Restarting {
			return nil
		}
		return rec.State.move(Exited)
	})
}

// stop sends the stop signal, waits, and kills. Returns when the exit is recorded.
func (m *runner) stop(ctx context.Context, e *entry, s Stop) error {
	v := e.view()
	sig, err := stopSignal(s, v.Config)
	if err != nil {
		return err
	}
	timeout := m.stopTimeout(v.Config, s)
	e.mu.Lock()
	r := e.run
	e.stopping = true
	e.mu.Unlock()
	if r == nil || r.task == nil {
		return nil
	}
	if timeout != 0 {
		if v.State.Status == Paused {
			if err := m.thaw(e); err != nil {
				return err
			}
		}
		if err := m.signal(ctx, e, r, sig); err != nil {
			return err
		}
		if waitEnd(ctx, r, timeout) {
			return nil
		}
	}
	return m.killRun(ctx, e, r)
}

// monitorPatience is how long a monitor may take to pass a signal on, and a
// killed process to end, until the monitor is taken for hung.
const monitorPatience = 5 * time.Second

// killRun sends SIGKILL and waits for the end. A monitor that does not do its
// part is killed with all that it watches over.
func (m *runner) killRun(ctx context.Context, e *entry, r *run) error {
	if e.state().Status == Paused {
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
	err := r.task.Signal(brief, "", sig)
	if gone(err) || (brief.Err() != nil && ctx.Err() == nil) {
		return nil // ending: watch records it
	}
	if err == nil {
		m.publish(e, apievents.ActionKill, map[string]string{"signal": strconv.Itoa(int(sig))})
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

// maxSignal is the last signal that the kernel has.
const maxSignal = 64

// Kill sends a signal to a container's process; "" is KILL. KILL waits for the end.
func (m *Manager) Kill(ctx context.Context, ref, name string) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if name != "" {
		if sig, err = parseSignal(name); err != nil {
			return err
		}
	}
	if e.state().Status == Restarting && sig == syscall.SIGKILL {
		if err := m.Stop(ctx, string(e.id), Stop{}); !errors.Is(err, ErrNotModified) {
			return err
		}
	}
	e.mu.Lock()
	r, st := e.run, e.rec.State
	if st.Running() && (sig == syscall.SIGKILL || sig == stopSignalOf(&e.rec)) {
		e.stopping = true // intended: the restart policy rests
		e.rec.ManuallyStopped = true
	}
	e.mu.Unlock()
	if !st.Running() || r == nil || r.task == nil {
		return kindf(errConflict, "container %s is not running", e.id)
	}
	ctx = context.WithoutCancel(ctx)
	if sig == syscall.SIGKILL {
		return m.killRun(ctx, e, r)
	}
	return m.signal(ctx, e, r, sig)
}

func stopSignalOf(rec *Record) syscall.Signal {
	sig, err := stopSignal(Stop{}, rec.Config)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
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
	if err := m.lockToStop(ctx, e, s); err != nil {
		return err
	}
	defer e.op.unlock()
	ctx = context.WithoutCancel(ctx)
	e.mu.Lock()
	e.holdRemoval = true // --rm waits: this is not the end
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.holdRemoval = false
		e.mu.Unlock()
	}()
	if err := m.stopByClient(ctx, e, s); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	if err := m.startLocked(ctx, e, true); err != nil {
		return err
	}
	m.publish(e, apievents.ActionRestart, nil)
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
