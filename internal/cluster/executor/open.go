package executor

import (
	"context"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// Open makes an engine's containers and files fit the store, before anything of them is
// started: what a reboot took of files is there again, those of tasks that are no more, or
// have ended, go, and containers that another orchestrator has made are let go. Such are left when
// the store was lost and a new one has taken its place: their tasks are known to nobody,
// and what they hold is not ours to throw away.
func (x *Executor) Open(ctx context.Context) error {
	list, err := x.c.Kept(ctx)
	if err != nil {
		return err
	}
	v := x.s.View()
	for _, found := range list {
		if found.Node != x.node {
			x.log.Warn("a container was kept by an orchestrator that is no more: it is an ordinary one from now on", "container", found.Name, "task", found.Task)
			if err := x.c.Release(ctx, found.ID); err != nil {
				return err
			}
			continue
		}
		t, err := store.Find[*cluster.Task](v, found.Task)
		if err != nil || t.Status.State.Ended() {
			continue
		}
		c := &controller{x: x, t: t}
		if _, _, err := c.files(ctx, v); err != nil {
			x.log.Warn("files of a task", "task", t.ID, "error", err) // what cannot start for want of them is replaced
		}
	}
	return x.supplies.Sweep(ctx, func(task string) bool { return !x.over(task) })
}
