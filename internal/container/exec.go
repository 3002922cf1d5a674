package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
)

// exec is one more process in a container, from its creation until the
// container is removed.
type exec struct {
	id   string
	e    *entry
	conf ExecConfig

	mu      sync.Mutex
	started bool
	running bool
	pid     int
	code    *int
	up      chan struct{} // closed when it runs or has ended
	done    chan struct{} // closed when it has ended
}

// newExec makes one that has not started: a client's or a health check's.
func newExec(e *entry, c ExecConfig) *exec {
	return &exec{id: string(newID()), e: e, conf: c, up: make(chan struct{}), done: make(chan struct{})}
}

// execs keeps and runs the execs of all containers.
type execs struct {
	*core
	mu   sync.Mutex
	byID map[string]*exec
}

// maxExecs bounds the ended execs that are remembered for a container.
const maxExecs = 256

// ExecCreate prepares an exec in a running container and returns its id.
func (m *Manager) ExecCreate(_ context.Context, ref string, c ExecConfig) (string, error) {
	e, err := m.store.find(ref)
	if err != nil {
		return "", err
	}
	if len(c.Cmd) == 0 {
		return "", kindf(errInvalid, "No exec command specified")
	}
	if _, err := detachSequence(c.DetachKeys); err != nil {
		return "", err
	}
	if err := canExec(e); err != nil {
		return "", err
	}
	x := newExec(e, c)
	m.execs.add(x)
	m.publish(e, execAction(apievents.ActionExecCreate, c.Cmd), map[string]string{"execID": x.id})
	return x.id, nil
}

func canExec(e *entry) error {
	switch st := e.state(); {
	case st.Status == Paused:
		return kindf(errConflict, "container %s is paused, unpause the container before exec", e.id)
	case st.Status == Restarting:
		return kindf(errConflict, "container %s is restarting, wait until the container is running", e.id)
	case !st.Running():
		return kindf(errConflict, "container %s is not running", e.id)
	}
	return nil
}

// oldestEnded returns an ended exec to forget when there are too many. Called with mu held.
func (e *entry) oldestEnded() *exec {
	if len(e.execs) <= maxExecs {
		return nil
	}
	for _, x := range e.execs {
		select {
		case <-x.done:
			return x
		default:
		}
	}
	return nil
}

// add remembers an exec, and forgets an ended one where there are too many.
func (m *execs) add(x *exec) {
	m.mu.Lock()
	m.byID[x.id] = x
	m.mu.Unlock()
	x.e.mu.Lock()
	x.e.execs[x.id] = x
	old := x.e.oldestEnded()
	x.e.mu.Unlock()
	if old != nil {
		m.forget(old)
	}
}

func (m *execs) forget(x *exec) {
	m.mu.Lock()
	delete(m.byID, x.id)
	m.mu.Unlock()
	x.e.mu.Lock()
	delete(x.e.execs, x.id)
	x.e.mu.Unlock()
}

// drop forgets all execs of a removed container.
func (m *execs) drop(e *entry) {
	e.mu.Lock()
	all := e.execs
	e.execs = map[string]*exec{}
	e.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range all {
		delete(m.byID, id)
	}
}

func (m *execs) find(id string) (*exec, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x, ok := m.byID[id]
	if !ok {
		return nil, kindf(errNotFound, "No such exec instance: %s", id)
	}
	return x, nil
}

