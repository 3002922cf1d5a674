package executor

import (
	"context"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// How often a network that is in use is looked at, and how long it may be so though no
// task is on it any more: what a container had is taken down a moment after its end.
const (
	look     = 100 * time.Millisecond
	lingered = 10 * time.Second
)

// network sees to it that a network is there. When it has to be made anew, that waits
// until the tasks that are on the old one have ended, whom their own loop tells to.
func (c *controller) network(ctx context.Context, n cluster.NetworkSpec) error {
	free := time.Time{}
	for {
		err := c.x.supplies.Network(ctx, n)
		switch {
		case !errdefs.IsUnavailable(err):
			return err
		case c.used(n):
			free = time.Time{}
		case free.IsZero():
			free = time.Now()
		case time.Since(free) > lingered:
			return err // by others than tasks: they are named in it
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// used tells whether tasks run that were made for a network as it was before.
func (c *controller) used(n cluster.NetworkSpec) bool {
	for _, t := range store.List[*cluster.Task](c.x.s.View()) {
		on := slices.ContainsFunc(t.Networks, func(a cluster.Attachment) bool { return a.Network == n.Name && a.Made < n.Made })
		if on && t.ID != c.t.ID && !t.Status.State.Ended() && !t.Status.State.Before(cluster.TaskStarting) {
			return true
		}
	}
	return false
}
