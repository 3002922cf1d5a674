package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// Change is what came of connecting a container that runs, or of disconnecting it.
type Change struct {
	Endpoints []Endpoint // all of the container now, for its record
	Changed   Endpoint   // the one that came or went
	Held      []*os.File // bound sockets of ports that are published now and were not before; the caller owns them
}

// Connect puts a container that runs on one more network. req is as for Setup, but
// for its Networks, which are that one; eps is where the container is. On an error
// all is as it was. Blocks for a millisecond or two. Kinds and words of errors are
// Docker's.
func (m *Manager) Connect(ctx context.Context, req Request, eps []Endpoint) (*Change, error) {
	if err := m.spanAll(ctx, req); err != nil {
		return nil, err
	}
	plan, err := m.plan(req)
	if err != nil {
		return nil, err
	}
	defer m.networks.free(plan.networks())
	if err := m.mend(ctx, plan); err != nil {
		return nil, err
	}
	if len(plan.parts) != 1 || len(eps) == 0 {
		return nil, worded(errdefs.ErrInvalidArgument, "container %s: one network wanted, and a container that runs", req.ContainerID)
	}
	p := &plan.parts[0]
	links := namer{}
	for _, ep := range eps {
		links[ep.Interface] = true
		other := m.networks.of(ep)
		switch {
		case other == p.net:
			return nil, worded(errdefs.ErrPermissionDenied, "endpoint with name %s already exists in network %s", req.Name, p.net.info.Name)
		case other != nil && (other.info.Name == None || p.net.info.Name == None):
			return nil, worded(errdefs.ErrInvalidArgument, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	if err := links.claim(plan.parts); err != nil {
		return nil, err
	}
	ns, err := netns.Open(m.Path(req.ContainerID, eps))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", req.ContainerID, err)
	}
	defer ns.Close()
	j := p.join(req, links.next(p))
	j.Taken = links
	j.Published, j.Path = len(req.Bindings) > 0 || req.PublishAll, m.Path(req.ContainerID, eps)
	ep, err := m.join(ctx, ns, req, p, j, false, false)
	if err != nil {
		return nil, err
	}
	ep.Handle = handleOf(req.ContainerID, eps)
	after := append(slices.DeleteFunc(slices.Clone(eps), func(e Endpoint) bool { return e.Network == "" }), ep)
	c := &Change{Changed: ep}
	if c.Endpoints, c.Held, err = m.redirect(ctx, ns, m.rotation.current(req.ContainerID, eps), after, fresh{plan.ports, req.Exposed, req.Balance}); err != nil {
		err = errors.Join(err, p.net.driver.Leave(context.WithoutCancel(ctx), ep))
		m.networks.giveBack(context.WithoutCancel(ctx), p.net, ep)
		return nil, err
	}
	m.settled(req.ContainerID, c.Endpoints)
	if m.cfg.Resolver != nil && nameable(c.Endpoints) && !m.isServed(ep.Handle) {
		made, err := m.serve(ns, ep.Handle, req.ContainerID, nil, req.Resolve)
		if err != nil { // it is on the network all the same
			m.log.Error("names are not answered in a container", "container", req.ContainerID, "error", err)
		}
		c.Held = append(c.Held, made...)
	}
	m.balanced(req.ContainerID, nil, ep)
	return c, nil
}

// Disconnect takes a container that runs from a network. eps is where it is.
// NotFound in Docker's words when it is not on that one. Blocks for some 20 ms.
func (m *Manager) Disconnect(ctx context.Context, id, ref string, eps []Endpoint) (*Change, error) {
	a, err := m.networks.find(canonical(ref))
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(eps, func(ep Endpoint) bool { return ep.Network != "" && m.networks.of(ep) == a })
	if at < 0 {
		return nil, fmt.Errorf("container %s is not connected to network %s", id, a.info.Name)
	}
	gone := eps[at]
	after := slices.Delete(slices.Clone(eps), at, at+1)
	if len(after) == 0 { // something has to tell of the namespace
		after = []Endpoint{{EndpointID: newID(), Handle: handleOf(id, eps)}}
	}
	for i := range after {
		after[i].Handle = handleOf(id, eps)
	}
	ns, err := netns.Open(m.Path(id, eps))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	defer ns.Close()
	c := &Change{Changed: gone}
	if c.Endpoints, _, err = m.redirect(ctx, ns, m.rotation.current(id, eps), after, fresh{}); err != nil {
		return nil, err
	}
	m.settled(id, c.Endpoints)
	if err := m.leave(ctx, id, gone); err != nil {
		return c, err
	}
	m.balanced(id, vips(m.balance.of([]Endpoint{gone})), gone)
	return c, nil
}

// fresh are ports that are to be published where none is yet.
type fresh struct {
	ports   []port.Spec
	exposed network.PortSet
	group   string
}

// redirect moves the default routes and the published ports of a container to
// where they belong among the endpoints after. fresh are ports that are published
// if none is yet. On an error they are where they were.
func (m *base) redirect(ctx context.Context, ns *netns.Handle, before, after []Endpoint, fresh fresh) (eps []Endpoint, held []*os.File, err error) {
	old4, old6 := m.exits(before)
	new4, new6 := m.exits(after)
	if new4 != old4 || new6 != old6 {
		if err := setExits(ns, new4, new6); err != nil {
			return nil, nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, setExits(ns, old4, old6))
			}
		}()
	}
	eps = slices.Clone(after)
	if err := m.opens(ctx, eps); err != nil {
		if len(after) > len(before) {
			return nil, nil, err
		}
		m.log.Warn("a plugin could not be told which network leads out", "endpoints", len(after), "error", err) // what goes, goes
	}
	from := slices.IndexFunc(before, func(ep Endpoint) bool { return ep.Ports != nil })
	to := m.door(eps)
	for i := range eps {
		eps[i].Ports, eps[i].Own = nil, nil
	}
	switch {
	case from < 0 && to < 0:
	case from < 0:
		if held, err = m.hold(&eps[to], fresh.ports, fresh.exposed, fresh.group); err != nil {
			return nil, nil, err
		}
		if err = m.publish(ctx, eps[to], held); err != nil {
			for _, f := range held {
				f.Close()
			}
			m.ports.Free(eps[to].mappings())
			held = nil
		}
	case to < 0:
		if err = m.unpublish(ctx, before[from]); err == nil {
			m.ports.Free(before[from].mappings())
		}
	default:
		eps[to].Ports, eps[to].Own = before[from].Ports, before[from].Own
		eps[to].Balance, eps[to].Resting = before[from].Balance, before[from].Resting
		if before[from].EndpointID != eps[to].EndpointID {
			err = m.move(ctx, before[from], eps[to])
		}
	}
	return eps, held, err
}

