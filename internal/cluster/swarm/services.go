package swarm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/swarm"
)

// Asked says how a service is made or changed.
type Asked struct {
	Auth     string // for the registry of its image, as X-Registry-Auth has it
	Previous bool   // rather that of the spec before
	Query    bool   // ask the registry what the image's name stands for
	Rollback bool   // go back to the spec before, whatever is asked
}

// Services lists services. Filters: id, name, label, mode, runtime. status counts their tasks.
func (s *Swarm) Services(f Filters, status bool) ([]swarm.Service, error) {
	v := s.Store.View()
	if _, err := the(v); err != nil {
		return nil, err
	}
	out := []swarm.Service{}
	for _, o := range store.List[*cluster.Service](v) {
		if !f.begins("id", o.ID) || !f.begins("name", o.Name) || !f.labels("label", o.Spec.Labels) || !f.is("mode", modeName(o.Spec.Mode)) || !f.is("runtime", string(swarm.RuntimeContainer)) {
			continue
		}
		service := tellService(o)
		if status {
			service.ServiceStatus = counts(v, o)
		}
		out = append(out, service)
	}
	return out, nil
}

// GetService tells of a service; with what its spec leaves out when full says so. NotFound.
func (s *Swarm) GetService(ref string, full bool) (swarm.Service, error) {
	o, err := find[*cluster.Service](s.Store.View(), "service", ref)
	if err != nil {
		return swarm.Service{}, err
	}
	out := tellService(o)
	if full {
		out.Spec = withDefaults(out.Spec)
	}
	return out, nil
}

// modeName is the word by which services are filtered.
func modeName(m cluster.Mode) string {
	switch {
	case m.Global:
		return "global"
	case m.GlobalJob:
		return "global-job"
	case m.Job != nil:
		return "replicated-job"
	}
	return "replicated"
}

// tellService is a service in Docker's form.
func tellService(o *cluster.Service) swarm.Service {
	out := swarm.Service{ID: o.ID, Meta: meta(&o.Meta), Spec: fromSpec(o.Name, &o.Spec)}
	if o.Previous != nil {
		p := fromSpec(o.Name, o.Previous)
		out.PreviousSpec = &p
	}
	if e := out.Spec.EndpointSpec; e != nil {
		out.Endpoint.Spec = *e
	}
	ports := o.Status.Ports
	if len(ports) == 0 { // those that are left open are still to be chosen
		ports = slices.DeleteFunc(slices.Clone(o.Spec.Ports), func(p cluster.Port) bool { return address.Meshed(p) && p.Open() })
	}
	out.Endpoint.Ports = fromPorts(ports)
	for _, vip := range o.Status.VIPs {
		out.Endpoint.VirtualIPs = append(out.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: vip.Network, Addr: vip.Addr})
	}
	if r := o.Status.Rollout; r != nil && r.Number == o.Spec.Number {
		started := r.StartedAt
		out.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateState(r.State), StartedAt: &started, Message: r.Message}
		if !r.EndedAt.IsZero() {
			ended := r.EndedAt
			out.UpdateStatus.CompletedAt = &ended
		}
	}
	if o.Spec.Mode.Job != nil || o.Spec.Mode.GlobalJob {
		out.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: iteration(o.Spec.Number)}, LastExecution: o.UpdatedAt}
	}
	return out
}

// iteration counts the runs of a job, from 0.
func iteration(number uint64) uint64 { return max(number, 1) - 1 }

// counts tells how many tasks a service has and wants. Of those that are to end on a node
// that is down nobody knows whether they run: others have their places.
func counts(v store.View, o *cluster.Service) *swarm.ServiceStatus {
	out := &swarm.ServiceStatus{}
	for _, t := range store.List[*cluster.Task](v, store.Owner(o.ID)) {
		if n, err := store.Find[*cluster.Node](v, t.Node); state(t) == swarm.TaskStateRunning && (!t.Desired.Stops() || err == nil && n.Status.Ready) {
			out.RunningTasks++
		}
		if o.Spec.Mode.Global && !t.Desired.Ended() {
			out.DesiredTasks++
		}
		if job := o.Spec.Mode.Job != nil || o.Spec.Mode.GlobalJob; job && t.SpecNumber == o.Spec.Number {
			if t.Status.State == cluster.TaskComplete {
				out.CompletedTasks++
			}
			if o.Spec.Mode.GlobalJob && t.Desired == cluster.TaskComplete && !t.Status.State.Ended() {
				out.DesiredTasks++
			}
		}
	}
	switch m := o.Spec.Mode; {
	case m.Replicated != nil:
		out.DesiredTasks = m.Replicated.Replicas
	case m.Job != nil:
		out.DesiredTasks = m.Job.Concurrent
	}
	return out
}

