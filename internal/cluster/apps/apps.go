// Package apps is what clients ask of apps: to be made and kept, changed, told of,
// removed, let go. It writes what is wanted into the store, where the loops see it, and
// knows nothing else.
package apps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// historyKept is how many specs an app remembers beside its present one.
const historyKept = 10

// Apps answers for apps. Its methods may be called from several goroutines.
type Apps struct {
	s   store.Store
	n   Engine
	now func() time.Time
}

// Engine is that of the node where apps are asked for.
type Engine interface {
	// Node is the id of the node.
	Node() string

	// Driver is that of a network that is the node's own; "" when it has none of the name.
	Driver(network string) string

	// Has tells whether a volume is there.
	Has(ctx context.Context, volume string) bool

	// Strangers are the names of the containers on a network that are not an app's; none
	// when there is no such network.
	Strangers(network, app string) []string

	// Missing are those of some networks on which a container of some tasks is not though
	// it runs: somebody has disconnected it.
	Missing(tasks, networks []string) []string
}

// New makes Apps of a store.
func New(s store.Store, n Engine) *Apps {
	return &Apps{s, n, func() time.Time { return time.Now().UTC() }}
}

// Put says how an app is changed.
type Put struct {
	DryRun  bool     // only the plan
	Merge   bool     // services that the spec does not have stay as they are
	Remove  []string // services that go, with Merge
	Replace []string // services that get new containers though nothing has changed
	Create  bool     // of services that are new containers are made, but not started

	// RenewVolumes gives containers that are exchanged new anonymous volumes, rather
	// than those of the containers before.
	RenewVolumes bool
}

// Put has an app be as spec says, with what clients had stopped of it running again, and
// returns what will be done. Kinds: InvalidArgument for a bad spec, Conflict for an app
// that is being removed, or whose name others have.
func (a *Apps) Put(ctx context.Context, name string, spec cluster.AppSpec, o Put) (*Plan, error) {
	var away map[string][]string
	p, err := a.change(ctx, name, o.DryRun, func(was *cluster.App) (cluster.AppSpec, []string, error) {
		var old cluster.AppSpec
		if was != nil {
			old = cluster.Copy(was).Spec
		}
		spec, err := a.settle(name, old, spec)
		if err != nil {
			return spec, nil, fmt.Errorf("app %q: %w", name, err)
		}
		next, err := merge(name, old, spec, o)
		if err == nil {
			if away = a.disconnected(name, &old, &next, sortedKeys(spec.Services)); len(away) > 0 {
				// As if they were asked to be made anew: what depends on them follows.
				o := o
				o.Replace = append(slices.Clone(o.Replace), sortedKeys(away)...)
				next, err = merge(name, old, spec, o)
			}
		}
		if err == nil {
			err = check(name, &next, a.clustered(a.s.View()))
		}
		if err != nil {
			return next, nil, fmt.Errorf("app %q: %w", name, err)
		}
		return next, sortedKeys(spec.Services), nil
	})
	if err != nil {
		return nil, err
	}
	for i := range p.Steps {
		if st := &p.Steps[i]; st.Kind == "service" && len(away[st.Name]) > 0 {
			st.Why = []string{"disconnected from " + strings.Join(away[st.Name], ", ")}
		}
	}
	return p, nil
}

// Scale changes how many replicas services of an app have. NotFound; InvalidArgument for
// a service that has no replicas.
func (a *Apps) Scale(ctx context.Context, name string, replicas map[string]uint64) (*Plan, error) {
	return a.change(ctx, name, false, func(was *cluster.App) (cluster.AppSpec, []string, error) {
		if was == nil {
			return cluster.AppSpec{}, nil, notFound(name)
		}
		next := cluster.Copy(was).Spec
		for _, service := range sortedKeys(replicas) {
			s, ok := next.Services[service]
			switch {
			case !ok:
				return next, nil, say(errdefs.ErrNotFound, "app %s has no service %q", name, service)
			case s.Mode.Replicated == nil:
				return next, nil, say(errdefs.ErrInvalidArgument, "service %q of app %s is %s and has no replicas", service, name, mode(s.Mode))
			case s.Task.Name != "" && replicas[service] > 1:
				return next, nil, say(errdefs.ErrInvalidArgument, "service %q of app %s: %d containers cannot all be named %q", service, name, replicas[service], s.Task.Name)
			}
			s.Mode.Replicated = &cluster.Replicated{Replicas: replicas[service]}
			next.Services[service] = s
		}
		return next, nil, check(name, &next, a.clustered(a.s.View()))
	})
}

