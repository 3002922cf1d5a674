package compose

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/compose/progress"
)

// errReached ends a follow.
var errReached = errors.New("reached")

// until follows an app until it is as a plan has it, and shows each service's way. What
// fails is told with what its container wrote last, what stands still with its reason.
func (s apps) until(ctx context.Context, b *progress.Board, plan *client.AppPlan, p patience) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	actions := map[string]string{}
	for _, st := range plan.Steps {
		switch {
		case st.Kind == "service":
			actions[st.Name] = st.Action
		case st.Action == "create":
			b.Set(strings.ToUpper(st.Kind[:1])+st.Kind[1:]+" "+st.Name, progress.Done, "Created")
		case st.Kind == "network" && st.Action == "replace":
			b.Set("Network "+st.Name, progress.Done, "Recreated")
		}
	}
	if p.seconds > 0 {
		var stop func()
		ctx, stop = context.WithTimeoutCause(ctx, time.Duration(p.seconds)*time.Second, fmt.Errorf("app %s: not all of it is up after %d seconds; it goes on: %s ps %[1]s", plan.App, p.seconds, s.engine.Name))
		defer stop()
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	still := &stall{after: p.still, name: s.engine.Name}
	defer still.stop()
	var last *client.App
	err = c.AppFollow(ctx, plan.App, func(app *client.App) error {
		last = app
		still.see(app, end)
		for i := range app.Services {
			s.showService(b, &app.Services[i], actions[app.Services[i].Name], app.Asked >= plan.To && app.Phase == "changing")
		}
		switch {
		case app.Asked > plan.To:
			return fmt.Errorf("app %s: somebody has asked for another change meanwhile", plan.App)
		case app.Asked < plan.To || app.Number < plan.To:
			return nil
		case app.Phase == "failed", app.Phase == "reverted":
			return fmt.Errorf("app %s: %s", plan.App, app.Message)
		case app.Phase == "steady" && !waking(app, actions), p.created && allMade(app):
			return errReached
		}
		return nil
	})
	switch {
	case errors.Is(err, errReached):
		return nil
	case err == nil:
		return fmt.Errorf("app %s: it was removed meanwhile", plan.App)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case last == nil || last.Phase != "failed" && last.Phase != "reverted":
		return err
	}
	return s.explain(ctx, c, b, last, err)
}

// waking tells whether services that the plan touches are not up yet: what clients had
// stopped starts again without that the app counts as changing.
func waking(app *client.App, actions map[string]string) bool {
	for _, sv := range app.Services {
		if a := actions[sv.Name]; a != "" && a != "keep" && a != "remove" && sv.Healthy < sv.Replicas {
			return true
		}
	}
	return false
}

// allMade tells whether each task has its container, or waits on nothing but its start.
func allMade(app *client.App) bool {
	for _, sv := range app.Services {
		n := uint64(0)
		for _, t := range sv.Tasks {
			if t.Container != "" {
				n++
			}
		}
		if n < sv.Replicas {
			return false
		}
	}
	return true
}

// newest tells whether no later task has the place of a service's i-th.
func newest(sv *client.AppService, i int) bool {
	t := &sv.Tasks[i]
	return i == 0 || sv.Tasks[i-1].Slot != t.Slot || t.Slot == 0 && sv.Tasks[i-1].Node != t.Node
}

// ended tells whether nothing more comes of a task.
func ended(t *client.AppTask) bool {
	switch t.State {
	case "complete", "shutdown", "failed", "rejected", "remove", "orphaned":
		return true
	}
	return false
}

// showService shows how far a service is. What is to be replaced is not done while the
// app is changing: its exchange may not have begun.
func (s apps) showService(b *progress.Board, sv *client.AppService, action string, changing bool) {
	id := "Service " + sv.Name
	count := ""
	if sv.Replicas > 1 {
		count = fmt.Sprintf(" %d/%d", min(sv.Healthy, sv.Replicas), sv.Replicas)
	}
	if r := sv.Rollout; r != nil {
		switch r.State {
		case "updating":
			if strings.HasPrefix(r.Message, "waits for ") {
				count += ": " + r.Message
			}
			b.Set(id, progress.Working, "Updating"+count)
			return
		case "rollback_started":
			b.Set(id, progress.Warning, "Going back"+count+": "+r.Message)
			return
		case "paused", "rollback_paused":
			b.Set(id, progress.Failed, "Paused"+count+": "+r.Message)
			return
		}
	}
	switch {
	case action == "replace" && changing && sv.Healthy >= sv.Replicas:
		b.Set(id, progress.Working, "Updating"+count)
	case sv.Healthy >= sv.Replicas:
		b.Set(id, progress.Done, finished(sv, action)+count)
	default:
		text := "Starting" + count
		if why := slowest(sv); why != "" {
			text += ": " + why
		}
		b.Set(id, progress.Working, text)
	}
}

// finished is what has become of a service that is as it is to be.
func finished(sv *client.AppService, action string) string {
	halted := 0
	for _, t := range sv.Tasks {
		if t.Halted && !ended(&t) {
			halted++
		}
	}
	switch {
	case halted > 0 && action != "keep" && action != "":
		return "Created"
	case halted > 0:
		return "Stopped"
	case sv.Mode == "job":
		return "Completed"
	case sv.Mode == "schedule":
		return "Scheduled"
	case action == "create", action == "start":
		return "Started"
	case action == "replace":
		return "Recreated"
	}
	return "Running"
}

