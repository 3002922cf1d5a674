package cluster

import (
	"cmp"
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

// Fits tells whether a node on which others are published has room for the port, as far as
// they tell: what they may choose of is not counted before all of it has to be this one's.
func (p Port) Fits(others []Port) bool {
	if p.Published == 0 {
		return true
	}
	n := 0
	for _, o := range others {
		if p.meets(o) && p.Suits(o.Published) && p.Suits(cmp.Or(o.Last, o.Published)) {
			n++
		}
	}
	return n < int(max(p.Published, p.Last)-p.Published)+1
}

// meets tells whether both are of one protocol, at an address that they share.
func (p Port) meets(o Port) bool {
	every := []string{"", "0.0.0.0", "::"}
	return p.Proto == o.Proto && (p.Address == o.Address || slices.Contains(every, p.Address) || slices.Contains(every, o.Address))
}
