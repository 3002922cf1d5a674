package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/compose/progress"
)

// attachment is an up that shows what containers write, until all have ended or a
// signal stops them.
type attachment struct {
	s    *session
	o    upOptions
	ch   *change
	stop *int
	w    *watcher

	mu    sync.Mutex
	code  int
	coded bool  // it is that of --exit-code-from
	why   error // why all is stopped
}

// attached asks for the change, and shows logs until the end.
func (s apps) attached(ctx context.Context, ch *change, o upOptions, args []string) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	a := &attachment{s: s.session, o: o, ch: ch, stop: o.stop.value()}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	meant := a.shown(args)
	before, err := s.containers(ctx, ch.project.Name, pick{stopped: true})
	if err != nil {
		return err
	}
	plan, err := s.put(ctx, ch)
	if err != nil {
		return err
	}
	logs, endLogs := context.WithCancel(ctx)
	defer endLogs()
	p := &printer{out: s.out, err: s.err, color: !o.noColor && s.colored(s.out), prefix: !o.noPrefix}
	upErr, logErr := make(chan error, 1), make(chan error, 2)
	placing, endPlacing := context.WithCancel(ctx)
	defer endPlacing()
	go func() {
		b := progress.New(s.err, progress.Plain, false, "", "Running")
		defer b.Close()
		upErr <- s.until(placing, b, plan, patience{seconds: o.waitSeconds})
	}()
	w := &watcher{s: s.session, c: c, p: p, project: ch.project.Name, stays: true, logs: moby.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: o.times, Tail: "0"}}
	w.meant = func(x *container.Summary) bool { return meant[serviceOf(x)] }
	w.exited, a.w = a.exited, w
	go func() { logErr <- w.run(logs, before) }()
	if o.watch {
		go func() {
			if err := watching(s).watch(placing, ch.project, ch.names, watchOptions{prune: true}); err != nil && placing.Err() == nil {
				fmt.Fprintln(s.err, "watch:", err)
			}
		}()
	}
	err = a.wait(ctx, c, signals, upErr, logErr)
	endPlacing()
	stopped := a.halt(ctx, err, signals)
	endLogs()
	switch {
	case stopped != nil:
		return stopped
	case a.why != nil:
		return exitWith(a.code)
	case errors.Is(err, errSignal):
		return &exit{code: exitBreak}
	}
	return err
}

// shown are the services whose logs are shown.
func (a *attachment) shown(args []string) map[string]bool {
	out := map[string]bool{}
	for _, name := range a.ch.names {
		sv := a.ch.project.Services[name]
		switch {
		case slices.Contains(a.o.noAttach, name):
		case len(a.o.attach) > 0:
			out[name] = slices.Contains(a.o.attach, name)
		case sv.Attach != nil && !*sv.Attach:
		default:
			out[name] = len(args) == 0 || a.o.attachDeps || slices.Contains(args, name)
		}
	}
	return out
}

var (
	errSignal = errors.New("a signal")
	errAbort  = errors.New("a container has ended")
)

// exited takes note of a container that has ended; true: all is to be stopped.
func (a *attachment) exited(x *container.Summary, code int) bool {
	abort := a.o.abortOnExit || a.o.abortOnFailure && code != 0
	if !abort || replaced(x) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.why == nil {
		a.why = errAbort
		if a.o.exitFrom == "" {
			a.code = code
		}
	}
	if a.o.exitFrom == serviceOf(x) && !a.coded {
		a.code, a.coded = code, true
	}
	return true
}

// wait blocks until the end: a signal, a failure, or that nothing runs any more.
func (a *attachment) wait(ctx context.Context, c *client.Client, signals chan os.Signal, upErr, logErr chan error) error {
	for {
		select {
		case <-signals:
			return errSignal
		case err := <-logErr:
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.why != nil {
				return a.why
			}
			return err
		case err := <-upErr:
			if err != nil && !a.ends(logErr) {
				return err
			}
			if err != nil {
				return errAbort
			}
			upErr = nil
			go func() {
				// Up: from now on it is over when all have ended, and their logs with them.
				if err := a.allEnded(ctx, c); err != nil {
					logErr <- err
					return
				}
				a.w.finish()
			}()
		}
	}
}

// ends tells whether an end that stops all was the reason why not all is up: of that the
// watcher tells, maybe a moment later.
func (a *attachment) ends(logErr chan error) bool {
	if !a.o.abortOnExit && !a.o.abortOnFailure {
		return false
	}
	select {
	case <-logErr:
	case <-time.After(2 * time.Second):
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.why != nil
}

// allEnded blocks until no task of the services that are meant runs or will.
func (a *attachment) allEnded(ctx context.Context, c *client.Client) error {
	err := c.AppFollow(ctx, a.ch.project.Name, func(app *client.App) error {
		if app.Phase == "changing" {
			return nil
		}
		for _, sv := range app.Services {
			if sv.Mode == "schedule" {
				return nil
			}
			for i := range sv.Tasks {
				t := &sv.Tasks[i]
				if slices.Contains(a.ch.names, sv.Name) && !ended(t) && !t.Halted {
					return nil
				}
			}
		}
		return errReached
	})
	if errors.Is(err, errReached) {
		return nil
	}
	return err
}

// halt stops the services after a signal or an end that stops all; a second signal
// kills.
func (a *attachment) halt(ctx context.Context, err error, signals chan os.Signal) error {
	if !errors.Is(err, errSignal) && !errors.Is(err, errAbort) {
		return nil
	}
	s := a.s
	if errors.Is(err, errSignal) {
		fmt.Fprintln(s.err, "Gracefully Stopping... press Ctrl+C again to force")
	} else {
		fmt.Fprintln(s.err, "Aborting on container exit...")
	}
	b := s.board("Stopping")
	defer b.Close()
	if err := a.leave(ctx); err != nil {
		return err
	}
	// What the engine was about to replace may come up meanwhile: it is stopped, too.
	for range 5 {
		list, err := s.containers(ctx, a.ch.project.Name, pick{services: a.ch.names})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			break
		}
		done := make(chan error, 1)
		go func() { done <- s.apply(ctx, b, layers(list), true, s.stopping(a.ch.project, a.stop)) }()
		select {
		case err = <-done:
		case <-signals:
			now := 0
			a.stop = &now
			err = s.apply(ctx, b, [][]container.Summary{list}, false, s.stopping(nil, &now))
		}
		if err != nil {
			return err
		}
	}
	return a.settleCode(ctx)
}

// leave has what has ended already stay so: the engine is told that it is meant, before
// it puts others in its places.
func (a *attachment) leave(ctx context.Context) error {
	list, err := a.s.containers(ctx, a.ch.project.Name, pick{services: a.ch.names, stopped: true})
	if err != nil {
		return err
	}
	c, err := a.s.client()
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].State == container.StateRunning {
			continue
		}
		if _, err := c.ContainerStop(ctx, list[i].ID, moby.ContainerStopOptions{Timeout: a.stop}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// settleCode finds the code that --exit-code-from asks for, when that container was
// stopped with the others.
func (a *attachment) settleCode(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.o.exitFrom == "" || a.why == nil || a.coded {
		return nil
	}
	c, err := a.s.client()
	if err != nil {
		return err
	}
	list, err := a.s.containers(ctx, a.ch.project.Name, pick{services: []string{a.o.exitFrom}, stopped: true})
	if err != nil || len(list) == 0 {
		return err
	}
	res, err := c.ContainerInspect(ctx, list[0].ID, moby.ContainerInspectOptions{})
	if err == nil && res.Container.State != nil {
		a.code = res.Container.State.ExitCode
	}
	return err
}