// ExecStart runs an exec. open nil: detached, returns once it runs; else blocks
// until the process' output has ended or the client is gone.
func (m *Manager) ExecStart(ctx context.Context, id string, size [2]uint16, open func(terminal bool) (io.ReadWriteCloser, error)) error {
	x, err := m.execs.find(id)
	if err != nil {
		return err
	}
	if err := canExec(x.e); err != nil {
		return err
	}
	x.mu.Lock()
	if x.started {
		x.mu.Unlock()
		select {
		case <-x.done:
			return kindf(errConflict, "exec command %s has already run", id)
		default:
			return kindf(errConflict, "Error: Exec command %s is already running", id)
		}
	}
	x.started = true
	x.mu.Unlock()
	if size == [2]uint16{} {
		size = x.conf.ConsoleSize
	}
	var conn io.ReadWriteCloser
	var stream runtime.Stream
	if open != nil {
		if stream, err = m.execs.attach(ctx, x); err == nil {
			defer stream.Close()
			conn, err = open(x.conf.Tty)
		}
		if err != nil {
			x.end(126)
			return err
		}
		defer conn.Close()
	}
	if err := m.execs.run(context.WithoutCancel(ctx), x, size); err != nil {
		return err
	}
	if open == nil {
		return nil
	}
	keys, _ := detachKeys(x.conf.DetachKeys, x.conf.Tty) // checked at create
	switch pump(ctx, conn, stream, x.conf.AttachStdin, keys) {
	case pumpDetached:
		m.publish(x.e, apievents.ActionExecDetach, map[string]string{"execID": x.id})
	case pumpEnded:
		// The client asks for the exit code next: let it be there.
		select {
		case <-x.done:
		case <-ctx.Done():
		}
	}
	return nil
}

func (m *execs) attach(ctx context.Context, x *exec) (runtime.Stream, error) {
	task := x.e.live()
	if task == nil {
		return nil, kindf(errConflict, "container %s is not running", x.e.id)
	}
	s, err := task.Attach(ctx, x.id, runtime.Attach{Stdin: x.conf.AttachStdin, Stdout: x.conf.AttachStdout || x.conf.Tty, Stderr: x.conf.AttachStderr && !x.conf.Tty})
	if err != nil {
		return nil, notRunning(x.e.id, err)
	}
	return s, nil
}

// run starts the process and watches for its end.
func (m *execs) run(ctx context.Context, x *exec, size [2]uint16) error {
	x.e.mu.Lock()
	r, st := x.e.run, x.e.rec.State
	x.e.mu.Unlock()
	if r == nil || r.task == nil || !st.Running() {
		x.end(126)
		return kindf(errConflict, "container %s is not running", x.e.id)
	}
	task := r.task
	process, err := m.process(x, size)
	if err != nil {
		x.end(126)
		return execError(ctx, x.e, r, err)
	}
	m.publish(x.e, execAction(apievents.ActionExecStart, x.conf.Cmd), map[string]string{"execID": x.id})
	patience := m.defaults().StartTimeout
	brief, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pid, err := task.Exec(brief, runtime.Exec{
		ID: x.id, Process: process, Terminal: x.conf.Tty, Rows: size[0], Cols: size[1], Stdin: x.conf.AttachStdin,
	})
	if err != nil {
		if brief.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("OCI runtime %q did not start the process within %s", x.e.view().HostConfig.Runtime, patience)
		}
		code := 126
		var se *runtime.StartError
		if errors.As(err, &se) {
			code = se.Code
		}
		x.end(code)
		return execError(ctx, x.e, r, err)
	}
	x.mu.Lock()
	x.running, x.pid = true, pid
	if x.code == nil {
		close(x.up)
	}
	x.mu.Unlock()
	m.background(func(bg context.Context) {
		exit, err := task.Wait(bg, x.id)
		if bg.Err() != nil {
			return
		}
		if err != nil {
			exit.Code = 137
		}
		// Before anyone learns of the end: who has the answer finds it among the events,
		// and what it does next comes after.
		m.publish(x.e, apievents.ActionExecDie, map[string]string{"execID": x.id, "exitCode": strconv.Itoa(exit.Code)})
		x.end(exit.Code)
	})
	return nil
}

// dyingPatience is how long a container that refuses an exec may take to show
// that it had just ended.
const dyingPatience = time.Second

