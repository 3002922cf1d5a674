package network

import (
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

// Keep leaves the addresses that a container asks for by its settings, by network, to it
// while it does not run: nobody else gets them without asking. A network that is not there
// keeps them as soon as it is made, also one that is removed and made again. What was kept for
// the container before is not any more. Idempotent; does not block. Undone by Unkeep, and in
// memory alone: an engine that starts asks anew.
func (m *Manager) Keep(container string, asked map[string]*network.EndpointSettings) {
	wanted := map[string][]netip.Addr{}
	for ref, s := range asked {
		if s == nil || s.IPAMConfig == nil {
			continue
		}
		for _, a := range []netip.Addr{s.IPAMConfig.IPv4Address, s.IPAMConfig.IPv6Address} {
			if a.IsValid() {
				wanted[canonical(ref)] = append(wanted[canonical(ref)], a)
			}
		}
	}
	m.networks.keep(container, wanted)
}

// Unkeep undoes Keep. Idempotent; does not block.
func (m *Manager) Unkeep(container string) { m.networks.keep(container, nil) }

// keep has these addresses, by network, kept for a container, and no others.
func (t *table) keep(container string, wanted map[string][]netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if before := t.kept[container]; len(before) > 0 {
		for _, a := range t.byName { // whichever of them a reference meant
			for _, addrs := range before {
				a.each(addrs, func(p *pool, ip netip.Addr) { p.Unkeep(ip, container) })
			}
		}
	}
	if len(wanted) == 0 {
		delete(t.kept, container)
		return
	}
	t.kept[container] = wanted
	for ref := range wanted {
		if a, err := t.findLocked(ref); err == nil {
			t.keepIn(a, container)
		}
	}
}

// keepAll keeps in a network that has new pools what containers ask for there. Called with
// the lock held, before anybody can be given an address of it.
func (t *table) keepAll(a *attached) {
	for container := range t.kept {
		t.keepIn(a, container)
	}
}

// keepIn keeps in one network what one container asks for there. Called with the lock held.
func (t *table) keepIn(a *attached, container string) {
	for ref, addrs := range t.kept[container] {
		if meant, err := t.findLocked(ref); err == nil && meant == a {
			a.each(addrs, func(p *pool, ip netip.Addr) { p.Keep(ip, container) })
		}
	}
}

// each calls do for those of the addresses that are a pool's.
func (a *attached) each(addrs []netip.Addr, do func(*pool, netip.Addr)) {
	for _, p := range a.pools {
		for _, ip := range addrs {
			if p.Subnet().Contains(ip) {
				do(p, ip)
			}
		}
	}
}
