package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/network/port/forward"
	"github.com/moby/moby/api/types/network"
)

// Options of networks that say how ports are published.
const (
	optionBinding = "com.docker.network.bridge.host_binding_ipv4"
	optionMode4   = "com.docker.network.bridge.gateway_mode_ipv4"
	optionMode6   = "com.docker.network.bridge.gateway_mode_ipv6"
)

// leads is where published ports of an endpoint lead, by its addresses.
func (ep Endpoint) leads() (to port.To, err error) {
	for _, a := range []struct {
		text string
		to   *netip.Addr
	}{{ep.IP, &to.V4}, {ep.IP6, &to.V6}} {
		if a.text == "" {
			continue
		}
		if *a.to, err = netip.ParseAddr(a.text); err != nil {
			return to, fmt.Errorf("endpoint %s: %w", ep.EndpointID, err)
		}
	}
	return to, nil
}

// Mappings are the published ports of an endpoint; InvalidArgument when its record
// is not one of ours.
func (ep Endpoint) Mappings() ([]port.Mapping, error) {
	if len(ep.Ports) == 0 {
		return nil, nil
	}
	to, err := ep.leads()
	if err != nil {
		return nil, err
	}
	list, err := port.Mappings(to, ep.Ports, ep.Balance)
	if err != nil || len(ep.Own) == 0 {
		return list, err
	}
	own, err := port.Mappings(to, ep.Own, ep.Balance)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if slices.Contains(own, list[i]) {
			list[i].Group = ""
		}
	}
	return list, nil
}

// mappings are the published ports of an endpoint; none of a bad record.
func (ep Endpoint) mappings() []port.Mapping {
	list, err := ep.Mappings()
	if err != nil {
		return nil
	}
	return list
}

// to is where new ports of an endpoint would lead, and at which addresses.
func (m *base) to(ep Endpoint) (port.To, error) {
	to, err := ep.leads()
	if err != nil {
		return to, err
	}
	to.Forwarded, to.At = m.cfg.Forward, m.cfg.Publish
	a := m.networks.of(ep)
	if a == nil {
		return to, nil
	}
	o := a.info.Options
	to.Routed4, to.Routed6 = o[optionMode4] == "routed", o[optionMode6] == "routed"
	if b, err := netip.ParseAddr(o[optionBinding]); err == nil && !b.IsUnspecified() {
		to.At = []netip.Addr{b}
	}
	return to, nil
}

// hold takes host ports for an endpoint, which then tells of them. The files are
// the caller's.
func (m *base) hold(ep *Endpoint, specs []port.Spec, exposed network.PortSet, group string) ([]*os.File, error) {
	var mappings []port.Mapping
	var held []*os.File
	if len(specs) > 0 {
		to, err := m.to(*ep)
		if err != nil {
			return nil, err
		}
		if mappings, held, err = m.ports.Hold(specs, to, group); err != nil {
			return nil, err
		}
	}
	ep.Ports = port.PortMap(mappings, exposed)
	ep.Balance, ep.Own = "", nil
	own := slices.DeleteFunc(slices.Clone(mappings), func(m port.Mapping) bool { return m.Group != "" })
	if len(own) < len(mappings) {
		ep.Balance = group
		if len(own) > 0 {
			ep.Own = port.PortMap(own, nil)
		}
	}
	return held, nil
}

// publish makes the published ports of an endpoint work: the driver's part, and
// what the engine itself passes on. The files hold the ports; those that the engine
// serves already may be missing.
func (m *base) publish(ctx context.Context, ep Endpoint, files []*os.File) error {
	p, ok := m.networks.driverOf(ep).(Publisher)
	list := ep.mappings()
	if !ok || len(list) == 0 {
		return nil
	}
	if err := p.Publish(ctx, ep); err != nil {
		return err
	}
	if err := m.passOn(ep, list, files); err != nil {
		return errors.Join(err, m.unpublish(context.WithoutCancel(ctx), ep))
	}
	return nil
}

// passOn starts to pass on what the kernel cannot translate.
func (m *base) passOn(ep Endpoint, list []port.Mapping, files []*os.File) error {
	if !m.cfg.Forward {
		return nil
	}
	for _, mp := range list {
		if !mp.Forwarded() {
			continue
		}
		if err := m.forward.Add(forwarded(mp), port.Find(files, mp)); err != nil {
			return err
		}
		if ep.Resting && mp.Group != "" {
			m.forward.Rest(forwarded(mp))
		}
	}
	return nil
}

func forwarded(m port.Mapping) forward.Port {
	return forward.Port{Proto: m.Number(), Host: m.Host, To: m.To}
}

