package network

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// index knows the names and addresses of containers on networks of users. A
// question costs the same however many there are.
type index struct {
	mu    sync.RWMutex
	nets  map[string]*named
	seats map[string]*seat // by container id
	// services are names on networks that no container of this host gives, or that come
	// before theirs; by the network's id and name in lower case.
	services map[string]map[string][]netip.Addr
}

// named are the names on one network.
type named struct {
	names map[string][]entry // by name in lower case
	addrs map[netip.Addr]string
}

type entry struct {
	container string
	addrs     []netip.Addr
}

// seat is what one container can see.
type seat struct {
	eps      []Endpoint
	internal bool                         // all its networks are
	sick     bool                         // or not known to be well yet
	resting  bool                         // for the time being nothing new is to come to it
	links    map[string]map[string]string // by network: alias in lower case → whom it means
}

func newIndex() *index {
	return &index{nets: map[string]*named{}, seats: map[string]*seat{}, services: map[string]map[string][]netip.Addr{}}
}

// seatable are the endpoints on networks that have names.
func seatable(eps []Endpoint) []Endpoint {
	return slices.DeleteFunc(slices.Clone(eps), func(ep Endpoint) bool { return ep.Network == "" || predefined[ep.Network] != "" })
}

// set replaces what is known of a container; outside tells whether one of its
// networks leads out.
func (x *index) set(container string, eps []Endpoint, outside bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var sick, resting bool
	if old := x.seats[container]; old != nil {
		sick = old.sick
		resting = old.resting && old.sameRun(eps)
	}
	x.removeLocked(container)
	s := &seat{eps: seatable(eps), internal: !outside, sick: sick, resting: resting, links: map[string]map[string]string{}}
	x.seats[container] = s
	for _, ep := range s.eps {
		n := x.nets[ep.Network]
		if n == nil {
			n = &named{names: map[string][]entry{}, addrs: map[netip.Addr]string{}}
			x.nets[ep.Network] = n
		}
		e := entry{container: container, addrs: ep.addrs()}
		for _, name := range ep.DNSNames {
			name = strings.ToLower(name)
			if !slices.ContainsFunc(n.names[name], func(o entry) bool { return o.container == container }) {
				n.names[name] = append(n.names[name], e)
			}
		}
		if len(ep.DNSNames) > 0 {
			for _, a := range e.addrs {
				n.addrs[a] = ep.DNSNames[0] + "." + ep.Network
			}
		}
		for _, l := range ep.Links {
			who, alias, ok := strings.Cut(l, ":")
			if !ok {
				alias = who
			}
			if s.links[ep.Network] == nil {
				s.links[ep.Network] = map[string]string{}
			}
			s.links[ep.Network][strings.ToLower(alias)] = strings.ToLower(who)
		}
	}
}

// drop forgets a container, unless it is there by other endpoints than these.
func (x *index) drop(container string, eps []Endpoint) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.seats[container]
	if s == nil {
		return
	}
	mine := seatable(eps)
	if len(s.eps) > 0 && !slices.ContainsFunc(s.eps, func(a Endpoint) bool {
		return slices.ContainsFunc(mine, func(b Endpoint) bool { return a.EndpointID == b.EndpointID })
	}) {
		return
	}
	x.removeLocked(container)
}

func (x *index) removeLocked(container string) {
	s := x.seats[container]
	if s == nil {
		return
	}
	delete(x.seats, container)
	for _, ep := range s.eps {
		n := x.nets[ep.Network]
		if n == nil {
			continue
		}
		for _, name := range ep.DNSNames {
			name = strings.ToLower(name)
			left := slices.DeleteFunc(slices.Clone(n.names[name]), func(e entry) bool { return e.container == container })
			if n.names[name] = left; len(left) == 0 {
				delete(n.names, name)
			}
		}
		for _, a := range ep.addrs() {
			delete(n.addrs, a)
		}
		if len(n.names) == 0 && len(n.addrs) == 0 {
			delete(x.nets, ep.Network)
		}
	}
}

