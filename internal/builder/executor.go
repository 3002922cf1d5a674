package builder

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/containerd/errdefs"
	bkexec "github.com/moby/buildkit/executor"
	resources "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
)

// executor runs BuildKit's steps as containers of the engine's runtime: under a
// monitor, in a network and a cgroup of their own.
type executor struct {
	cfg *Config

	mu      sync.Mutex
	running map[string]*step // by BuildKit's id
}

func newExecutor(cfg *Config) *executor { return &executor{cfg: cfg, running: map[string]*step{}} }

// Run implements executor.Executor. It blocks until the step has ended and
// nothing of it is left; the end of ctx kills it.
func (e *executor) Run(ctx context.Context, id string, root bkexec.Mount, mounts []bkexec.Mount, p bkexec.ProcessInfo, started chan<- struct{}) (_ resources.Recorder, err error) {
	tell := sync.OnceFunc(func() {
		if started != nil {
			close(started)
		}
	})
	defer tell()
	if p.Meta.Proxy != nil {
		return nil, fmt.Errorf("a proxy between steps and their network: %w", errdefs.ErrNotImplemented)
	}
	s := &step{e: e, id: newID(), binary: e.cfg.Binary(), meta: p.Meta, ready: make(chan struct{}), rootMount: root, mounts: mounts}
	if id != "" {
		e.mu.Lock()
		e.running[id] = s
		e.mu.Unlock()
		defer func() {
			e.mu.Lock()
			delete(e.running, id)
			e.mu.Unlock()
		}()
	}
	defer func() {
		s.abandon()
		if undo := s.undo(); undo != nil && err == nil {
			err = undo
		}
	}()
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	if err := s.launch(ctx, p.Stdin != nil); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- carry(s.stream, p, p.Meta.Tty) }()
	s.pid, err = s.task.Start(ctx)
	if err != nil {
		s.stream.Close()
		<-done
		return nil, startError(err)
	}
	close(s.ready)
	tell()
	exit, err := s.wait(ctx, "", p)
	if err != nil {
		s.stream.Close() // whoever holds the output open is killed with the rest
	}
	if carried := <-done; err == nil {
		err = carried
	}
	if err != nil {
		return nil, err
	}
	return nil, exitError(exit, p.Meta.ValidExitCodes)
}

// wait waits for the end of a process, passes signals and sizes on, and kills it
// when ctx ends.
func (s *step) wait(ctx context.Context, process string, p bkexec.ProcessInfo) (runtime.Exit, error) {
	type result struct {
		exit runtime.Exit
		err  error
	}
	// detached: a killed process is waited for too
	whole := context.WithoutCancel(ctx)
	ended := make(chan result, 1)
	go func() {
		exit, err := s.task.Wait(whole, process)
		ended <- result{exit, err}
	}()
	over := ctx.Done()
	for {
		select {
		case r := <-ended:
			if r.err == nil && ctx.Err() != nil {
				r.err = context.Cause(ctx)
			}
			return r.exit, r.err
		case <-over:
			over = nil
			if err := s.task.Signal(whole, process, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
				return runtime.Exit{}, errors.Join(context.Cause(ctx), err)
			}
		case sig, ok := <-p.Signal:
			if !ok {
				p.Signal = nil
			} else if err := s.task.Signal(whole, process, sig); err != nil && !errdefs.IsNotFound(err) {
				s.e.cfg.Logger.Debug("signal to a build step", "error", err)
			}
		case size, ok := <-p.Resize:
			if !ok {
				p.Resize = nil
			} else if err := s.task.Resize(whole, process, uint16(size.Rows), uint16(size.Cols)); err != nil {
				s.e.cfg.Logger.Debug("size of a build step's terminal", "error", err)
			}
		}
	}
}

// Exec implements executor.Executor: one more process in a step that runs.
func (e *executor) Exec(ctx context.Context, id string, p bkexec.ProcessInfo) error {
	e.mu.Lock()
	s := e.running[id]
	e.mu.Unlock()
	if s == nil {
		return fmt.Errorf("build step %s: %w", id, errdefs.ErrNotFound)
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	process, err := s.process(p.Meta)
	if err != nil {
		return err
	}
	name := newID()
	stream, err := s.task.Attach(ctx, name, runtime.Attach{Stdin: p.Stdin != nil, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	defer stream.Close()
	done := make(chan error, 1)
	go func() { done <- carry(stream, p, p.Meta.Tty) }()
	if _, err := s.task.Exec(ctx, runtime.Exec{ID: name, Process: process, Terminal: p.Meta.Tty, Stdin: p.Stdin != nil}); err != nil {
		stream.Close()
		<-done
		return startError(err)
	}
	exit, err := s.wait(ctx, name, p)
	if err != nil {
		stream.Close()
	}
	if carried := <-done; err == nil {
		err = carried
	}
	if err != nil {
		return err
	}
	return exitError(exit, p.Meta.ValidExitCodes)
}

// exitError tells BuildKit how a process ended.
func exitError(exit runtime.Exit, valid []int) error {
	if len(valid) == 0 {
		valid = []int{0}
	}
	for _, code := range valid {
		if exit.Code == code {
			return nil
		}
	}
	err := &gatewayapi.ExitError{ExitCode: uint32(exit.Code)}
	if exit.OOMKilled {
		err.Err = fmt.Errorf("exit code: %d: it ran out of its memory: %w", exit.Code, syscall.ENOMEM)
	}
	return err
}

// startError gives a refused start its code.
func startError(err error) error {
	var refused *runtime.StartError
	if errors.As(err, &refused) {
		return &gatewayapi.ExitError{ExitCode: uint32(refused.Code), Err: fmt.Errorf("exit code: %d: %w", refused.Code, err)}
	}
	return err
}

func (s *step) cgroup() string {
	parent := s.meta.CgroupParent
	if parent == "" {
		parent = s.e.cfg.CgroupParent
	}
	return oci.CgroupsPath(parent, s.id, s.e.cfg.Scopes)
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return hex.EncodeToString(b[:])
}