// unpublish takes the published ports of endpoints of one driver back. The ports
// stay taken until they are freed.
func (m *base) unpublish(ctx context.Context, eps ...Endpoint) error {
	for _, ep := range eps {
		for _, mp := range ep.mappings() {
			m.forward.Remove(forwarded(mp))
		}
	}
	if p, ok := m.networks.driverOf(eps[0]).(Publisher); ok {
		return p.Unpublish(ctx, eps)
	}
	return nil
}

// move publishes at one endpoint of a container what was published at another.
func (m *base) move(ctx context.Context, from, to Endpoint) error {
	list := to.mappings()
	m.ports.Adopt(list, nil)
	err := m.publishMoved(ctx, from, to)
	if err != nil {
		m.ports.Free(list)
		return errors.Join(err, m.publishMoved(context.WithoutCancel(ctx), to, from))
	}
	m.ports.Free(from.mappings())
	return nil
}

// publishMoved serves the new way before it leaves the old one, so that the
// sockets that both share stay in service.
func (m *base) publishMoved(ctx context.Context, from, to Endpoint) error {
	if err := m.passOn(to, to.mappings(), nil); err != nil {
		return err
	}
	if err := m.unpublish(ctx, from); err != nil {
		return err
	}
	return m.publish(ctx, to, nil)
}

// regain goes on with what the engine itself passes on to a container that lived
// through its restart.
func (m *base) regain(s Survivor) {
	for _, ep := range s.Endpoints {
		list := ep.mappings()
		m.ports.Adopt(list, s.Held)
		ep.Resting = m.rotation.resting(s.ContainerID, ep)
		if err := m.passOn(ep, list, s.Held); err != nil {
			m.log.Warn("a published port is not reached by IPv6 until the container starts anew", "container", s.ContainerID, "error", err)
		}
	}
}

// rotation knows the endpoints that share ports, by container.
type rotation struct {
	mu      sync.Mutex
	members map[string][]Endpoint
}

func newRotation() *rotation { return &rotation{members: map[string][]Endpoint{}} }

// set notes where a container is. Endpoints that it has already stay in rotation or out
// of it, whatever their record says: that is of the start.
func (r *rotation) set(container string, eps []Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var shared []Endpoint
	for _, ep := range r.currentLocked(container, eps) {
		if ep.Balance != "" {
			shared = append(shared, ep)
		}
	}
	if shared == nil {
		delete(r.members, container)
	} else {
		r.members[container] = shared
	}
}

// current are the endpoints of a container as its record has them, resting or not as
// they are by now.
func (r *rotation) current(container string, eps []Endpoint) []Endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.currentLocked(container, eps)
}

func (r *rotation) currentLocked(container string, eps []Endpoint) []Endpoint {
	eps = slices.Clone(eps)
	for i := range eps {
		for _, mine := range r.members[container] {
			if mine.EndpointID == eps[i].EndpointID {
				eps[i].Resting = mine.Resting
			}
		}
	}
	return eps
}

// resting tells whether nothing new is to come to an endpoint by shared ports.
func (r *rotation) resting(container string, ep Endpoint) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, mine := range r.members[container] {
		if mine.EndpointID == ep.EndpointID {
			return mine.Resting
		}
	}
	return false
}

func (r *rotation) drop(container string, eps []Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, mine := range r.members[container] {
		for _, ep := range eps {
			if ep.EndpointID == mine.EndpointID { // and not that of a later start
				delete(r.members, container)
			}
		}
	}
}

// Rotate lets new connections come to a container that runs, or not: by shared ports,
// and by names that another has, too. Idempotent.
func (m *Manager) Rotate(ctx context.Context, container string, in bool) {
	m.names.rest(container, !in)
	m.rotate(ctx, container, in)
	m.ingress.rest(ctx, m.networks.endpoints(container), !in)
}

// rotate puts the shared ports of a container into rotation, or takes them out.
func (m *base) rotate(ctx context.Context, container string, in bool) {
	m.rotation.mu.Lock()
	defer m.rotation.mu.Unlock()
	for i := range m.rotation.members[container] {
		ep := &m.rotation.members[container][i]
		if ep.Resting != in {
			continue
		}
		p, ok := m.networks.driverOf(*ep).(Publisher)
		if !ok {
			continue
		}
		now := *ep
		now.Resting = !in
		if err := p.Rotate(ctx, now); err != nil {
			m.log.Error("shared ports of a container", "container", container, "in", in, "error", err)
			continue
		}
		if err := m.passOn(now, now.mappings(), nil); err != nil {
			m.log.Error("shared ports of a container", "container", container, "in", in, "error", err)
		}
		ep.Resting = now.Resting
	}
}
