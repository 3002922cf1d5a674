package swarm

import (
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Tasks lists tasks. Filters: id, name, label, service, node, desired-state, runtime, and
// _up-to-date for those of their services' present specs.
func (s *Swarm) Tasks(f Filters) ([]swarm.Task, error) {
	v := s.Store.View()
	if _, err := the(v); err != nil {
		return nil, err
	}
	for _, want := range f["desired-state"] {
		if !slices.Contains([]string{"running", "shutdown", "accepted"}, want) {
			return nil, say(errdefs.ErrInvalidArgument, "Invalid desired-state filter: '%s'", want)
		}
	}
	services, err := ids[*cluster.Service](v, "service", f["service"])
	if err != nil {
		return nil, err
	}
	nodes, err := ids[*cluster.Node](v, "node", f["node"])
	if err != nil {
		return nil, err
	}
	out := []swarm.Task{}
	for _, t := range store.List[*cluster.Task](v) {
		switch {
		case services != nil && !slices.Contains(services, t.Owner), nodes != nil && !slices.Contains(nodes, t.Node):
		case !f.begins("id", t.ID), !f.begins("name", t.Name+"."+t.ID), !f.labels("label", t.Labels), !f.is("runtime", string(swarm.RuntimeContainer)):
		case len(f["desired-state"]) > 0 && !slices.Contains(f["desired-state"], desiredWord(t.Desired)):
		case len(f["_up-to-date"]) > 0 && !upToDate(v, t):
		default:
			task := tellTask(v, t)
			if len(f["_up-to-date"]) > 0 && task.JobIteration != nil && task.Slot > 0 {
				task.Slot-- // clients that follow a job with this filter count its tasks from 0, and wait for ever otherwise
			}
			out = append(out, task)
		}
	}
	return out, nil
}

// desiredWord is the word of the filter for what is desired.
func desiredWord(s cluster.TaskState) string {
	switch {
	case s == cluster.TaskRunning, s == cluster.TaskComplete:
		return "running"
	case s.Before(cluster.TaskRunning):
		return "accepted"
	}
	return "shutdown"
}

func upToDate(v store.View, t *cluster.Task) bool {
	o, err := store.Find[*cluster.Service](v, t.Owner)
	return err == nil && t.SpecNumber == o.Spec.Number
}

// ids are those of the objects that people mean; nil: none are named.
func ids[T cluster.Object](v store.View, what string, refs []string) (out []string, err error) {
	for _, ref := range refs {
		o, err := find[T](v, what, ref)
		if errdefs.IsNotFound(err) && what == "service" { // its tasks may be there still
			out = append(out, ref)
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, o.Base().ID)
	}
	return out, nil
}

// GetTask tells of a task. NotFound.
func (s *Swarm) GetTask(ref string) (swarm.Task, error) {
	v := s.Store.View()
	t, err := findTask(v, ref)
	if err != nil {
		return swarm.Task{}, err
	}
	return tellTask(v, t), nil
}

// findTask finds a task by its id, the beginning of it, or its whole name.
func findTask(v store.View, ref string) (*cluster.Task, error) {
	if i := strings.LastIndexByte(ref, '.'); i > 0 {
		ref = ref[i+1:]
	}
	return find[*cluster.Task](v, "task", ref)
}

// state is how far a task is, in Docker's words: one that runs is starting there until
// its health check has passed for the first time.
func state(t *cluster.Task) swarm.TaskState {
	if t.Status.State == cluster.TaskRunning && !t.Status.Healthy && t.Status.HealthyAt.IsZero() {
		return swarm.TaskStateStarting
	}
	return swarm.TaskState(t.Status.State)
}

// tellTask is a task in Docker's form.
func tellTask(v store.View, t *cluster.Task) swarm.Task {
	out := swarm.Task{
		ID: t.ID, Meta: meta(&t.Meta), Annotations: annotations("", nil), Spec: fromTask(&t.Spec, t.Networks), ServiceID: t.Owner,
		Slot: int(t.Slot), NodeID: t.Node, DesiredState: swarm.TaskState(t.Desired),
		Status: swarm.TaskStatus{Timestamp: t.Status.At, State: state(t), Message: t.Status.Message, Err: t.Status.Err},
	}
	if out.Status.Timestamp.IsZero() {
		out.Status.Timestamp = t.CreatedAt
	}
	if c := t.Status.Container; c != nil {
		out.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: c.ID, PID: c.PID, ExitCode: c.ExitCode}
		if !t.Status.State.Ended() {
			out.Status.PortStatus.Ports = fromPorts(c.Ports)
		}
	}
	if t.Node != "" {
		out.GenericResources = generic(t.Spec.Reserved.Generic, t.Claimed)
	}
	for _, a := range t.Addresses {
		at := slices.IndexFunc(out.NetworksAttachments, func(n swarm.NetworkAttachment) bool { return n.Network.ID == a.Network })
		if at < 0 {
			at = len(out.NetworksAttachments)
			out.NetworksAttachments = append(out.NetworksAttachments, swarm.NetworkAttachment{Network: tellNetwork(v, a.Network)})
		}
		n := &out.NetworksAttachments[at]
		n.Addresses = append(n.Addresses, a.Addr)
	}
	if o, err := store.Find[*cluster.Service](v, t.Owner); err == nil && (o.Spec.Mode.Job != nil || o.Spec.Mode.GlobalJob) {
		out.JobIteration = &swarm.Version{Index: iteration(t.SpecNumber)}
	}
	return out
}

// tellNetwork is a network that a task is on, in Docker's form.
func tellNetwork(v store.View, id string) swarm.Network {
	out := swarm.Network{ID: id}
	n, err := store.Find[*cluster.Network](v, id)
	if err != nil {
		return out
	}
	out.Meta, out.Spec = meta(&n.Meta), swarm.NetworkSpec{Annotations: annotations(n.Spec.Name, nil), Scope: "swarm"}
	if c := n.Spec.Create; c != nil {
		out.Spec.Annotations = annotations(n.Spec.Name, c.Labels)
		out.Spec.DriverConfiguration = &swarm.Driver{Name: c.Driver, Options: c.Options}
		out.Spec.Internal, out.Spec.Attachable, out.Spec.Ingress = c.Internal, c.Attachable, c.Ingress
		out.Spec.IPv6Enabled = c.EnableIPv6 != nil && *c.EnableIPv6
		out.DriverState = *out.Spec.DriverConfiguration
	}
	for _, s := range n.Status.Subnets {
		if out.IPAMOptions == nil {
			out.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}}
		}
		out.IPAMOptions.Configs = append(out.IPAMOptions.Configs, swarm.IPAMConfig{Subnet: s.Prefix, Range: s.Range, Gateway: s.Gateway})
	}
	return out
}