// CreateService makes a service, and gives its id.
func (s *Swarm) CreateService(ctx context.Context, asked swarm.ServiceSpec, a Asked) (id string, warnings []string, err error) {
	if _, err := the(s.Store.View()); err != nil {
		return "", nil, err
	}
	if asked.Name == "" {
		asked.Name = s.NewName()
	}
	spec, warnings, err := s.prepare(ctx, nil, asked, a)
	if err != nil {
		return "", nil, err
	}
	for {
		v := s.Store.View()
		if _, err := the(v); err != nil {
			return "", nil, err
		}
		o := &cluster.Service{Meta: cluster.Meta{ID: cluster.NewID(), Name: asked.Name, Labels: spec.Labels}, Spec: spec, Numbers: 1}
		o.Spec.Number = 1
		used, err := bind(v, s.Networks, nil, &o.Spec)
		if err != nil {
			return "", nil, err
		}
		_, err = s.Store.Commit(ctx, append(used, store.Create(o))...)
		switch {
		case errdefs.IsConflict(err):
			continue // of a secret or config that it uses
		case errdefs.IsAlreadyExists(err):
			return "", nil, rpc(errdefs.ErrAlreadyExists, "name conflicts with an existing object: service %s already exists", asked.Name)
		}
		return o.ID, warnings, err
	}
}

// UpdateService changes a service, as it was at a version, to what is asked.
func (s *Swarm) UpdateService(ctx context.Context, ref string, version uint64, asked swarm.ServiceSpec, a Asked) (warnings []string, err error) {
	v := s.Store.View()
	o, err := find[*cluster.Service](v, "service", ref)
	if err != nil {
		return nil, err
	}
	if err := owned(v, "service", &o.Meta); err != nil {
		return nil, err
	}
	if a.Rollback {
		return nil, s.goBack(ctx, o, version)
	}
	if asked.Name == "" {
		asked.Name = o.Name
	}
	if asked.Name != o.Name {
		return nil, rpc(errdefs.ErrNotImplemented, "renaming services is not supported")
	}
	spec, warnings, err := s.prepare(ctx, o, asked, a)
	if err != nil {
		return nil, err
	}
	if modeName(spec.Mode) != modeName(o.Spec.Mode) {
		return nil, rpc(errdefs.ErrNotImplemented, "service mode change is not allowed")
	}
	if version != o.Revision {
		return nil, errOutOfOrder
	}
	for {
		next := store.Copy(o)
		before := store.Copy(o).Spec
		next.Previous = &before
		next.Spec, next.Labels = spec, spec.Labels
		used, err := bind(s.Store.View(), s.Networks, o, &next.Spec)
		if err != nil {
			return nil, err
		}
		next.Spec.Number = number(next, o)
		next.Status.Rollout, next.Status.Wanted = nil, nil
		if spec.Mode.Schedule != o.Spec.Mode.Schedule {
			next.Status.Due = time.Time{}
		}
		_, err = s.Store.Commit(ctx, append(used, store.Update(next))...)
		if !errdefs.IsConflict(err) || moved(s.Store, o) {
			return warnings, written(err)
		}
		// Of a secret or config that it uses.
	}
}

// moved tells whether a service is not any more as it was seen.
func moved(s store.Store, o *cluster.Service) bool {
	now, err := store.Find[*cluster.Service](s.View(), o.ID)
	return err != nil || now.Revision != o.Revision
}

// number is that of a service's next spec: another one when its tasks are to be others,
// or its job is to be done again, which one with a schedule is when it is due.
func number(next, was *cluster.Service) uint64 {
	job := was.Spec.Mode.Job != nil || was.Spec.Mode.GlobalJob
	if (!job || next.Spec.Mode.Schedule != "") && !was.Spec.Replaces(&next.Spec) {
		return was.Spec.Number
	}
	next.Numbers++
	return next.Numbers
}

