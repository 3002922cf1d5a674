package executor

import (
	"net/netip"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// attachments are the networks that the container is on: those of the task, and that of
// published ports when the task has an address there.
func (c *controller) attachments(v store.View) []cluster.Attachment {
	out := slices.Clone(c.t.Networks)
	for i, a := range out {
		if n := address.Overlay(v, a.Network); n != nil {
			out[i].Network = n.Spec.Name // as the engine knows it
		}
	}
	n := address.Ingress(v)
	if n != nil && slices.ContainsFunc(c.t.Addresses, func(a cluster.TaskAddress) bool { return a.Network == n.ID }) &&
		!slices.ContainsFunc(out, func(a cluster.Attachment) bool { return a.Network == n.Spec.Name }) {
		// Published ports lead to where the container's way out is.
		out = append(out, cluster.Attachment{Network: n.Spec.Name, Settings: &network.EndpointSettings{GwPriority: 1}})
	}
	return out
}

// meshed tells whether nodes answer for a port of the task, so that its container need not.
func (c *controller) meshed(v store.View, p cluster.Port) bool {
	n := address.Ingress(v)
	return n != nil && address.Meshed(p) && slices.ContainsFunc(c.t.Addresses, func(a cluster.TaskAddress) bool { return a.Network == n.ID })
}

// endpoints are the container's places on networks, with the addresses that the task was
// given.
func (c *controller) endpoints(v store.View, host *container.HostConfig) map[string]*network.EndpointSettings {
	list := c.attachments(v)
	if len(list) == 0 {
		return nil
	}
	out := map[string]*network.EndpointSettings{}
	for i, a := range list {
		if i == 0 && host.NetworkMode == "" {
			host.NetworkMode = container.NetworkMode(a.Network)
		}
		out[a.Network] = c.placed(v, a)
	}
	return out
}

// placed are the settings of one place.
func (c *controller) placed(v store.View, a cluster.Attachment) *network.EndpointSettings {
	n := address.Overlay(v, a.Network)
	var mine []netip.Prefix
	for _, at := range c.t.Addresses {
		if n != nil && at.Network == n.ID {
			mine = append(mine, at.Addr)
		}
	}
	if len(mine) == 0 {
		return a.Settings
	}
	s := network.EndpointSettings{}
	if a.Settings != nil {
		s = *a.Settings
	}
	ip := network.EndpointIPAMConfig{}
	if s.IPAMConfig != nil {
		ip = *s.IPAMConfig
	}
	for _, p := range mine {
		if p.Addr().Is4() {
			ip.IPv4Address = p.Addr()
		} else {
			ip.IPv6Address = p.Addr()
		}
	}
	s.IPAMConfig = &ip
	return &s
}
