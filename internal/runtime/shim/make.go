package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

// failGrace is how long a monitor may take to end a start, or to hear of its success: then
// it stands still, and is ended itself.
var failGrace = 5 * time.Second

// start starts the container: by a Maker, where there is one that can, else the monitor
// calls the OCI runtime.
func (t *Task) start(ctx context.Context) (wire.Message, error) {
	if t.maker == nil {
		return t.conn.call(ctx, wire.Start, nil)
	}
	p := &parent{t: t}
	_, err := t.make(ctx, p)
	if errors.Is(err, runtime.ErrNotDelegable) && !p.asked {
		return t.conn.call(ctx, wire.Start, nil)
	}
	if err == nil {
		// The container runs: that ctx ends now is no reason to give it up. A monitor that
		// does not hear of that does not end the start either: Cleanup ends the monitor.
		return t.patiently(ctx, wire.Ran)
	}
	patient, done := context.WithTimeout(context.WithoutCancel(ctx), failGrace)
	defer done()
	_, _ = p.End(patient) // the first error is the one to tell
	if errors.Is(err, errLost) || errors.Is(err, errClosed) || ctx.Err() != nil {
		return wire.Message{}, err
	}
	return wire.Message{}, &refusal{text: err.Error(), stderr: err.Error()}
}

// make has the Maker make it, for as long as there is a monitor: the child, which the Maker
// talks to itself, may stand still.
func (t *Task) make(ctx context.Context, p *parent) (int, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	e := t.watch("")
	go func() {
		select {
		case <-e.done:
			if errors.Is(e.err, runtime.ErrMonitorLost) { // else the start has failed, and who has failed it says why
				giveUp(errLost)
			}
		case <-ctx.Done():
		}
	}()
	return t.maker.Make(ctx, t.making, p)
}

// patiently asks the monitor for something that it does at once, whatever becomes of ctx: one
// that does not answer, as it stands still, is not waited for longer than failGrace.
func (t *Task) patiently(ctx context.Context, what wire.Type) (wire.Message, error) {
	patient, done := context.WithTimeout(context.WithoutCancel(ctx), failGrace)
	defer done()
	m, err := t.conn.call(patient, what, nil)
	if err != nil && patient.Err() != nil {
		err = fmt.Errorf("the monitor has not answered for %s: %w", failGrace, err)
	}
	return m, err
}

// parent is the monitor, for a Maker.
type parent struct {
	t     *Task
	asked bool // for a child, by a monitor that knows how to

	once   sync.Once
	status syscall.WaitStatus
	err    error
}

var _ runtime.Parent = (*parent)(nil)

// Fork has the monitor start the child.
func (p *parent) Fork(ctx context.Context, c runtime.Child) (int, error) {
	if len(c.Files) > runtime.MaxChildFiles {
		return 0, fmt.Errorf("%d files: %w", len(c.Files), runtime.ErrNotDelegable)
	}
	files := append([]*os.File{c.Program, c.Null}, c.Files...)
	if c.Cgroup != nil {
		files = append(files, c.Cgroup)
	}
	m, err := p.t.conn.callWith(ctx, files, wire.Fork, func(w *wire.Writer) {
		w.Texts(wire.TagArg, c.Args)
		w.Texts(wire.TagEnv, c.Env)
		w.Uint(wire.TagFlags, uint64(c.Flags))
		w.Uint(wire.TagNumber, uint64(len(files)))
		w.Bool(wire.TagInCgroup, c.Cgroup != nil)
	})
	if errdefs.IsNotImplemented(err) { // it is of an earlier version
		return 0, errors.Join(err, runtime.ErrNotDelegable)
	}
	p.asked = true
	return int(m.Uint(wire.TagPid)), err
}

// Terminal gives the monitor the terminal.
func (p *parent) Terminal(ctx context.Context, f *os.File) error {
	_, err := p.t.conn.callWith(ctx, []*os.File{f}, wire.Terminal, nil)
	return err
}

// End has the monitor end the start, and itself.
func (p *parent) End(ctx context.Context) (syscall.WaitStatus, error) {
	p.once.Do(func() {
		var m wire.Message
		m, p.err = p.t.conn.call(ctx, wire.Fail, nil)
		p.status = syscall.WaitStatus(m.Uint(wire.TagNumber))
	})
	return p.status, p.err
}