// goBack gives a service the spec that it had before.
func (s *Swarm) goBack(ctx context.Context, o *cluster.Service, version uint64) error {
	if version != o.Revision {
		return errOutOfOrder
	}
	if o.Previous == nil {
		return rpc(errdefs.ErrFailedPrecondition, "service %s does not have a previous spec", o.ID)
	}
	if err := permitted(s.Store.View(), &o.Previous.Task); err != nil {
		return err
	}
	next := store.Copy(o)
	was := next.Spec
	next.Spec, next.Previous = *next.Previous, &was
	next.Labels, next.Status.Wanted = next.Spec.Labels, nil
	if next.Spec.Mode.Job != nil || next.Spec.Mode.GlobalJob {
		next.Spec.Number = number(next, o)
		next.Status.Rollout, next.Status.Due = nil, time.Time{}
	} else {
		next.Status.Rollout = &cluster.RolloutStatus{State: cluster.RollingBack, Number: next.Spec.Number, StartedAt: s.Now(), Message: "manually requested rollback"}
	}
	_, err := s.Store.Commit(ctx, store.Update(next))
	return written(err)
}

// prepare makes a spec of what is asked and finds its image; was is nil for a new service.
func (s *Swarm) prepare(ctx context.Context, was *cluster.Service, asked swarm.ServiceSpec, a Asked) (cluster.ServiceSpec, []string, error) {
	if asked.Labels == nil {
		asked.Labels = map[string]string{}
	}
	spec, err := toSpec(&asked)
	if err == nil {
		spec, err = stored(spec)
	}
	if err != nil {
		return spec, nil, err
	}
	spec.Task.Auth = a.Auth
	if was != nil && a.Auth == "" {
		from := &was.Spec
		if a.Previous {
			if was.Previous == nil {
				return spec, nil, invalid("service does not have a previous spec: its registry login cannot be taken from there")
			}
			from = was.Previous
		}
		spec.Task.Auth = from.Task.Auth
	}
	if was != nil && !a.Query && was.Spec.Task.Container.Image == spec.Task.Container.Image && was.Spec.Task.Force == spec.Task.Force {
		spec.Task.ImageID = was.Spec.Task.ImageID
		return spec, nil, nil
	}
	img := s.Images.Resolve(ctx, spec.Task.Container.Image, spec.Task.Auth, a.Query && !pinned(spec.Task.Container.Image))
	spec.Task.ImageID = img.ID
	if img.Ref != "" {
		spec.Task.Container.Image = img.Ref
		spec.Swarm.TaskTemplate.ContainerSpec.Image = img.Ref
	}
	if len(spec.Task.Placement.Platforms) == 0 && len(img.Platforms) > 0 {
		spec.Task.Placement.Platforms = img.Platforms
		t := &spec.Swarm.TaskTemplate
		t.Placement = cmp.Or(t.Placement, &swarm.Placement{})
		t.Placement.Platforms = fromPlacement(spec.Task.Placement).Platforms
	}
	if img.Warning != "" {
		return spec, []string{img.Warning}, nil
	}
	return spec, nil, nil
}

// stored is a spec as the store gives it back: only then specs compare.
func stored(s cluster.ServiceSpec) (out cluster.ServiceSpec, err error) {
	raw, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	return out, err
}

// pinned tells of names of images that have a digest already.
func pinned(ref string) bool {
	r, err := reference.ParseAnyReference(ref)
	if err != nil {
		return true
	}
	_, digested := r.(reference.Digested)
	return digested
}

// bind finds in a view what a spec names, and refuses ports that another service has. The
// changes say that what it uses is as it was.
func bind(v store.View, locals Networks, was *cluster.Service, spec *cluster.ServiceSpec) (used []store.Change, err error) {
	if err := permitted(v, &spec.Task); err != nil {
		return nil, err
	}
	spec.Networks = slices.Clone(spec.Networks) // who settles anew begins with what was asked
	for i := range spec.Networks {
		if err := onNetwork(v, locals, &spec.Networks[i]); err != nil {
			return nil, err
		}
	}
	used, err = uses[*cluster.Secret](used, v, "secret", spec.Task.Secrets)
	if err == nil {
		used, err = uses[*cluster.Config](used, v, "config", spec.Task.Configs)
	}
	if err != nil {
		return nil, err
	}
	if len(used) > store.MaxChanges-2 {
		used = used[:store.MaxChanges-2]
	}
	return used, clash(v, was, spec)
}

