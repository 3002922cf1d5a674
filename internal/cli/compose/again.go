package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cluster"
	composefile "escale.dev/escale/internal/compose"
)

// again has another container take the place of one that an app keeps and that could not be
// started (refusal), if that was because it has come to its end (a Conflict): the engine starts
// none twice. It blocks until that one was started, whatever becomes of it then, but not for ever
// when that has to wait. Other refusals stand.
func again(ctx context.Context, c *client.Client, x *container.Summary, refusal error) error {
	return againWithin(ctx, c, x, refusal, standstill)
}

func againWithin(ctx context.Context, c *client.Client, x *container.Summary, refusal error, still time.Duration) error {
	if !errdefs.IsConflict(refusal) {
		return refusal
	}
	project, task := x.Labels[composefile.LabelProject], x.Labels[cluster.LabelTask]
	id, err := c.AppAgain(ctx, project, task)
	if errdefs.IsNotFound(err) { // the app is kept no more, or its container is about to go
		return refusal
	}
	if err == nil && id == task {
		var lives bool
		if lives, err = alive(ctx, c, project, task); lives {
			return refusal // it is not for its end that it was refused
		}
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", nameOf(x), err)
	}
	if err := awaitStart(ctx, c, project, id, still); err != nil {
		return fmt.Errorf("container %s: %w", nameOf(x), err)
	}
	return nil
}

// alive tells whether an app has a task that has not ended.
func alive(ctx context.Context, c *client.Client, project, task string) (bool, error) {
	app, err := c.App(ctx, project)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	t := taskOf(app, task)
	return t != nil && !ended(t), nil
}

// taskOf is a task of an app by its id; nil when it has none.
func taskOf(app *client.App, id string) *client.AppTask {
	for _, sv := range app.Services {
		for i := range sv.Tasks {
			if sv.Tasks[i].ID == id {
				return &sv.Tasks[i]
			}
		}
	}
	return nil
}

// errStarted ends the look at a task.
var errStarted = errors.New("it was started")

// awaitStart blocks until a task of an app was started, or has gone. It is an error that its node
// cannot make it, and that it has waited for a node or for another service for so long, though it
// may start later.
func awaitStart(ctx context.Context, c *client.Client, project, task string, still time.Duration) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	waits, since := "", time.NewTimer(time.Hour)
	defer func() { since.Stop() }()
	err := c.AppFollow(ctx, project, func(app *client.App) error {
		why, err := begun(app, task)
		if err != nil || why == waits {
			return err
		}
		since.Stop()
		if waits = why; why != "" {
			since = time.AfterFunc(still, func() { end(fmt.Errorf("it is not started yet: %s", why)) })
		}
		return nil
	})
	switch {
	case errors.Is(err, errStarted):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// begun says what a task waits for, "" while it is being made; errStarted when it was started or
// has gone, and what is wrong when it cannot be made.
func begun(app *client.App, task string) (waits string, err error) {
	switch t := taskOf(app, task); {
	case t == nil:
		return "", errStarted
	case t.State == "rejected":
		return "", errors.New(cmp.Or(t.Err, t.Message, t.State))
	case ended(t) || t.State == "running" || t.Halted:
		return "", errStarted
	case onItsWay(t):
		return "", nil
	default:
		return cmp.Or(t.Err, t.Message, t.State), nil
	}
}

// settled is an app once it is known of all that has ended whether others take its place, which the
// engine decides within milliseconds. NotFound.
func settled(ctx context.Context, c *client.Client, name string) (*client.App, error) {
	app, err := c.App(ctx, name)
	if err != nil || !undecided(app) {
		return app, err
	}
	soon, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	// Without more news it is as it was seen.
	_ = c.AppFollow(soon, name, func(now *client.App) error {
		if app = now; !undecided(now) {
			return errReached
		}
		return nil
	})
	return app, ctx.Err()
}

// undecided tells whether the newest of a place has ended and is to run still.
func undecided(app *client.App) bool {
	for i := range app.Services {
		sv := &app.Services[i]
		for j := range sv.Tasks {
			if t := &sv.Tasks[j]; newest(sv, j) && ended(t) && t.Desired == "running" {
				return true
			}
		}
	}
	return false
}
