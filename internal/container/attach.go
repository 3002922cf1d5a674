package container

import (
	"context"
	"errors"
	"io"

	"escale.dev/escale/internal/logs"
	"escale.dev/escale/internal/runtime"
	apievents "github.com/moby/moby/api/types/events"
)

// earlyAttach is a client that attached before the start: it gets its stream
// once there is a monitor, and so misses no byte.
type earlyAttach struct {
	want  runtime.Attach
	ready chan attached // buffered: one result
}

type attached struct {
	stream runtime.Stream
	err    error
}

func (a *earlyAttach) fail(err error) { a.ready <- attached{err: err} }

// admit connects the clients that attached before the start.
func (e *entry) admit(ctx context.Context, task runtime.Task) {
	e.mu.Lock()
	early := e.early
	e.early = nil
	e.mu.Unlock()
	for _, a := range early {
		s, err := task.Attach(ctx, "", a.want)
		a.ready <- attached{stream: s, err: err}
	}
}

// Attach connects a client to a container's stdio; see the API's interface.
func (m *Manager) Attach(ctx context.Context, ref string, a Attach, open func(terminal bool) (io.ReadWriteCloser, error)) error {
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	v := e.view()
	keys, err := detachKeys(a.DetachKeys, v.Config.Tty)
	if err != nil {
		return err
	}
	switch v.State.Status {
	case Paused:
		return kindf(errConflict, "container %s is paused, unpause the container before attach", e.id)
	case Restarting:
		return kindf(errConflict, "container %s is restarting, wait until the container is running", e.id)
	}
	want := runtime.Attach{Stdin: a.Stdin && v.Config.OpenStdin, Stdout: a.Stdout, Stderr: a.Stderr}
	var stream runtime.Stream
	var early *earlyAttach
	if a.Stream {
		// The live stream is joined before the log is read: a line may come
		// twice at the seam only if it is asked for twice (logs and stream).
		if stream, early, err = e.join(ctx, want); err != nil {
			return err
		}
	}
	conn, err := open(v.Config.Tty)
	if err != nil {
		e.leave(early)
		if stream != nil {
			stream.Close()
		}
		return err
	}
	defer conn.Close()
	m.publish(e, apievents.ActionAttach, nil)
	if a.Logs {
		if err := m.replay(&v.Record, a, conn); err != nil {
			m.log.Debug("replaying log", "container", e.id.Short(), "error", err)
		}
	}
	if !a.Stream {
		return nil
	}
	if early != nil {
		if stream, err = waitAdmitted(ctx, e, early); err != nil || stream == nil {
			return nil // the start's own answer tells the client
		}
	}
	defer stream.Close()
	if pump(ctx, conn, stream, want.Stdin, keys) == pumpDetached {
		m.publish(e, apievents.ActionDetach, nil)
	}
	return nil
}

// join attaches to the running container, or queues for its start.
func (e *entry) join(ctx context.Context, want runtime.Attach) (runtime.Stream, *earlyAttach, error) {
	e.mu.Lock()
	if e.removed {
		e.mu.Unlock()
		return nil, nil, errNoSuch(string(e.id))
	}
	if e.run == nil || !e.rec.State.Running() || e.run.task == nil {
		a := &earlyAttach{want: want, ready: make(chan attached, 1)}
		e.early = append(e.early, a)
		e.mu.Unlock()
		return nil, a, nil
	}
	task := e.run.task
	e.mu.Unlock()
	s, err := task.Attach(ctx, "", want)
	if err != nil {
		return nil, nil, notRunning(e.id, err)
	}
	return s, nil, nil
}

// leave takes a queued client out again.
func (e *entry) leave(a *earlyAttach) {
	if a == nil {
		return
	}
	e.mu.Lock()
	for i, other := range e.early {
		if other == a {
			e.early = append(e.early[:i:i], e.early[i+1:]...)
			break
		}
	}
	e.mu.Unlock()
	select {
	case r := <-a.ready:
		if r.stream != nil {
			r.stream.Close()
		}
	default:
	}
}

func waitAdmitted(ctx context.Context, e *entry, a *earlyAttach) (runtime.Stream, error) {
	select {
	case r := <-a.ready:
		return r.stream, r.err
	case <-ctx.Done():
		e.leave(a)
		return nil, ctx.Err()
	}
}

// How a pump ended.
type pumpEnd int

const (
	pumpEnded    pumpEnd = iota // the process' output is complete
	pumpDetached                // the client typed its detach keys
	pumpGone                    // the client, or the monitor, went away
)

// pump copies both ways until the process' output ends, the client goes away or
// types keys; without keys its input is passed on as it is.
func pump(ctx context.Context, conn io.ReadWriteCloser, stream runtime.Stream, stdin bool, keys []byte) pumpEnd {
	detached := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	if stdin {
		go func() { // ends with the connection, which the caller closes
			var in io.Reader = conn
			if len(keys) > 0 {
				in = &detachReader{r: conn, keys: keys}
			}
			_, err := io.Copy(stream, in)
			if errors.Is(err, errDetached) {
				close(detached)
				stream.Close()
				return
			}
			stream.CloseWrite()
		}()
	}
	_, err := io.Copy(conn, stream)
	select {
	case <-detached:
		return pumpDetached
	default:
	}
	if err != nil {
		return pumpGone
	}
	return pumpEnded
}

// replay sends what the log holds to a client that attaches late.
func (m *Manager) replay(rec *Record, a Attach, w io.Writer) error {
	if !readable(rec) {
		return nil
	}
	r, err := logs.Open(m.logPath(rec.ID), m.logFile(rec).MaxFiles, logs.ReadOptions{Stdout: a.Stdout, Stderr: a.Stderr, Tail: -1})
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := writeFrame(w, rec.Config.Tty, line); err != nil {
			return err
		}
	}
}

// writeFrame writes a line raw, or with Docker's header of 8 bytes: stream,
// three zeros, length big-endian.
func writeFrame(w io.Writer, raw bool, line logs.Line) error {
	if !raw {
		n := len(line.Data)
		h := [8]byte{1, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		if line.Stream == "stderr" {
			h[0] = 2
		}
		if _, err := w.Write(h[:]); err != nil {
			return err
		}
	}
	_, err := w.Write(line.Data)
	return err
}
