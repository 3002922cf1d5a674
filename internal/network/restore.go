package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"

	"escale.dev/escale/internal/sys/netns"
)

// Restore takes up the containers that live after the engine was started anew:
// their addresses and ports are taken again, and their links, published ports
// and handles are compared with what the kernel has and repaired by the
// difference. Whatever else bears this instance's name is removed: it was
// half-made or half-removed when the engine ended. To be called after Open and
// before the first Setup; live is by container id.
//
// A handle that has vanished cannot be made again without a process of the
// container; that is logged, as is what is wrong with one container alone.
func (m *Manager) Restore(ctx context.Context, live map[string][]Endpoint) error {
	handles := map[string]bool{}
	for id, eps := range live {
		if len(eps) == 0 {
			continue
		}
		name := handleOf(id, eps)
		handles[name] = true
		if !netns.Bound(m.Path(id, eps)) {
			m.log.Warn("the network namespace of a running container has lost its handle", "container", id, "path", m.Path(id, eps))
		}
	}
	m.mu.Lock()
	m.handles = handles
	m.mu.Unlock()
	m.networks.empty()
	m.names.clear()

	var errs []error
	byDriver := map[Driver]map[string][]Live{}
	for _, d := range m.drivers {
		byDriver[d] = map[string][]Live{}
	}
	others := map[string][]Live{}
	for id, eps := range live {
		m.settled(id, eps)
		ways := m.ways(eps)
		v4, v6 := choose(ways)
		for i, ep := range eps {
			if ep.Network == "" {
				continue
			}
			m.ports.Adopt(ep.mappings(), nil)
			a := m.networks.of(ep)
			if a == nil {
				m.log.Error("a running container is on a network that is not there", "container", id, "network", ep.Network)
				continue
			}
			if err := a.adopt(ep); err != nil {
				m.log.Warn("address of a running container is not its network's to give", "container", id, "network", ep.Network, "error", err)
			}
			l := Live{ContainerID: id, Path: m.Path(id, eps), Endpoint: ep}
			if i == v4 {
				l.Gateway = ways[i].v4
			}
			if i == v6 {
				l.Gateway6 = ways[i].v6
			}
			if foreign(a.driver) || a.addresses != nil && !spanning(a.info.Driver) {
				others[ep.NetworkID] = append(others[ep.NetworkID], l)
			}
			if of, ok := byDriver[a.driver]; ok {
				of[ep.NetworkID] = append(of[ep.NetworkID], l)
			}
		}
	}
	errs = append(errs, m.ingress.recall(ctx), restoreAll(ctx, byDriver))
	m.sweepInside(live)
	if m.cfg.Others != nil {
		m.cfg.Others.Settle(m.networks.made(), others)
	}
	errs = append(errs, m.dropUnused(func(string) bool { return true }))
	return errors.Join(errs...)
}

// restoreAll restores by each driver what is its, by guests first.
func restoreAll(ctx context.Context, byDriver map[Driver]map[string][]Live) error {
	var errs []error
	restore := func(d Driver) {
		if err := d.Restore(ctx, byDriver[d]); err != nil {
			errs = append(errs, fmt.Errorf("networks of driver %q: %w", d.Type(), err))
		}
	}
	for d := range byDriver {
		if g, ok := d.(Guest); ok {
			restore(d)
			if hosts := byDriver[g.Host()]; hosts != nil {
				maps.Copy(hosts, byDriver[d])
			}
			delete(byDriver, d)
		}
	}
	for d := range byDriver {
		restore(d)
	}
	return errors.Join(errs...)
}

// sweepInside removes from the namespaces of containers that live what no driver
// finds from the host.
func (m *Manager) sweepInside(live map[string][]Endpoint) {
	for _, d := range m.drivers {
		s, ok := d.(Sweeper)
		if !ok || !s.Sweeps() {
			continue
		}
		for id, eps := range live {
			path := m.Path(id, eps)
			if path == "" || !netns.Bound(path) {
				continue
			}
			ids := map[string]bool{}
			for _, ep := range eps {
				ids[ep.EndpointID] = true
			}
			ns, err := netns.Open(path)
			if err == nil {
				err = errors.Join(s.Sweep(ns, ids), ns.Close())
			}
			if err != nil {
				m.log.Error("looking for links that are left in a running container", "container", id, "error", err)
			}
		}
	}
}

// whose is the endpoint of a container that runs with a link on the host, as it is now.
func (b *base) whose(link string) (Live, bool) {
	id, eps := b.networks.withLink(link)
	v4, v6 := b.exits(eps)
	for _, ep := range eps {
		if ep.HostLink != link {
			continue
		}
		l := Live{ContainerID: id, Path: filepath.Join(b.cfg.NetnsDir, handleOf(id, eps)), Endpoint: ep}
		if v4.link == ep.Interface {
			l.Gateway = v4.gateway
		}
		if v6.link == ep.Interface {
			l.Gateway6 = v6.gateway
		}
		return l, true
	}
	return Live{}, false
}
