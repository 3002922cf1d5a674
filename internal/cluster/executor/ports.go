package executor

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// publish gives the container the ports of its service, balanced between its tasks
// unless they are each task's own.
func (c *controller) publish(v store.View, cfg *container.Config, host *container.HostConfig) error {
	s, err := store.Find[*cluster.Service](v, c.t.Owner)
	if errdefs.IsNotFound(err) {
		return nil // it is about to go, and its task with it
	}
	if err != nil {
		return err
	}
	// What every node publishes the container need not.
	ports := slices.DeleteFunc(slices.Clone(c.ports(s)), func(p cluster.Port) bool { return c.meshed(v, p) })
	if len(ports) == 0 {
		return nil
	}
	host.PortBindings = maps.Clone(host.PortBindings)
	if host.PortBindings == nil {
		host.PortBindings = network.PortMap{}
	}
	for _, p := range ports {
		port, ok := network.PortFrom(p.Target, p.Proto)
		if !ok {
			return fmt.Errorf("port %d/%s: no such port: %w", p.Target, p.Proto, errdefs.ErrInvalidArgument)
		}
		var b network.PortBinding
		if p.Address != "" {
			if err := b.HostIP.UnmarshalText([]byte(p.Address)); err != nil {
				return fmt.Errorf("port %d/%s: %w: %w", p.Target, p.Proto, err, errdefs.ErrInvalidArgument)
			}
		}
		b.HostPort = p.Range()
		host.PortBindings[port] = append(slices.Clone(host.PortBindings[port]), b)
		if !p.Host && !p.Open() {
			cfg.Labels[LabelBalance] = s.ID
		}
	}
	return nil
}

// ports are those that the container publishes: the service's, but of those that each task
// has on its own node the ones that this task was placed with.
func (c *controller) ports(s *cluster.Service) []cluster.Port {
	list := s.Spec.Ports
	if len(s.Status.Ports) > 0 {
		list = s.Status.Ports
	}
	if len(c.t.Ports) == 0 { // it may be of an engine that did not write them
		return list
	}
	return slices.Concat(slices.DeleteFunc(slices.Clone(list), func(p cluster.Port) bool { return p.Host }), c.t.Ports)
}

// published are a task's own ports as its container has got them: those that were left open
// have a number.
func published(ports []cluster.Port, has network.PortMap) (out []cluster.Port) {
	for _, p := range ports {
		at, ok := network.PortFrom(p.Target, p.Proto)
		if !ok {
			continue
		}
		for _, b := range has[at] {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil || !p.Suits(uint16(n)) {
				continue
			}
			if got := p.At(uint16(n)); !slices.Contains(out, got) { // one a family
				out = append(out, got)
			}
		}
	}
	return out
}