// uses finds the secrets or configs of references.
func uses[T cluster.Object](out []store.Change, v store.View, what string, refs []cluster.FileRef) ([]store.Change, error) {
	seen := map[string]bool{}
	for _, r := range refs {
		o, err := store.Find[T](v, r.ID)
		if err != nil || cluster.IsInternal(o) {
			return nil, invalid("%s not found: %s", what, r.Name)
		}
		if name, _, _ := file(o); o.Base().Name != r.Name && *name != r.Name {
			return nil, invalid("%s %s is not named %s", what, r.ID, r.Name)
		}
		if !seen[r.ID] {
			seen[r.ID] = true
			out = append(out, store.Unchanged(o))
		}
	}
	return out, nil
}

// onNetwork finds a network that tasks are to be on.
func onNetwork(v store.View, locals Networks, a *cluster.Attachment) error {
	for _, n := range store.List[*cluster.Network](v) {
		if n.Owner == "" && !n.Spec.Removed && slices.Contains([]string{n.ID, n.Spec.Name, n.Status.EngineID}, a.Network) && a.Network != "" {
			a.Network = n.Spec.Name
			return nil
		}
	}
	name, there, predefined := locals.Local(a.Network)
	switch {
	case !there:
		return say(errdefs.ErrNotFound, "network %s not found", a.Network)
	case !predefined:
		return say(errdefs.ErrPermissionDenied, "The network %s cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver.", a.Network)
	}
	a.Network = name
	return nil
}

// RemoveService has a service and its tasks gone. It returns at once.
func (s *Swarm) RemoveService(ctx context.Context, ref string) error {
	for {
		v := s.Store.View()
		o, err := find[*cluster.Service](v, "service", ref)
		if err == nil {
			err = owned(v, "service", &o.Meta)
		}
		if err != nil {
			return err
		}
		if _, err = s.Store.Commit(ctx, store.Delete(o)); !errdefs.IsConflict(err) {
			return err
		}
	}
}

// clash refuses to publish on all nodes what another service publishes there, or asks for. Ports
// that are left open are chosen by a loop, for services of apps and of swarms alike.
func clash(v store.View, was *cluster.Service, spec *cluster.ServiceSpec) error {
	for _, o := range store.List[*cluster.Service](v) {
		if was != nil && o.ID == was.ID {
			continue
		}
		for _, p := range claims(o) {
			same := func(m cluster.Port) bool {
				return address.Meshed(m) && m.Published == p.Published && m.Proto == p.Proto
			}
			if slices.ContainsFunc(spec.Ports, same) {
				return invalid("port '%d' is already in use by service '%s' (%s) as an ingress port", p.Published, o.Name, o.ID)
			}
		}
	}
	return nil
}

// claims are the ports on all nodes that a service asks for, and those that were chosen for it
// and that it still wants: what it has but wants no more is about to be free.
func claims(o *cluster.Service) (out []cluster.Port) {
	for _, p := range o.Spec.Ports {
		if address.Meshed(p) && !p.Open() {
			out = append(out, p)
		}
	}
	for _, p := range o.Status.Ports {
		open := func(a cluster.Port) bool {
			return address.Meshed(a) && a.Open() && a.Suits(p.Published) && a.Target == p.Target && a.Proto == p.Proto
		}
		if address.Meshed(p) && slices.ContainsFunc(o.Spec.Ports, open) {
			out = append(out, p)
		}
	}
	return out
}

// inUse refuses to remove what services use; which of their references counts.
func inUse[T cluster.Object](v store.View, what string, o T, which func(*cluster.TaskSpec) []cluster.FileRef) error {
	var by []string
	for _, s := range store.List[*cluster.Service](v) {
		app := ""
		if a, err := store.Find[*cluster.App](v, s.Owner); err == nil {
			app = a.Name
		}
		for _, r := range which(&s.Spec.Task) {
			if meant, err := store.Referred[T](v, r, app); err == nil && meant.Base().ID == o.Base().ID {
				by = append(by, s.Name)
				break
			}
		}
	}
	if len(by) == 0 {
		return nil
	}
	slices.Sort(by)
	word := "service"
	if len(by) > 1 {
		word = "services"
	}
	list := by[0]
	for _, n := range by[1:] {
		list += ", " + n
	}
	return invalid("%s", fmt.Sprintf("%s '%s' is in use by the following %s: %s", what, o.Base().Name, word, list))
}
