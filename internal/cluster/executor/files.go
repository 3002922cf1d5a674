package executor

import (
	"context"
	"fmt"
	"strconv"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// files sees to secrets and configs and gives their paths, and where they are to be in
// the container.
func (c *controller) files(ctx context.Context, v store.View) (paths, targets []string, err error) {
	list, targets, err := c.content(v)
	if err != nil || len(list) == 0 {
		return nil, nil, err
	}
	paths, err = c.x.supplies.Files(ctx, c.t.ID, list)
	return paths, targets, err
}

// content is what secrets and configs hold.
func (c *controller) content(v store.View) (list []File, targets []string, err error) {
	add := func(what string, ref cluster.FileRef, data []byte, template bool) error {
		f := File{Data: data, Mode: ref.Mode}
		if template {
			var err error
			if f.Data, err = c.render(v, data); err != nil {
				return fmt.Errorf("%s %s: %w: %w", what, ref.Name, err, errdefs.ErrInvalidArgument)
			}
		}
		for to, id := range map[*int]string{&f.UID: ref.UID, &f.GID: ref.GID} {
			if id == "" {
				continue
			}
			n, err := strconv.Atoi(id)
			if err != nil {
				return fmt.Errorf("%s %s: %q is no id of a user or group: %w", what, ref.Name, id, errdefs.ErrInvalidArgument)
			}
			*to = n
		}
		list, targets = append(list, f), append(targets, ref.Target)
		return nil
	}
	for _, ref := range c.t.Spec.Secrets {
		o, err := store.Referred[*cluster.Secret](v, ref, c.app(v))
		if err == nil {
			err = add("secret", ref, o.Spec.Data, o.Spec.Template)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	for _, ref := range c.t.Spec.Configs {
		o, err := store.Referred[*cluster.Config](v, ref, c.app(v))
		if err == nil {
			err = add("config", ref, o.Spec.Data, o.Spec.Template)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return list, targets, nil
}

// app is the name of the app that the task is of; "" is none.
func (c *controller) app(v store.View) string {
	s, err := store.Find[*cluster.Service](v, c.t.Owner)
	if err != nil || s.Owner == "" {
		return ""
	}
	a, err := store.Find[*cluster.App](v, s.Owner)
	if err != nil {
		return ""
	}
	return a.Name
}
