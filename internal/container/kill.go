package container

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"syscall"
	"time"

	apievents "github.com/moby/moby/api/types/events"
)

// maxSignal is the last signal that the kernel has.
const maxSignal = 64

// afterSignal is how long the end of a container is taken for the work of a signal
// that need not have meant one: what a stop gives a program by default.
const afterSignal = 10 * time.Second

// meaning is what a client's signal says of the end that may follow.
type meaning int

const (
	meansNothing meaning = iota // restart policies take the end as any other
	mayMeanStop                 // they rest if the end comes within afterSignal
	meansStop                   // they rest
)

// meaningOf tells what a signal means to a container, by Docker's rules: KILL and the
// stop signal are stops; so is any other where the container names no stop signal of its
// own, or its policy is unless-stopped. Docker remembers those others for as long as the
// container runs, and one that read its configuration again at a HUP is not restarted
// when it fails a month later; here they are forgotten after afterSignal.
func meaningOf(sig syscall.Signal, rec *Record) meaning {
	switch {
	case sig == syscall.SIGKILL, sig == stopSignalOf(rec):
		return meansStop
	case rec.Config.StopSignal == "", rec.HostConfig.RestartPolicy.IsUnlessStopped():
		return mayMeanStop
	}
	return meansNothing
}

func stopSignalOf(rec *Record) syscall.Signal {
	sig, err := stopSignal(Stop{}, rec.Config)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}

// Kill sends a signal to a container's process; "" is KILL. KILL waits for the end. A
// signal that may mean a stop lets a paused container go on, and to one that waits for
// its restart it is one, though nothing is left to send it to.
func (m *Manager) Kill(ctx context.Context, ref, name string) error {
	sig := syscall.SIGKILL
	if name != "" {
		var err error
		if sig, err = parseSignal(name); err != nil {
			return err
		}
	}
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	if v := e.view(); v.State.Status == Restarting {
		if meaningOf(sig, &v.Record) == meansNothing {
			return nil
		}
		if err := m.Stop(ctx, string(e.id), Stop{}); !errors.Is(err, ErrNotModified) {
			return err
		}
	}
	r, thaws := m.noteSignal(e, sig)
	if r == nil {
		return kindf(errConflict, "container %s is not running", e.id)
	}
	ctx = context.WithoutCancel(ctx)
	if sig == syscall.SIGKILL {
		return m.killRun(ctx, e, r)
	}
	if err := m.signal(ctx, e, r, sig); err != nil {
		return err
	}
	if thaws && e.paused(r) {
		return m.thaw(e)
	}
	return nil
}

// noteSignal notes what a signal that is about to be sent means to the restart policy.
// It gives the run that is to get it, nil when none is under way, and whether the signal
// ends a pause. A stop is written down first, so that an engine that is killed after it
// leaves no container that comes back.
func (m *runner) noteSignal(e *entry, sig syscall.Signal) (r *run, thaws bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r = e.run; !e.rec.State.Running() || r == nil || r.task == nil {
		return nil, false
	}
	switch meaningOf(sig, &e.rec) {
	case meansStop:
		known := e.rec.ManuallyStopped || e.rec.HostConfig.RestartPolicy.IsNone()
		e.stopping, e.rec.ManuallyStopped = true, true
		if known {
			return r, true
		}
		if err := m.updateLocked(e, false, func(*Record) error { return nil }); err != nil {
			m.log.Warn("recording stop", "container", e.id.Short(), "error", err)
		}
		return r, true
	case mayMeanStop:
		e.signalled = time.Now()
		return r, e.rec.Config.StopSignal == ""
	}
	return r, false
}

// sending is a signal on its way to a run.
type sending struct {
	sig  syscall.Signal
	told bool
}

// send sends a signal to the container's process and tells it, before the end that comes of
// it is told: whoever tells that goes ahead with the signals on their way.
func (m *core) send(ctx context.Context, e *entry, r *run, sig syscall.Signal) error {
	s := &sending{sig: sig}
	e.mu.Lock()
	r.sending = append(r.sending, s)
	e.mu.Unlock()
	err := r.task.Signal(ctx, "", sig)
	e.mu.Lock()
	defer e.mu.Unlock()
	r.sending = slices.DeleteFunc(r.sending, func(o *sending) bool { return o == s })
	if err == nil {
		m.tellKillLocked(e, s)
	}
	return err
}

// tellKillLocked publishes that a signal was sent, once; of a removal one is told in all.
func (m *core) tellKillLocked(e *entry, s *sending) {
	if s.told || e.killTold {
		return
	}
	s.told = true
	m.publishLocked(e, apievents.ActionKill, map[string]string{"signal": strconv.Itoa(int(s.sig))})
}
