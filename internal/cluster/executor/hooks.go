package executor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// begin starts the container and does its PostStart hooks. One of which a hook fails is
// ended again: it must not stand beside the one that takes its place.
func (c *controller) begin(ctx context.Context, found Container) error {
	hooks := c.t.Spec.PostStart
	if len(hooks) > 0 && found.PID != 0 && c.now().Status.State == cluster.TaskStarting {
		// An engine has ended amid its hooks. Which of them are done, or under way still,
		// nobody knows: a start anew has each of them once.
		if err := c.x.c.Stop(ctx, found.ID, c.t.Spec.Grace); err != nil {
			return err
		}
	}
	if err := c.x.c.Start(ctx, found.ID); err != nil {
		return err
	}
	for _, h := range hooks {
		err := c.hook(ctx, found.ID, "post_start", h, 0)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return errors.Join(err, c.x.c.Stop(ctx, found.ID, c.t.Spec.Grace))
		}
	}
	return nil
}

// defaultGrace is how long a program has to end after its stop signal, in Docker.
const defaultGrace = 10 * time.Second

// least is what hooks leave of the grace at least.
const least = time.Second

// farewell does the PreStop hooks of a container that is about to be ended, and gives
// what they leave of its time of grace; 0 is all of it, as the container itself has it.
// One that fails is told of, and the end comes all the same.
func (c *controller) farewell(ctx context.Context, found Container) time.Duration {
	t, grace := c.now(), c.t.Spec.Grace
	// What a client stops is the client's to prepare for, as in Docker; and what runs
	// of a task that has ended was never meant to.
	if len(t.Spec.PreStop) == 0 || found.PID == 0 || t.Halted || t.Status.State.Ended() {
		return grace
	}
	whole := grace
	if stop := t.Spec.Container.StopTimeout; whole == 0 && stop != nil {
		whole = time.Duration(*stop) * time.Second
	} else if whole == 0 {
		whole = defaultGrace
	}
	end := time.Now().Add(whole)
	for _, h := range t.Spec.PreStop {
		left := time.Duration(0) // without bound
		if whole >= 0 {
			left = max(time.Until(end), time.Millisecond)
		}
		if err := c.hook(ctx, found.ID, "pre_stop", h, left); err != nil {
			if ctx.Err() == nil {
				c.x.log.Warn("a hook before the stop: it is stopped all the same", "container", found.Name, "error", err)
			}
			break
		}
	}
	if whole < 0 {
		return grace
	}
	return max(time.Until(end), least)
}

// now is the task as the store has it.
func (c *controller) now() *cluster.Task {
	if t, err := store.Find[*cluster.Task](c.x.s.View(), c.t.ID); err == nil {
		return t
	}
	return c.t
}

// told is how much of a hook's output an error has.
const told = 256

// hook runs one to its end.
func (c *controller) hook(ctx context.Context, id, which string, h cluster.Hook, timeout time.Duration) error {
	code, output, err := c.x.c.Exec(ctx, id, h, timeout)
	output = strings.TrimSpace(output)
	if len(output) > told {
		output = strings.ToValidUTF8(output[:told], "") + "..."
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s hook %q took longer than the %s of grace", which, strings.Join(h.Command, " "), timeout.Round(time.Millisecond))
	case err != nil:
		return fmt.Errorf("%s hook: %w", which, err)
	case code != 0 && output != "":
		return fmt.Errorf("%s hook exited with status %d: %s", which, code, output)
	case code != 0:
		return fmt.Errorf("%s hook exited with status %d", which, code)
	}
	c.x.log.Debug("a hook is done", "hook", which, "container", id, "output", output)
	return nil
}
