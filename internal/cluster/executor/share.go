package executor

import (
	"context"
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
)

// share has what is said of containers of other services, which is by their names, mean those
// of their present tasks: while one takes the place of another, a name may be either's.
func (c *controller) share(ctx context.Context, v store.View, host *container.HostConfig) {
	if !c.t.Shares() {
		return
	}
	mode := func(m string) string {
		if name, ok := strings.CutPrefix(m, "container:"); ok {
			return "container:" + c.present(ctx, v, name)
		}
		return m
	}
	host.NetworkMode = container.NetworkMode(mode(string(host.NetworkMode)))
	host.IpcMode, host.PidMode = container.IpcMode(mode(string(host.IpcMode))), container.PidMode(mode(string(host.PidMode)))
	host.VolumesFrom = slices.Clone(host.VolumesFrom)
	for i, from := range host.VolumesFrom {
		name, access, more := strings.Cut(from, ":")
		if name = c.present(ctx, v, name); more {
			name += ":" + access
		}
		host.VolumesFrom[i] = name
	}
}

// present is the id of the container of the newest task of the app that has a name and runs;
// without one, of the newest that may still, then of one that has done its work. It is the
// name when there is none at all.
func (c *controller) present(ctx context.Context, v store.View, name string) string {
	var best *cluster.Task
	for _, t := range store.List[*cluster.Task](v, store.OnNode(c.x.node)) {
		if t.App != c.t.App || t.Owner == c.t.Owner || t.ContainerName() != name || presence(t) == 0 {
			continue
		}
		if best == nil || presence(t) > presence(best) || presence(t) == presence(best) && t.Number > best.Number {
			best = t
		}
	}
	if best == nil {
		return name
	}
	found, err := c.x.c.Of(ctx, best.ID)
	if err != nil {
		return name // who makes the container says what is wrong
	}
	return found.ID
}

// presence is how much a task's container is the one of its place; 0 is not at all.
func presence(t *cluster.Task) int {
	switch {
	case t.Status.State == cluster.TaskRunning && !t.Desired.Stops():
		return 3
	case t.Live():
		return 2
	case t.Status.State == cluster.TaskComplete && t.Desired != cluster.TaskRemove:
		return 1
	}
	return 0
}
