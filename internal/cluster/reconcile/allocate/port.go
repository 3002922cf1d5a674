package allocate

import (
	"fmt"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
)

// The ports that services get who ask for any, Docker's.
const (
	firstPort = 30000
	lastPort  = 32767
)

// ports settles which ports of the service are published on all nodes. One that was chosen
// stays as long as somebody asks for any.
func (w *work) ports() {
	st := &w.s.Status
	if address.Ingress(w.v) == nil {
		st.Ports = nil
		return
	}
	var out []cluster.Port
	for _, p := range w.s.Spec.Ports {
		if address.Meshed(p) && p.Open() {
			if n := w.before(p, out); n != 0 {
				p = p.At(n)
			}
		}
		out = append(out, p)
	}
	if !slices.Equal(out, st.Ports) && !w.claim(out) {
		out = st.Ports
	}
	st.Ports = out
}

// before is what was chosen for a port earlier, unless another of the service's ports has or
// wants that; 0: nothing was.
func (w *work) before(p cluster.Port, others []cluster.Port) uint16 {
	for _, had := range w.s.Status.Ports {
		same := func(o cluster.Port) bool {
			return address.Meshed(o) && o.Proto == had.Proto && !o.Open() && o.Published == had.Published
		}
		if address.Meshed(had) && p.Suits(had.Published) && had.Proto == p.Proto && had.Target == p.Target && had.Name == p.Name &&
			!slices.ContainsFunc(others, same) && !slices.ContainsFunc(w.s.Spec.Ports, same) {
			return had.Published
		}
	}
	return 0
}

// claim settles ports that are to be published now; false: one is another's.
func (w *work) claim(ports []cluster.Port) bool {
	type place struct {
		proto any
		port  uint16
	}
	used := map[place]*cluster.Service{}
	for _, s := range store.List[*cluster.Service](w.v) {
		for _, p := range s.Status.Ports {
			if address.Meshed(p) && s.ID != w.s.ID {
				used[place{p.Proto, p.Published}] = s
			}
		}
	}
	for i := range ports {
		p := &ports[i]
		if !address.Meshed(*p) {
			continue
		}
		first, last := choice(*p)
		for free := first; p.Open() && free <= last; free++ {
			n := uint16(free)
			taken := slices.ContainsFunc(ports, func(o cluster.Port) bool {
				return address.Meshed(o) && o.Proto == p.Proto && !o.Open() && o.Published == n
			})
			if used[place{p.Proto, n}] == nil && !taken {
				*p = p.At(n)
			}
		}
		if p.Open() {
			w.s.Status.Err = fmt.Sprintf("no port from %d to %d is free", first, last)
			return false
		}
		if s := used[place{p.Proto, p.Published}]; s != nil {
			w.s.Status.Err = fmt.Sprintf("port '%d' is already in use by service '%s' (%s) as an ingress port", p.Published, s.Name, s.ID)
			return false
		}
	}
	return true
}

// choice is of which ports one is chosen.
func choice(p cluster.Port) (first, last int) {
	if p.Published == 0 {
		return firstPort, lastPort
	}
	return int(p.Published), int(max(p.Published, p.Last))
}