// opens tells drivers of other makers which endpoint leads out.
func (m *base) opens(ctx context.Context, eps []Endpoint) error {
	v4, v6 := choose(m.ways(eps))
	for i, ep := range eps {
		o, ok := m.networks.driverOf(ep).(Outside)
		if !ok {
			continue
		}
		if err := o.Opens(ctx, ep, i == v4 || v4 < 0 && i == v6); err != nil {
			return err
		}
	}
	return nil
}

// exits are the default routes of a container with these endpoints.
func (m *base) exits(eps []Endpoint) (v4, v6 exit) {
	ways := m.ways(eps)
	i, j := choose(ways)
	if i >= 0 {
		v4 = exit{ways[i].v4, eps[i].Interface}
	}
	if j >= 0 {
		v6 = exit{ways[j].v6, eps[j].Interface}
	}
	return v4, v6
}

// door is the endpoint that has the published ports, negative for none.
func (m *base) door(eps []Endpoint) int {
	v4, v6 := choose(m.ways(eps))
	at := v4
	if at < 0 {
		at = v6
	}
	if at >= 0 {
		if _, ok := m.networks.driverOf(eps[at]).(Publisher); !ok {
			return -1
		}
	}
	return at
}

// Rename gives a container another name on its networks, and its endpoints as they
// are then, for its record.
func (m *Manager) Rename(id, old, name string, eps []Endpoint) []Endpoint {
	out := slices.Clone(eps)
	for i := range out {
		if len(out[i].DNSNames) == 0 {
			continue
		}
		names := []string{name}
		for _, n := range out[i].DNSNames {
			if n != old && n != name {
				names = append(names, n)
			}
		}
		out[i].DNSNames = names
	}
	m.settled(id, out)
	return out
}
