package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/sys/pin"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
)

// Start starts a container that does not run. ErrNotModified when it runs.
func (m *Manager) Start(ctx context.Context, ref string) error {
	e, err := m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	return m.startLocked(ctx, e, true)
}

// runner starts and ends runs of containers.
type runner struct {
	*core
	execs  *execs
	prober prober
	mounts mounts
}

// startLocked starts e, whose op lock is held. byClient: a client asked, so the
// restart policy begins afresh.
func (m *runner) startLocked(ctx context.Context, e *entry, byClient bool) error {
	switch s := e.state(); s.Status {
	case Running:
		return ErrNotModified
	case Paused:
		return kindf(errConflict, "cannot start a paused container, try unpause instead")
	case Removing, Dead:
		return kindf(errConflict, "container is marked for removal and cannot be started")
	}
	if byClient {
		e.cancelRestart()
	}
	if err := m.waitReaped(ctx, e); err != nil {
		return err
	}
	// A client that goes away does not stop a start half-way.
	ctx = context.WithoutCancel(ctx)
	r, before, err := m.intend(e, byClient)
	if err != nil {
		return err
	}
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	e.setAbort(abort)
	err = m.launch(ctx, e, r)
	e.setAbort(nil)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		m.startFailed(e, r, before, err)
		return startError(e, err)
	}
	return nil
}

// errAborted is how a start ends whose container somebody removes meanwhile.
var errAborted = kindf(errConflict, "container is marked for removal and cannot be started")

// intend notes that a start begins, before anything reaches the kernel. The note lies in
// the run directory, so the record need not be written for it, unless what it came to
// before could not be: it is one move behind at most.
func (m *runner) intend(e *entry, byClient bool) (*run, State, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.rec.State
	next := e.rec
	in := intent{BootID: bootID(), Cgroup: m.newCgroup(&next), ByClient: byClient}
	if err := next.begin(in); err != nil {
		return nil, before, err
	}
	var err error
	if e.unsaved { // a later engine would not believe the note of what the record cannot come to
		err = m.store.save(&next, false)
		e.unsaved = err != nil
	}
	if err == nil {
		err = writeIntent(m.runDir(e.id, next.State.Generation), in)
	}
	if err != nil {
		m.removeRunDir(e.id, next.State.Generation)
		return nil, before, err
	}
	e.rec = next
	r := &run{generation: next.State.Generation, ended: make(chan struct{}), reaped: make(chan struct{})}
	e.run, e.stopping, e.healing, e.killTold, e.adopted = r, false, nil, false, false
	e.signalled = time.Time{}
	return r, before, nil
}

// launch does the steps of a start in order, each with its undo.
func (m *runner) launch(ctx context.Context, e *entry, r *run) error {
	s := &start{m: m, e: e, run: r, rec: e.view().Record, dir: m.runDir(e.id, r.generation)}
	for _, step := range startSteps {
		if err := step.do(s, ctx); err != nil {
			s.undo.run()
			s.closeHeld()
			return err
		}
	}
	s.closeHeld()
	// The container has mounts of its own now.
	if err := pin.Clear(m.pinDir(e.id, r.generation)); err != nil {
		m.log.Warn("unmounting what the mounts were made from", "container", e.id.Short(), "error", err)
	}
	m.started(e, s)
	e.admit(ctx, s.task) // who came while the process was being made
	return nil
}

// started records that the process runs and begins to watch it.
func (m *runner) started(e *entry, s *start) {
	e.mu.Lock()
	s.run.task, s.run.started = s.task, time.Now()
	comesBack := !e.rec.HostConfig.RestartPolicy.IsNone() // after a power cut, too; of others it may be forgotten that they ran
	err := m.updateLocked(e, comesBack, func(rec *Record) error {
		if err := rec.State.move(Running); err != nil {
			return err
		}
		st := &rec.State
		st.Pid, st.PidStart, st.Monitor = s.pid, pidStart(s.pid), s.task.Monitor()
		st.StartedAt, st.ExitCode, st.Error, st.OOMKilled = now(), 0, "", false
		rec.Endpoints = s.endpoints()
		rec.Mounts = s.rec.Mounts // volumes are where they were mounted
		rec.AppArmorProfile = s.confined()
		if _, probed := newProbe(rec.Config); probed {
			st.Health = &Health{Status: string(container.Starting)} // that of the run before says nothing of this one
		}
		return nil
	})
	e.tellChange()
	e.mu.Unlock()
	if err != nil {
		m.log.Error("recording start", "container", e.id.Short(), "error", err)
	}
	m.publish(e, apievents.ActionStart, nil)
	m.watch(e, s.run)
	m.background(func(context.Context) { m.hideRoot(e, s.run) })
	m.prober.begin(e)
}

// startFailed puts the container back to where it was, with what went wrong.
func (m *runner) startFailed(e *entry, r *run, before State, cause error) {
	m.removeRunDir(e.id, r.generation)
	code := 128
	var se *runtime.StartError
	if errors.As(cause, &se) {
		code = se.Code
	}
	e.mu.Lock()
	next := before.Status
	if next == Restarting {
		next = Exited
	}
	err := m.updateLocked(e, false, func(rec *Record) error {
		rec.State.clearProcess()
		rec.State.ExitCode, rec.State.Error = code, cause.Error()
		return rec.State.move(next)
	})
	close(r.ended)
	close(r.reaped)
	e.tellChange()
	early := e.early
	e.early = nil
	e.notify(false, WaitResult{ExitCode: code})
	auto := e.rec.HostConfig.AutoRemove && e.restarts == 0
	e.mu.Unlock()
	for _, a := range early {
		a.fail(cause)
	}
	if err != nil {
		m.log.Error("recording failed start", "container", e.id.Short(), "error", err)
	}
	if auto {
		if err := m.removeLocked(m.ctx, e, Remove{Volumes: true}); err != nil {
			m.log.Warn("removing after failed start", "container", e.id.Short(), "error", err)
		}
	}
}

// startError gives a failed start Docker's kind: the runtime's refusals of the
// command are the client's fault, anything else is ours.
func startError(e *entry, err error) error {
	var se *runtime.StartError
	if errors.As(err, &se) && (se.Code == 126 || se.Code == 127) {
		return kindf(errInvalid, "%s", err)
	}
	return err
}

// waitReaped waits until the kernel holds nothing of the last run.
func (m *runner) waitReaped(ctx context.Context, e *entry) error {
	e.mu.Lock()
	r := e.run
	e.mu.Unlock()
	if r == nil {
		return nil
	}
	select {
	case <-r.reaped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: still cleaning up after its last run: %w", e.id.Short(), ctx.Err())
	}
}
