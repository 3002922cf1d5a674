package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
)

// Open tells whether there is a choice of ports to publish it at.
func (p Port) Open() bool { return p.Published == 0 || p.Last > p.Published }

// Suits tells whether it may be published at port n.
func (p Port) Suits(n uint16) bool {
	return n != 0 && (p.Published == 0 || n >= p.Published && n <= max(p.Published, p.Last))
}

// At is the port as it is published at port n.
func (p Port) At(n uint16) Port {
	p.Published, p.Last = n, 0
	return p
}

// Range is what of the host is asked for, in the words of the engine's API: "8080",
// "8000-8002", "" for any.
func (p Port) Range() string {
	switch {
	case p.Published == 0:
		return ""
	case p.Open():
		return strconv.Itoa(int(p.Published)) + "-" + strconv.Itoa(int(p.Last))
	}
	return strconv.Itoa(int(p.Published))
}

// Fit tells whether a node on which others are published has room for all the ports of a task,
// as far as they tell.
func Fit(ports, others []Port) bool {
	for i, p := range ports {
		if !p.Fits(slices.Concat(others, ports[:i], ports[i+1:])) {
			return false
		}
	}
	return true
}

// Fits tells whether a node on which others are published has room for the port, as far as
// they tell: what they may choose of is not counted before all of it has to be this one's.
func (p Port) Fits(others []Port) bool {
	if p.Published == 0 {
		return true
	}
	var within, fixed []Port
	for _, o := range others {
		if p.meets(o) && p.Suits(o.Published) && p.Suits(cmp.Or(o.Last, o.Published)) {
			if within = append(within, o); !o.Open() {
				fixed = append(fixed, o)
			}
		}
	}
	taken := numbers(fixed)
	// Those that share an address have a number each; one of a range elsewhere may have the same.
	for _, at := range within {
		taken = max(taken, numbers(slices.DeleteFunc(slices.Clone(within), func(o Port) bool { return !o.covers(at) })))
	}
	return taken < int(max(p.Published, p.Last)-p.Published)+1
}

// numbers is how many numbers ports take that share an address; ranges one each.
func numbers(ports []Port) (n int) {
	fixed := map[uint16]bool{}
	for _, p := range ports {
		if p.Open() {
			n++
		} else {
			fixed[p.Published] = true
		}
	}
	return n + len(fixed)
}

// meets tells whether both are of one protocol, at an address that they share.
func (p Port) meets(o Port) bool {
	return p.Proto == o.Proto && (p.covers(o) || o.covers(p))
}

// covers tells whether it is at all the addresses of another: "" is every one, "0.0.0.0" and
// "::" are those of a family.
func (p Port) covers(o Port) bool {
	if p.Address == "" || p.Address == o.Address {
		return true
	}
	a, err := netip.ParseAddr(p.Address)
	b, err2 := netip.ParseAddr(o.Address)
	if err != nil || err2 != nil {
		return false
	}
	a, b = a.Unmap(), b.Unmap()
	return a.WithZone("") == b.WithZone("") || a.IsUnspecified() && a.Is4() == b.Is4()
}