// slowest says what a service that is not up waits for: a failure before all else, but not
// one of what it was before.
func slowest(sv *client.AppService) string {
	why, newest := "", uint64(0)
	for i := range sv.Tasks {
		newest = max(newest, sv.Tasks[i].Number)
	}
	for i := range sv.Tasks {
		t := &sv.Tasks[i]
		switch {
		case t.Healthy && t.State == "running":
		case t.Number == newest && t.Err != "" && (t.State == "failed" || t.State == "rejected"):
			return t.Name + ": " + t.Err
		case !ended(t):
			why = cmp.Or(why, t.Err, t.Message, t.State)
		}
	}
	return why
}

// tailLines is how much of a failed container's log is shown.
const tailLines = "10"

// explain adds to a failure what failed, what it wrote last, and what can be done.
func (s apps) explain(ctx context.Context, c *client.Client, b *progress.Board, app *client.App, failure error) error {
	text := failure.Error()
	if t := culprit(app, text); t != nil {
		if !strings.Contains(text, t.Err) {
			text += "\n" + t.Name + ": " + t.Err
		}
		if log := lastLines(ctx, c, t.Container); log != "" {
			text += "\nWhat " + t.Name + " wrote last:\n" + log
		}
	}
	next := fmt.Sprintf("The engine goes on trying. See '%s logs %s'; change the file and say '%[1]s up' again", s.engine.Name, app.Name)
	if strings.Contains(text, fruitless) {
		next = fmt.Sprintf("It is not tried again by itself. See '%s logs %s'; '%[1]s up -d --force-recreate --no-deps SERVICE' has a service tried again, or change the file and say '%[1]s up' again", s.engine.Name, app.Name)
	}
	if app.Phase == "reverted" {
		next = fmt.Sprintf("It is what it was before. Change the file and say '%s up' again", s.engine.Name)
	} else if app.Number > 1 {
		next += fmt.Sprintf(", or go back with '%s rollback %s'", s.engine.Name, app.Name)
	}
	b.Close()
	return errors.New(text + "\n" + next + ".")
}

// fruitless is what the engine says of a service whose good end is waited for, and does not come.
const fruitless = " didn't complete successfully: "

// culprit is the task that failed last, of those that what is told of the app can mean:
// of places in which something failed long ago the engine keeps that, too.
func culprit(app *client.App, told string) *client.AppTask {
	var worst *client.AppTask
	for i := range app.Services {
		for j := range app.Services[i].Tasks {
			t := &app.Services[i].Tasks[j]
			meant := app.Message == "" || !strings.Contains(told, app.Message) || strings.Contains(told, t.Name+": "+t.Err) || strings.HasSuffix(told, app.Services[i].Name+": "+t.Err) ||
				strings.Contains(told, fmt.Sprintf("service %q", app.Services[i].Name)+fruitless)
			if (t.State == "failed" || t.State == "rejected") && meant && (worst == nil || t.Since.After(worst.Since)) {
				worst = t
			}
		}
	}
	return worst
}

// lastLines are the last lines that a container wrote, each behind a bar.
func lastLines(ctx context.Context, c *client.Client, id string) string {
	if id == "" {
		return ""
	}
	var out bytes.Buffer
	p := &printer{out: &out, err: &out}
	x := &container.Summary{ID: id}
	// Without a log there is still the reason.
	_ = p.show(ctx, c, x, moby.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: tailLines})
	if out.Len() == 0 {
		return ""
	}
	return "  | " + strings.ReplaceAll(strings.TrimRight(out.String(), "\n"), "\n", "\n  | ")
}

// untilHealthy waits until containers run and those with a check are healthy.
func (s apps) untilHealthy(ctx context.Context, b *progress.Board, list []container.Summary, seconds int) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	if seconds > 0 {
		var stop func()
		ctx, stop = context.WithTimeoutCause(ctx, time.Duration(seconds)*time.Second, fmt.Errorf("not all is healthy after %d seconds", seconds))
		defer stop()
	}
	return s.parallel(len(list), func(i int) error {
		id := "Container " + nameOf(&list[i])
		for {
			res, err := c.ContainerInspect(ctx, list[i].ID, moby.ContainerInspectOptions{})
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return err
			}
			st := res.Container.State
			switch {
			case !st.Running && st.ExitCode != 0:
				b.Set(id, progress.Failed, "Error")
				return fmt.Errorf("container %s exited (%d)", nameOf(&list[i]), st.ExitCode)
			case st.Health != nil && st.Health.Status == container.Unhealthy:
				b.Set(id, progress.Failed, "Error")
				return fmt.Errorf("container %s is unhealthy", nameOf(&list[i]))
			case st.Health == nil || st.Health.Status == container.NoHealthcheck || st.Health.Status == container.Healthy:
				b.Set(id, progress.Done, "Healthy")
				return nil
			}
			b.Set(id, progress.Working, "Waiting")
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
}