// execError gives a refused exec its kind. A container that ends in these very
// milliseconds makes the OCI runtime stumble anywhere: what counts is the end.
func execError(ctx context.Context, e *entry, r *run, err error) error {
	if err = notRunning(e.id, startError(e, err)); errdefs.IsInvalidArgument(err) || errdefs.IsConflict(err) {
		return err
	}
	t := time.NewTimer(dyingPatience)
	defer t.Stop()
	select {
	case <-r.ended:
		return kindf(errConflict, "container %s is not running", e.id)
	case <-t.C:
	case <-ctx.Done():
	}
	return err
}

// process is the OCI process of an exec.
func (m *execs) process(x *exec, size [2]uint16) ([]byte, error) {
	v := x.e.view()
	dir := m.runDir(x.e.id, v.State.Generation)
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	links, err := m.linkEnv(&v.Record, false)
	if err != nil {
		return nil, err
	}
	root, err := m.openBareRoot(x.e, &v.State)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	p, err := m.cfg.Specs.Process(spec, "/proc/self/fd/"+uitoa(uint64(root.Fd())), oci.ExecOptions{
		LinkEnv: links, Config: v.Config, HostConfig: v.HostConfig,
		Args: x.conf.Cmd, Env: x.conf.Env, WorkingDir: x.conf.WorkingDir, User: x.conf.User,
		Tty: x.conf.Tty, Privileged: x.conf.Privileged, ConsoleSize: [2]uint{uint(size[0]), uint(size[1])},
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// end records the end of an exec, once.
func (x *exec) end(code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.code != nil {
		return
	}
	if x.pid == 0 {
		close(x.up)
	}
	x.code, x.running = &code, false
	close(x.done)
}

// endExecs ends what was still running when the container did. Called with mu held.
func (e *entry) endExecs() {
	for _, x := range e.execs {
		if x.isRunning() {
			x.end(137)
		}
	}
}

func (x *exec) isRunning() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.running
}

// execBegin is how long a resize waits for an exec that is being started:
// clients send it at once after the start, on another connection.
const execBegin = 10 * time.Second

// await waits until an exec that is being started runs, or has ended.
func (x *exec) await(ctx context.Context) error {
	x.mu.Lock()
	started := x.started
	x.mu.Unlock()
	if !started {
		return nil
	}
	timer := time.NewTimer(execBegin)
	defer timer.Stop()
	select {
	case <-x.up:
		return nil
	case <-timer.C:
		return errors.New("timeout waiting for exec session ready")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ExecResize sets the size of an exec's terminal.
func (m *Manager) ExecResize(ctx context.Context, id string, rows, cols uint16) error {
	x, err := m.execs.find(id)
	if err != nil {
		return err
	}
	if err := x.await(ctx); err != nil {
		return err
	}
	task := x.e.live()
	if task == nil || !x.isRunning() {
		return kindf(errConflict, "exec %s is not running", id)
	}
	if !x.conf.Tty {
		return nil // there is nothing to resize, and Docker's clients ask for it
	}
	if err := task.Resize(ctx, id, rows, cols); gone(err) {
		return kindf(errConflict, "exec %s is not running", id)
	} else if err != nil {
		return err
	}
	return nil
}

// ExecGet returns an exec by its id.
func (m *Manager) ExecGet(id string) (Exec, error) {
	x, err := m.execs.find(id)
	if err != nil {
		return Exec{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var keys []byte
	if x.conf.DetachKeys != "" {
		keys, _ = detachSequence(x.conf.DetachKeys) // checked at create
	}
	return Exec{
		ID: id, Container: x.e.id, Config: x.conf, Running: x.running, ExitCode: x.code, Pid: x.pid,
		DetachKeys: string(keys), Entrypoint: x.conf.Cmd[0], Arguments: x.conf.Cmd[1:], ConsoleSize: x.conf.ConsoleSize,
	}, nil
}

// execAction names what an exec runs as Docker does, with a blank after a command
// that has no arguments.
func execAction(kind apievents.Action, cmd []string) apievents.Action {
	if len(cmd) == 0 {
		return kind
	}
	return kind + apievents.Action(": "+cmd[0]+" "+strings.Join(cmd[1:], " "))
}
