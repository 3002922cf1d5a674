package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

// maxEnded is how many exits of execs nobody has waited for are kept.
const maxEnded = 1000

// Task is a container under a monitor; see runtime.Task.
type Task struct {
	id       string
	runDir   string
	stateDir string
	conn     *conn
	dial     func(context.Context) (*net.UnixConn, error)
	started  func() // called when a start has come to its end, either way; nil when adopted
	maker    runtime.Maker
	making   runtime.Making // for maker
	log      *slog.Logger

	mu         sync.Mutex
	generation uint64
	pid        int
	monitor    int
	exits      map[string]*exit // of processes that are or were waited for
	ended      []string         // the execs among exits that have ended, oldest first
}

var _ runtime.Task = (*Task)(nil)

// exit becomes known when done is closed.
type exit struct {
	done chan struct{}
	exit runtime.Exit
	err  error
}

func newTask(id, stateDir string, c *conn, dial func(context.Context) (*net.UnixConn, error), log *slog.Logger) *Task {
	return &Task{id: id, stateDir: stateDir, conn: c, dial: dial, log: log, exits: map[string]*exit{}}
}

// adopted takes what the monitor told about itself.
func (t *Task) adopted(status wire.Message) {
	t.mu.Lock()
	t.generation = status.Uint(wire.TagGeneration)
	t.monitor = int(status.Uint(wire.TagMonitor))
	if s := status.Uint(wire.TagState); s >= wire.StateRunning {
		t.pid = int(status.Uint(wire.TagPid))
	}
	t.mu.Unlock()
	t.watchInit()
}

// watchInit asks for the exit of the container's process ahead of every Wait, so
// that it is known however fast the monitor leaves.
func (t *Task) watchInit() { t.watch("") }

// Generation is the number of the start that the monitor serves.
func (t *Task) Generation() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.generation
}

// Start runs the container's process; see runtime.Task. After a *StartError the
// monitor is gone, and attached streams have ended.
func (t *Task) Start(ctx context.Context) (int, error) {
	m, err := t.start(ctx)
	if t.started != nil {
		t.started()
	}
	if err != nil {
		return 0, t.fail("", err)
	}
	pid := int(m.Uint(wire.TagPid))
	t.mu.Lock()
	t.pid = pid
	t.mu.Unlock()
	return pid, nil
}

// Exec runs one more process; see runtime.Task.
func (t *Task) Exec(ctx context.Context, e runtime.Exec) (int, error) {
	if !json.Valid(e.Process) {
		return 0, fmt.Errorf("exec %s: process is not JSON: %w", e.ID, errdefs.ErrInvalidArgument)
	}
	if e.ID == "" || filepath.Base(e.ID) != e.ID {
		return 0, fmt.Errorf("exec %q: invalid id: %w", e.ID, errdefs.ErrInvalidArgument)
	}
	file := filepath.Join(t.runDir, "exec-"+e.ID+".json")
	if err := os.WriteFile(file, e.Process, 0o600); err != nil {
		return 0, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	defer os.Remove(file)
	request := t.conn.begin(wire.Exec, func(w *wire.Writer) {
		w.Text(wire.TagProcess, e.ID)
		w.Text(wire.TagFile, file)
		w.Bool(wire.TagTerminal, e.Terminal)
		w.Uint(wire.TagRows, uint64(e.Rows))
		w.Uint(wire.TagCols, uint64(e.Cols))
		w.Bool(wire.TagOpenStdin, e.Stdin)
	})
	t.watch(e.ID) // right behind it: the container may end, and the monitor go, at any time
	// When ctx ends the runtime is ended, and the monitor tells of that.
	patient, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	stop := context.AfterFunc(ctx, func() {
		t.endExec(file)
		time.AfterFunc(execGrace, giveUp)
	})
	m, err := request.wait(patient)
	if err != nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		return 0, t.fail(e.ID, err)
	}
	return int(m.Uint(wire.TagPid)), nil
}

// execGrace is how long a monitor may take to tell that the runtime was ended.
const execGrace = 2 * time.Second

// fail puts an error of the monitor into the words of the engine.
func (t *Task) fail(exec string, err error) error {
	var r *refusal
	switch {
	case errors.As(err, &r):
		return r.startError(exec)
	case errors.Is(err, errLost):
		err = t.lost()
		fallthrough
	default:
		return fmt.Errorf("container %s: %w", t.id, err)
	}
}

// lost says why the connection to the monitor has ended: with the container, or
// before it.
func (t *Task) lost() error {
	if _, err := lastExit(t.stateDir, t.Generation()); err == nil {
		return fmt.Errorf("container is not running: %w", errdefs.ErrNotFound)
	}
	return runtime.ErrMonitorLost
}

