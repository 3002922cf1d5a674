package executor

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
)

// aside is the name of a container whose own another has.
func aside(found Container, name string) string {
	return found.ID[:min(12, len(found.ID))] + "_" + name
}

// yield gives the container of an earlier task in the same place another name, so that
// this one can have its. Somebody else's keeps its name: taken is the error then.
func (c *controller) yield(ctx context.Context, name string, taken error) error {
	list, err := c.x.c.Kept(ctx)
	if err != nil {
		return errors.Join(taken, err)
	}
	for _, other := range list {
		if other.Name != name || other.Labels[LabelService] != c.t.Owner || other.Task == c.t.ID {
			continue
		}
		if err := c.x.c.Rename(ctx, other.ID, aside(other, name)); err != nil && !errdefs.IsNotFound(err) {
			return errors.Join(taken, err)
		}
		return nil
	}
	return taken
}

// giveBack gives the container before this one its name again, if it runs still: this
// one was to take its place, and has ended first.
func (c *controller) giveBack(ctx context.Context) error {
	name := c.t.ContainerName()
	c.x.names.Lock(name)
	defer c.x.names.Unlock(name)
	list, err := c.x.c.Kept(ctx)
	if err != nil {
		return err
	}
	var before, holder *Container
	for i := range list {
		switch other := &list[i]; {
		case other.Name == name:
			holder = other
		case other.Name == aside(*other, name) && other.PID != 0 && other.Labels[LabelService] == c.t.Owner:
			before = other
		}
	}
	if before == nil || holder != nil && (holder.Task != c.t.ID || holder.PID != 0) {
		return nil
	}
	if holder != nil {
		if err := c.x.c.Rename(ctx, holder.ID, aside(*holder, name)); err != nil {
			return err
		}
	}
	err = c.x.c.Rename(ctx, before.ID, name)
	if errdefs.IsConflict(err) || errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) {
		return nil // somebody was quicker, or it has just gone
	}
	return err
}
