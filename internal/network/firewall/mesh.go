package firewall

import (
	"net/netip"
	"slices"

	"escale.dev/escale/internal/sys/nft"
)

// Mesh is what every host of a cluster publishes for all of it: connections to its ports are
// spread over places of which some are on other hosts.
type Mesh struct {
	// Ports have a Group each. Those of a group and place of the host that containers share
	// are spread over with them.
	Ports []Port
	// Far are addresses on other hosts. What is sent on to them bears this host's address on
	// the link that leads there, so that the answer comes back the same way.
	Far []netip.Addr
}

// places are the mesh's, spread with what containers of this host share.
func (m Mesh) places(shared groups) groups {
	if len(m.Ports) == 0 {
		return shared
	}
	out := shared.copy()
	own := map[spot]bool{}
	for _, p := range m.Ports {
		s := p.spot()
		if !own[s] { // those of containers are not to be written to
			out[s], own[s] = slices.Clone(out[s]), true
		}
		if !slices.Contains(out[s], p.To) {
			out[s] = append(out[s], p.To)
		}
	}
	return out
}

// The addresses on other hosts.
var (
	far4 = nft.Map{Name: "far", Key: []nft.Type{nft.Addr4}}
	far6 = nft.Map{Name: "far6", Key: []nft.Type{nft.Addr6}}
)

// enter adds what the mesh needs to a table: nothing when all places are on this host.
func (m Mesh) enter(t *nft.Table) {
	if len(m.Far) == 0 {
		return
	}
	sets := []nft.Map{far4, far6}
	addrs := slices.Clone(m.Far)
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range slices.Compact(addrs) {
		s := &sets[0]
		if a.Is6() {
			s = &sets[1]
		}
		s.Fixed = append(s.Fixed, nft.Element{Key: nft.Bytes(a)})
	}
	t.Maps = append(t.Maps, sets...)
	for i := range t.Chains {
		if c := &t.Chains[i]; c.Name == "postrouting" {
			c.Rules = append([]nft.Rule{
				{nft.ToOneOf(sets[0]), nft.Translated(), nft.Masquerade()}, {nft.ToOneOf(sets[1]), nft.Translated(), nft.Masquerade()},
			}, c.Rules...)
		}
	}
}

// SetMesh makes a mesh that of the host, in one step; without ports there is none. Idempotent.
// On an error all stays as it was.
func (f *Firewall) SetMesh(m Mesh) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.mesh
	f.mesh = Mesh{Ports: slices.Clone(m.Ports), Far: slices.Clone(m.Far)}
	if !f.opened { // Open writes it
		return nil
	}
	if err := f.write(f.wanted(), nil, nil); err != nil {
		f.mesh = old
		return err
	}
	return nil
}
