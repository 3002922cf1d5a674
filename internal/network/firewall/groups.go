package firewall

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/nft"
)

// spot is a place on the host that a group of endpoints shares.
type spot struct {
	proto uint8
	host  netip.AddrPort
}

func (p Port) spot() spot { return spot{p.Proto, p.Host} }

// groups holds where connections to each shared place go. A group in which no
// endpoint is left is not there.
type groups map[spot][]netip.AddrPort

// with and without give the groups with a port more or less; they do not change g.
func (g groups) with(p Port) groups {
	out := g.copy()
	if to := out[p.spot()]; !slices.Contains(to, p.To) {
		out[p.spot()] = append(slices.Clone(to), p.To)
	}
	return out
}

func (g groups) without(p Port) groups {
	out := g.copy()
	to := slices.DeleteFunc(slices.Clone(out[p.spot()]), func(a netip.AddrPort) bool { return a == p.To })
	if len(to) == 0 {
		delete(out, p.spot())
	} else {
		out[p.spot()] = to
	}
	return out
}

func (g groups) copy() groups {
	out := make(groups, len(g)+1)
	for s, to := range g {
		out[s] = to
	}
	return out
}

// sorted are the places in an order that does not depend on when they came.
func (g groups) sorted() []spot {
	var out []spot
	for s := range g {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b spot) int { return cmp.Or(cmp.Compare(a.proto, b.proto), a.host.Compare(b.host)) })
	return out
}

// chain is the name of the chain that spreads connections to a place.
func (s spot) chain() string {
	family := "spread4"
	if s.host.Addr().Is6() {
		family = "spread6"
	}
	name := fmt.Sprintf("%s-%d-%d", family, s.proto, s.host.Port())
	if !s.host.Addr().IsUnspecified() {
		name += "-" + strings.ReplaceAll(s.host.Addr().String(), ":", "_")
	}
	return name
}

// define enters the places into the maps.
func (g groups) define(p4, p6 *publication) {
	for _, s := range g.sorted() {
		p := p4
		if s.host.Addr().Is6() {
			p = p6
		}
		e := nft.Element{Value: "jump " + s.chain()}
		if s.host.Addr().IsUnspecified() {
			e.Key = nft.Bytes(s.proto, s.host.Port())
			p.groups.Fixed = append(p.groups.Fixed, e)
		} else {
			e.Key = nft.Bytes(s.host.Addr(), s.proto, s.host.Port())
			p.hostGroups.Fixed = append(p.hostGroups.Fixed, e)
		}
	}
}

// chains spread the connections to each place over its endpoints, each new one
// to the next.
func (g groups) chains() []nft.Chain {
	var out []nft.Chain
	for _, s := range g.sorted() {
		only := publicationFor(s.host.Addr()).only
		out = append(out, nft.Chain{Name: s.chain(), Rules: []nft.Rule{{nft.Protocol(s.proto), only, nft.Spread(g[s])}}})
	}
	return out
}
