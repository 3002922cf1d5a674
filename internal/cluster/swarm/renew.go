package swarm

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Renewed is what became of a secret or config that got other content under its name.
type Renewed struct {
	ID       string   // of the one that has the name now
	Services []string // whose tasks are exchanged for ones that have it
}

// maxRenewed is how many services can use what is renewed: all of it is one commit, with the
// one that is replaced and the one that replaces it.
const maxRenewed = store.MaxChanges - 2

// Renew gives a secret or config other content. Services that use it exchange their tasks
// as they do for every update, and have the old one again when they go back. NotFound.
func (s *Swarm) Renew(ctx context.Context, kind cluster.Kind, ref string, data []byte) (Renewed, error) {
	most := map[cluster.Kind]int{cluster.KindSecret: maxSecret, cluster.KindConfig: maxConfig}[kind]
	if len(data) == 0 || len(data) >= most {
		return Renewed{}, invalid("%s data must be larger than 0 and less than %d bytes", kind, most)
	}
	if kind == cluster.KindConfig {
		return renew[*cluster.Config](ctx, s, string(kind), ref, data)
	}
	return renew[*cluster.Secret](ctx, s, string(kind), ref, data)
}

// file are the parts that secrets and configs have in common.
func file(o cluster.Object) (name *string, data *[]byte, by *string) {
	switch o := o.(type) {
	case *cluster.Secret:
		return &o.Spec.Name, &o.Spec.Data, &o.Spec.ReplacedBy
	case *cluster.Config:
		return &o.Spec.Name, &o.Spec.Data, &o.Spec.ReplacedBy
	}
	return new(string), new([]byte), new(string)
}

// renew replaces an object by another of its name. What is replaced stays, by another name
// and with its id, as long as somebody has it or could go back to it.
func renew[T cluster.Object](ctx context.Context, s *Swarm, what, ref string, data []byte) (Renewed, error) {
	for {
		v := s.Store.View()
		o, err := find[T](v, what, ref)
		if err == nil {
			err = owned(v, what, o.Base())
		}
		if err != nil {
			return Renewed{}, err
		}
		name, is, by := file(o)
		switch {
		case *by != "":
			return Renewed{}, rpc(errdefs.ErrFailedPrecondition, "%s %s was replaced by %s", what, o.Base().ID, *by)
		case bytes.Equal(*is, data):
			return Renewed{ID: o.Base().ID, Services: []string{}}, nil
		}
		was, next := store.Copy(o), store.Copy(o)
		*next.Base() = cluster.Meta{ID: cluster.NewID(), Name: o.Base().Name, Labels: next.Base().Labels}
		out := Renewed{ID: next.Base().ID, Services: []string{}}
		called, content, _ := file(next)
		*called, *content = o.Base().Name, data
		called, _, by = file(was)
		*called, *by = o.Base().Name, out.ID
		was.Base().Name = o.Base().Name + "@" + o.Base().ID
		changes := []store.Change{store.Update(was), store.Create(next)}
		old := map[string]bool{o.Base().ID: true}
		for _, other := range store.List[T](v) {
			if n, _, by := file(other); *by != "" && *n == *name {
				old[other.Base().ID] = true // somebody may have gone back to it
			}
		}
		for _, service := range store.List[*cluster.Service](v) {
			if to := refer(service, what, old, out.ID); to != nil {
				out.Services = append(out.Services, service.Name)
				changes = append(changes, store.Update(to))
			}
		}
		if len(out.Services) > maxRenewed {
			return Renewed{}, say(errdefs.ErrFailedPrecondition, "%s %s is used by %d services: at most %d can be renewed at once", what, o.Base().Name, len(out.Services), maxRenewed)
		}
		slices.Sort(out.Services)
		if _, err = s.Store.Commit(ctx, changes...); errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return Renewed{}, fmt.Errorf("%s %s: %w", what, o.Base().Name, err)
		}
		return out, nil
	}
}

// refer is a service that uses another secret or config in the place of old ones; nil when
// it uses none of them. A job has it when it is done the next time.
func refer(o *cluster.Service, what string, old map[string]bool, id string) *cluster.Service {
	next := store.Copy(o)
	refs, changed := next.Spec.Task.Secrets, false
	if what == "config" {
		refs = next.Spec.Task.Configs
	}
	for i := range refs {
		if old[refs[i].ID] {
			refs[i].ID, changed = id, true
		}
	}
	if !changed {
		return nil
	}
	if asked := next.Spec.Swarm; asked != nil && asked.TaskTemplate.ContainerSpec != nil {
		referAsked(asked.TaskTemplate.ContainerSpec, old, id)
	}
	if o.Spec.Mode.Job == nil && !o.Spec.Mode.GlobalJob {
		next.Spec.Number = number(next, o)
	}
	before := store.Copy(o).Spec
	next.Previous = &before
	next.Status.Rollout, next.Status.Wanted = nil, nil
	return next
}

// referAsked does the same in what was asked, as clients are told it.
func referAsked(c *swarm.ContainerSpec, old map[string]bool, id string) {
	for _, r := range c.Secrets {
		if r != nil && old[r.SecretID] {
			r.SecretID = id
		}
	}
	for _, r := range c.Configs {
		if r != nil && old[r.ConfigID] {
			r.ConfigID = id
		}
	}
}