// clear forgets all.
func (x *index) clear() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.nets)
	clear(x.seats)
}

// addrs are the addresses of an endpoint.
func (ep Endpoint) addrs() (out []netip.Addr) {
	for _, s := range []string{ep.IP, ep.IP6} {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// sameRun tells whether some of the endpoints are those of the seat, and not of a later
// start.
func (s *seat) sameRun(eps []Endpoint) bool {
	return slices.ContainsFunc(eps, func(ep Endpoint) bool {
		return slices.ContainsFunc(s.eps, func(old Endpoint) bool { return old.EndpointID == ep.EndpointID })
	})
}

// rest notes whether the addresses of a container are left out of answers as long as
// another has the same name.
func (x *index) rest(container string, resting bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.seats[container]; s != nil {
		s.resting = resting
	}
}

// judge notes whether a container is well.
func (x *index) judge(container string, well bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.seats[container]; s != nil {
		s.sick = !well
	}
}

// SetHealth tells whether a container is well. The addresses of one that is not, or
// not yet, are left out of answers as long as another has the same name.
//
// Shared ports lead to it only while the check has found it healthy: status is
// "starting", "healthy" or "unhealthy".
func (m *Manager) SetHealth(ctx context.Context, container, status string) {
	m.names.judge(container, status == "healthy")
	m.rotate(ctx, container, status == "healthy")
}

// Names answers for the names that one container can see. Its methods may be
// called from several goroutines, at any time, and do not block.
type Names struct {
	index     *index
	container string
}

// Names are those that a container can see; it need not be there (any more).
func (m *Manager) Names(container string) Names { return Names{m.names, container} }

// Addrs gives the addresses of a name of either family; known is false when it is
// none of the container's networks. The name may end in that of a network, and in
// a dot. The first network of the container that knows the name answers.
func (n Names) Addrs(name string) (addrs []netip.Addr, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	x := n.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.seats[n.container]
	if s == nil || name == "" {
		return nil, false
	}
	for i := range s.eps {
		network := s.eps[i].Network
		if who, ok := s.links[network][name]; ok {
			name = who
		}
		if found := x.lookup(&s.eps[i], name); len(found) > 0 {
			return found, true
		}
		if base, ok := strings.CutSuffix(name, "."+strings.ToLower(network)); ok {
			if found := x.lookup(&s.eps[i], base); len(found) > 0 {
				return found, true
			}
		}
	}
	return nil, false
}

// lookup finds a name on the network of an endpoint.
func (x *index) lookup(ep *Endpoint, name string) (addrs []netip.Addr) {
	if addrs := x.services[ep.NetworkID][name]; len(addrs) > 0 {
		return slices.Clone(addrs)
	}
	n := x.nets[ep.Network]
	if n == nil {
		return nil
	}
	list := n.names[name]
	for _, e := range list {
		if s := x.seats[e.container]; s == nil || !s.sick && !s.resting {
			addrs = append(addrs, e.addrs...)
		}
	}
	if len(addrs) > 0 {
		return addrs
	}
	for _, e := range list { // all are ill or resting: better than nobody
		addrs = append(addrs, e.addrs...)
	}
	return addrs
}

// Name is the name ("web.mynet") of an address on the container's networks.
func (n Names) Name(a netip.Addr) (name string, known bool) {
	x := n.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.seats[n.container]
	if s == nil {
		return "", false
	}
	for i := range s.eps {
		if net := x.nets[s.eps[i].Network]; net != nil {
			if name, ok := net.addrs[a.Unmap()]; ok {
				return name, true
			}
		}
	}
	return "", false
}

// External tells whether names outside may be asked for: not when all networks of
// the container are internal.
func (n Names) External() bool {
	n.index.mu.RLock()
	defer n.index.mu.RUnlock()
	s := n.index.seats[n.container]
	return s != nil && !s.internal
}