// Attach connects to the streams of a process; see runtime.Task. The stream is a
// *net.UnixConn, so that io.Copy can splice.
func (t *Task) Attach(ctx context.Context, process string, a runtime.Attach) (runtime.Stream, error) {
	nc, err := t.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", t.id, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // wakes what blocks
	var w wire.Writer
	hello(&w)
	w.Begin(wire.Attach)
	w.Uint(wire.TagRequest, 1)
	w.Text(wire.TagProcess, process)
	w.Bool(wire.TagStdin, a.Stdin)
	w.Bool(wire.TagStdout, a.Stdout)
	w.Bool(wire.TagStderr, a.Stderr)
	w.End()
	if _, err = nc.Write(w.Data()); err == nil {
		_, err = readAnswer(nc)
	} else {
		err = errLost
	}
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close() // it is of no use
		return nil, t.fail(process, err)
	}
	return nc, nil
}

// Signal sends a signal; see runtime.Task.
func (t *Task) Signal(ctx context.Context, process string, sig syscall.Signal) error {
	return t.order(ctx, wire.Signal, process, func(w *wire.Writer) { w.Uint(wire.TagNumber, uint64(sig)) })
}

// Resize sets the size of a terminal; see runtime.Task.
func (t *Task) Resize(ctx context.Context, process string, rows, cols uint16) error {
	return t.order(ctx, wire.Resize, process, func(w *wire.Writer) {
		w.Uint(wire.TagRows, uint64(rows))
		w.Uint(wire.TagCols, uint64(cols))
	})
}

func (t *Task) order(ctx context.Context, what wire.Type, process string, fill func(*wire.Writer)) error {
	_, err := t.conn.call(ctx, what, func(w *wire.Writer) {
		w.Text(wire.TagProcess, process)
		fill(w)
	})
	if err != nil {
		return t.fail(process, err)
	}
	return nil
}

// Execs lists the ids of the execs that run: an engine that has adopted a
// monitor learns from it which of those it knows have ended.
func (t *Task) Execs(ctx context.Context) ([]string, error) {
	m, err := t.conn.call(ctx, wire.Status, nil)
	if err != nil {
		return nil, t.fail("", err)
	}
	return m.Texts(wire.TagProcess), nil
}

// Wait blocks until a process has ended; see runtime.Task.
func (t *Task) Wait(ctx context.Context, process string) (runtime.Exit, error) {
	e := t.watch(process)
	select {
	case <-e.done:
		return e.exit, e.err
	default:
	}
	select {
	case <-e.done:
		return e.exit, e.err
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

// watch asks the monitor for an exit, unless it was asked already.
func (t *Task) watch(process string) *exit {
	t.mu.Lock()
	e := t.exits[process]
	if e != nil {
		t.mu.Unlock()
		return e
	}
	e = &exit{done: make(chan struct{})}
	t.exits[process] = e
	t.mu.Unlock()
	t.conn.send(wire.Wait, func(w *wire.Writer) { w.Text(wire.TagProcess, process) }, func(m wire.Message, err error) {
		if err == nil {
			e.exit = runtime.Exit{
				Code:      int(m.Uint(wire.TagCode)),
				At:        time.Unix(int64(m.Uint(wire.TagSeconds)), int64(m.Uint(wire.TagNanos))),
				OOMKilled: m.Bool(wire.TagOOM),
			}
		} else {
			e.exit, e.err = t.unknown(process, err)
		}
		close(e.done)
		t.settled(process, e)
	})
	return e
}

// unknown is for exits that the monitor did not tell.
func (t *Task) unknown(process string, err error) (runtime.Exit, error) {
	if !errors.Is(err, errLost) {
		return runtime.Exit{}, fmt.Errorf("container %s: %w", t.id, err)
	}
	if process == "" {
		if last, err := lastExit(t.stateDir, t.Generation()); err == nil {
			return last, nil
		}
	}
	return runtime.Exit{}, fmt.Errorf("container %s: %w", t.id, runtime.ErrMonitorLost)
}

// settled bounds what is kept of execs that have ended; the monitor remembers
// them too. What is not known may be asked again.
func (t *Task) settled(process string, e *exit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.err != nil && !errors.Is(e.err, runtime.ErrMonitorLost) {
		delete(t.exits, process)
		return
	}
	if process == "" {
		return
	}
	t.ended = append(t.ended, process)
	if len(t.ended) > maxEnded {
		delete(t.exits, t.ended[0])
		t.ended = append(t.ended[:0], t.ended[1:]...)
	}
}

// Pid is the container's process; see runtime.Task.
func (t *Task) Pid() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pid
}

// Monitor is the monitor's process.
func (t *Task) Monitor() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.monitor
}

// Close lets go of the monitor. Whoever waits gets an error that is not
// ErrMonitorLost: the container goes on.
func (t *Task) Close() error {
	t.conn.close(errClosed)
	return nil
}