// Rollback has an app be what it was at a number of its history; 0 is what it was
// before. NotFound.
func (a *Apps) Rollback(ctx context.Context, name string, to uint64, dryRun bool) (*Plan, error) {
	return a.change(ctx, name, dryRun, func(was *cluster.App) (cluster.AppSpec, []string, error) {
		if was == nil {
			return cluster.AppSpec{}, nil, notFound(name)
		}
		for _, r := range cluster.Copy(was).History {
			if to == 0 || r.Spec.Number == to {
				spec, err := a.settle(name, was.Spec, r.Spec)
				if err != nil {
					return spec, nil, fmt.Errorf("app %q: %w", name, err)
				}
				next, err := merge(name, was.Spec, spec, Put{})
				return next, sortedKeys(spec.Services), err
			}
		}
		if to == 0 {
			return cluster.AppSpec{}, nil, say(errdefs.ErrNotFound, "app %s has never been anything else", name)
		}
		return cluster.AppSpec{}, nil, say(errdefs.ErrNotFound, "app %s has no revision %d: see \"escale history %s\"", name, to, name)
	})
}

func notFound(name string) error { return say(errdefs.ErrNotFound, "No such app: %s", name) }

// change writes the next spec of an app, which next makes of the app as it is, nil when
// there is none. What clients stopped of the services that are named runs again.
func (a *Apps) change(ctx context.Context, name string, dryRun bool, next func(*cluster.App) (cluster.AppSpec, []string, error)) (*Plan, error) {
	for {
		v := a.s.View()
		was, err := store.Named[*cluster.App](v, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if was != nil && (was.Spec.Removed || was.Spec.Released) {
			return nil, say(errdefs.ErrConflict, "app %s is being removed: try again when it has gone", name)
		}
		spec, wake, err := next(was)
		if err != nil {
			return nil, err
		}
		if err := disjoint(v, name, &spec); err != nil {
			return nil, fmt.Errorf("app %q: %w", name, err)
		}
		if err := a.free(was, name, &spec); err != nil {
			return nil, fmt.Errorf("app %q: %w", name, err)
		}
		halted := haltedTasks(v, was, wake)
		p := plan(name, was, &spec, halted)
		tellKept(v, p, &spec)
		if dryRun {
			return p, nil
		}
		if err = a.write(ctx, was, name, spec, p, halted); !errdefs.IsConflict(err) && !errdefs.IsAlreadyExists(err) {
			return p, err
		}
	}
}

// write commits what change has decided.
func (a *Apps) write(ctx context.Context, was *cluster.App, name string, spec cluster.AppSpec, p *Plan, halted []*cluster.Task) error {
	changes := a.found(ctx, name, &spec)
	switch {
	case was == nil:
		spec.Number = p.To
		changes = append(changes, store.Create(&cluster.App{Meta: cluster.Meta{Name: name}, Spec: spec, AskedAt: a.now()}))
	case p.To != p.From:
		app := cluster.Copy(was)
		app.History = slices.Insert(app.History, 0, cluster.AppRevision{At: was.AskedAt, Spec: app.Spec})
		app.History = app.History[:min(len(app.History), historyKept)]
		spec.Number = p.To
		app.Spec, app.AskedAt, app.Status.Phase, app.Status.Message = spec, a.now(), cluster.AppChanging, ""
		changes = append(changes, store.Update(app))
	}
	for len(changes) > 0 || len(halted) > 0 {
		for len(halted) > 0 && len(changes) < store.MaxChanges {
			t := cluster.Copy(halted[0])
			t.Halted, halted = false, halted[1:]
			changes = append(changes, store.Update(t))
		}
		if _, err := a.s.Commit(ctx, changes...); err != nil {
			return err // on a conflict what is left is found anew
		}
		changes = nil
	}
	return nil
}

// haltedTasks are those of the services that clients have stopped.
func haltedTasks(v store.View, app *cluster.App, services []string) (out []*cluster.Task) {
	if app == nil {
		return nil
	}
	for _, name := range services {
		s, err := store.Named[*cluster.Service](v, cluster.Full(app.Name, name))
		if err != nil {
			continue
		}
		for _, t := range store.List[*cluster.Task](v, store.Owner(s.ID)) {
			if t.Halted && t.Desired != cluster.TaskRemove {
				out = append(out, t)
			}
		}
	}
	return out
}

// Remove has an app removed, its volumes with it when volumes says so. It returns at
// once; the app is there until nothing of it is left. Volumes that one of that name has left
// behind in a cluster go with it, too. NotFound.
func (a *Apps) Remove(ctx context.Context, name string, volumes bool) error {
	return a.end(ctx, name, volumes, func(s *cluster.AppSpec) { s.Removed, s.Volumed = true, s.Volumed || volumes })
}

// Release ends the keeping of an app. Its containers, networks and volumes stay. It
// returns at once; the app is there until all of it is released. NotFound.
func (a *Apps) Release(ctx context.Context, name string) error {
	return a.end(ctx, name, false, func(s *cluster.AppSpec) { s.Released = !s.Removed })
}

func (a *Apps) end(ctx context.Context, name string, volumes bool, f func(*cluster.AppSpec)) error {
	for {
		app, err := store.Named[*cluster.App](a.s.View(), name)
		if errdefs.IsNotFound(err) {
			if found, err := a.forget(ctx, name, volumes); found || err != nil {
				return err
			}
			return notFound(name)
		}
		if err != nil {
			return err
		}
		app = cluster.Copy(app)
		f(&app.Spec)
		if _, err = a.s.Commit(ctx, store.Update(app)); !errdefs.IsConflict(err) {
			return err
		}
	}
}
