package compose

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cluster"
	composefile "escale.dev/escale/internal/compose"
)

// again has another container take the place of one that an app keeps and that could not be
// started, for it has come to its end (refusal, a Conflict): the engine starts none twice. It
// blocks until that one was started, whatever becomes of it then.
func again(ctx context.Context, c *client.Client, x *container.Summary, refusal error) error {
	if !errdefs.IsConflict(refusal) {
		return refusal
	}
	project := x.Labels[composefile.LabelProject]
	id, err := c.AppAgain(ctx, project, x.Labels[cluster.LabelTask])
	if errdefs.IsNotFound(err) { // the app is kept no more, or its container is about to go
		return refusal
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", nameOf(x), err)
	}
	started := errors.New("started")
	err = c.AppFollow(ctx, project, func(app *client.App) error {
		for _, sv := range app.Services {
			for i := range sv.Tasks {
				t := &sv.Tasks[i]
				switch {
				case t.ID != id:
				case t.State == "rejected":
					return fmt.Errorf("container %s: %s", nameOf(x), t.Err)
				case ended(t) || t.State == "running" || t.Halted:
					return started
				default:
					return nil
				}
			}
		}
		return started // and has gone since
	})
	if errors.Is(err, started) {
		return nil
	}
	return err
}
