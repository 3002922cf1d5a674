// Package progress waits until a service has become what its spec says, or the nodes
// have what a new root of trust has signed, and shows how far that is: with the bars
// and words of Docker's client.
package progress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"

	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cli/verb"
)

// Engine is what is asked, again and again.
type Engine interface {
	ServiceInspect(ctx context.Context, id string, o moby.ServiceInspectOptions) (moby.ServiceInspectResult, error)
	TaskList(ctx context.Context, o moby.TaskListOptions) (moby.TaskListResult, error)
	NodeList(ctx context.Context, o moby.NodeListOptions) (moby.NodeListResult, error)
	SwarmInspect(ctx context.Context, o moby.SwarmInspectOptions) (moby.SwarmInspectResult, error)
}

const (
	interval = 200 * time.Millisecond // between two looks
	// defaultMonitor is how long a service is watched after it is as it should be, when
	// its policy of updates does not say.
	defaultMonitor = 5 * time.Second
	mostBars       = 20 // tasks with a line of their own
)

// screen says what has changed; what was said last of a line is not said again.
type screen struct {
	yield func(jsonstream.Message, error) bool
	last  map[string]jsonstream.Progress
	words map[string]string
}

// line changes the line of an id.
func (s *screen) line(id, words string, p jsonstream.Progress) {
	if old, ok := s.words[id]; ok && old == words && s.last[id] == p {
		return
	}
	s.words[id], s.last[id] = words, p
	s.yield(jsonstream.Message{ID: id, Status: words, Progress: &p}, nil)
}

// say writes a line that stays.
func (s *screen) say(id, words string) {
	clear(s.words)
	s.yield(jsonstream.Message{ID: id, Status: words}, nil)
}

// show runs what writes to a screen, on out, or nowhere when quiet.
func show(out io.Writer, quiet bool, work func(*screen) error) error {
	if quiet {
		return work(&screen{yield: func(jsonstream.Message, error) bool { return true }, last: map[string]jsonstream.Progress{}, words: map[string]string{}})
	}
	var fd uintptr
	if f, ok := out.(*os.File); ok {
		fd = f.Fd()
	}
	var failed error
	messages := func(yield func(jsonstream.Message, error) bool) {
		failed = work(&screen{yield: yield, last: map[string]jsonstream.Progress{}, words: map[string]string{}})
	}
	return errors.Join(jsonmessage.DisplayJSONMessages(messages, out, fd, tty.IsTerminal(out), nil), failed)
}

// Service waits until a service has the tasks that its spec asks for, they have run
// for a while, and an update of it is over. It blocks until then, an error of the
// engine, or ctx; Ctrl-C is no error: the service goes on without being watched. name
// is the program's.
func Service(ctx context.Context, c Engine, name, id string, out io.Writer, quiet bool) error {
	return show(out, quiet, func(s *screen) error {
		w := watch{screen: s, id: id, monitor: defaultMonitor}
		err := again(ctx, func() (bool, error) { return w.look(ctx, c) })
		if err != errInterrupted {
			return err
		}
		if w.converged.IsZero() {
			s.say("", "Operation continuing in background.")
			s.say("", fmt.Sprintf("Use `%s service ps %s` to check progress.", name, id))
		}
		return nil
	})
}

var errInterrupted = errors.New("interrupted")

// again looks until it is over: errInterrupted after Ctrl-C.
func again(ctx context.Context, look func() (over bool, err error)) error {
	for {
		over, err := look()
		if ctx.Err() == nil {
			if over || err != nil {
				return err
			}
			select {
			case <-time.After(interval):
			case <-ctx.Done():
			}
		}
		switch {
		case ctx.Err() == nil:
		case verb.Interrupted(ctx):
			return errInterrupted
		default:
			return context.Cause(ctx)
		}
	}
}

// watch is a service that is waited for.
type watch struct {
	*screen
	id        string
	monitor   time.Duration
	converged time.Time // since when it is as it should be; zero: it is not
	tasks     counter
	rollback  bool
	after     string // what is said in the end
}

// counter tells whether the tasks are those that a service asks for, and shows them.
type counter interface {
	count(s *swarm.Service, tasks []swarm.Task, live map[string]bool, rollback bool) bool
}

// look looks at the service once, and tells whether the waiting is over.
func (w *watch) look(ctx context.Context, c Engine) (over bool, err error) {
	res, err := c.ServiceInspect(ctx, w.id, moby.ServiceInspectOptions{})
	if err != nil {
		return false, err
	}
	s := &res.Service
	if u := s.Spec.UpdateConfig; u != nil && u.Monitor != 0 {
		w.monitor = u.Monitor
	}
	if w.tasks == nil {
		if w.tasks = w.counterOf(s); w.tasks == nil {
			return false, errors.New("unrecognized service mode")
		}
	}
	if s.UpdateStatus != nil {
		if over, err = w.updated(s.UpdateStatus); over || err != nil {
			return over, err
		}
	}
	if !w.converged.IsZero() && time.Since(w.converged) >= w.monitor {
		w.line("verify", fmt.Sprintf("Service %s converged", w.id), jsonstream.Progress{})
		if w.after != "" {
			w.say("rollback", w.after)
		}
		return true, nil
	}
	tasks, err := c.TaskList(ctx, moby.TaskListOptions{Filters: moby.Filters{}.Add("service", s.ID).Add("_up-to-date", "true")})
	if err != nil {
		return false, err
	}
	nodes, err := c.NodeList(ctx, moby.NodeListOptions{})
	if err != nil {
		return false, err
	}
	live := map[string]bool{}
	for _, n := range nodes.Items {
		if n.Status.State != swarm.NodeStateDown {
			live[n.ID] = true
		}
	}
	return w.verify(w.tasks.count(s, tasks.Items, live, w.rollback), s.JobStatus != nil), nil
}

// updated looks at how far an update is.
func (w *watch) updated(u *swarm.UpdateStatus) (over bool, err error) {
	switch u.State {
	case swarm.UpdateStateUpdating:
		w.rollback = false
	case swarm.UpdateStateCompleted:
		return w.converged.IsZero(), nil
	case swarm.UpdateStatePaused:
		return false, fmt.Errorf("service update paused: %s", u.Message)
	case swarm.UpdateStateRollbackStarted:
		if !w.rollback && u.Message != "" {
			w.line("rollback", u.Message, jsonstream.Progress{})
		}
		w.rollback = true
	case swarm.UpdateStateRollbackPaused:
		return false, fmt.Errorf("service rollback paused: %s", u.Message)
	case swarm.UpdateStateRollbackCompleted:
		if w.converged.IsZero() {
			w.after = u.Message
		}
		w.rollback = true
	}
	return false, nil
}

// verify takes note of whether the tasks are as they should be. Jobs are over then;
// others are watched for a while.
func (w *watch) verify(good, job bool) (over bool) {
	switch {
	case good && job:
		w.say("", "job complete")
		return true
	case good:
		if w.converged.IsZero() {
			w.converged = time.Now()
		}
		if left := w.monitor - time.Since(w.converged); left >= 0 {
			w.line("verify", fmt.Sprintf("Waiting %d seconds to verify that tasks are stable...", left/time.Second+1), jsonstream.Progress{})
		}
	case !w.converged.IsZero():
		w.line("verify", "Detected task failure", jsonstream.Progress{})
		w.converged = time.Time{}
	}
	return false
}
