package network

import (
	"cmp"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/rtnl"
	"golang.org/x/sys/unix"
)

// way is an endpoint's claim to be the way out of its container.
type way struct {
	name     string // of the network
	priority int
	internal bool
	v4, v6   netip.Addr // gateways; the zero Addr: none of that family
}

// wayOf is an endpoint's claim; a is its network, nil when that is no more.
func (a *attached) wayOf(ep Endpoint) way {
	w := way{name: ep.Network, priority: ep.GwPriority}
	if a == nil {
		return w
	}
	w.internal = a.info.Internal
	if !w.internal {
		w.v4, _ = netip.ParseAddr(ep.Gateway)
		w.v6, _ = netip.ParseAddr(ep.Gateway6)
	}
	return w
}

// choose picks the endpoints that have the default routes, -1 for none: the
// highest priority, then a network that leads out, then one that does so for both
// families, then by name. A network with both families has both routes.
func choose(ways []way) (v4, v6 int) {
	order := make([]int, len(ways))
	for i := range order {
		order[i] = i
	}
	rank := func(on bool) int {
		if on {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := ways[i], ways[j]
		count := func(w way) int { return rank(w.v4.IsValid()) + rank(w.v6.IsValid()) }
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(rank(!a.internal), rank(!b.internal)),
			cmp.Compare(count(a), count(b)), cmp.Compare(a.name, b.name))
	})
	v4, v6 = -1, -1
	for _, i := range order {
		has4, has6 := ways[i].v4.IsValid(), ways[i].v6.IsValid()
		if has4 && has6 {
			return i, i
		}
		if has4 && v4 < 0 {
			v4 = i
		}
		if has6 && v6 < 0 {
			v6 = i
		}
	}
	return v4, v6
}

// ways are the claims of endpoints.
func (m *base) ways(eps []Endpoint) []way {
	out := make([]way, len(eps))
	for i, ep := range eps {
		out[i] = m.networks.of(ep).wayOf(ep)
	}
	return out
}

// exit is a default route.
type exit struct {
	gateway netip.Addr // unspecified: none, straight onto the link
	link    string     // name inside; empty: no such route is made
}

// setExits makes the default routes of a namespace these: what is there is
// replaced without a gap.
func setExits(ns *netns.Handle, v4, v6 exit) error {
	return ns.Do(func() error {
		c, err := rtnl.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		for _, e := range []exit{v4, v6} {
			if err := e.set(c); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e exit) set(c *rtnl.Conn) error {
	if e.link == "" {
		return nil // the one there was went with its link
	}
	index, err := c.Index(e.link)
	if err != nil {
		return err
	}
	return c.Do(inside.RouteRequest(index, e.gateway, unix.NLM_F_CREATE|unix.NLM_F_REPLACE))
}
