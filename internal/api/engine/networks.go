package engine

import (
	"net"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// eachNetwork calls f for every network of a container in order of their names:
// what the client asked of it (nil: nothing) and where the container is on it
// (nil: not now).
func eachNetwork(v *container.View, f func(name string, asked *network.EndpointSettings, ep *endpoint)) {
	mode := v.HostConfig.NetworkMode
	if mode.IsContainer() {
		return
	}
	var space [4]string
	names := space[:0]
	add := func(name string) {
		if name = networkName(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for name := range v.Networking {
		add(name)
	}
	for i := range v.Endpoints {
		if v.Endpoints[i].Network != "" { // else it is on none
			add(v.Endpoints[i].Network)
		}
	}
	if len(names) == 0 && !v.NoNetworks {
		add(string(mode))
	}
	slices.Sort(names)
	for _, name := range names {
		asked := v.Networking[name]
		if asked == nil && name == network.NetworkBridge {
			asked = v.Networking[network.NetworkDefault]
		}
		var ep *endpoint
		for i := range v.Endpoints {
			if v.Endpoints[i].Network == name {
				ep = &v.Endpoints[i]
			}
		}
		f(name, asked, ep)
	}
}

// remembering tells where a container is on a network, or what remains of that
// once it has ended, the network's id; the ids are looked up once.
func (s *Server) remembering() func(v *container.View, name string, ep *endpoint) *endpoint {
	seen := map[string]string{}
	return func(v *container.View, name string, ep *endpoint) *endpoint {
		if ep != nil || s.cfg.Networks == nil || !begun(v) {
			return ep
		}
		id, ok := seen[name]
		if !ok {
			info, _ := s.cfg.Networks.Find(name) // one that is gone has none
			id = info.ID
			seen[name] = id
		}
		if id == "" {
			return nil
		}
		return &endpoint{Network: name, NetworkID: id}
	}
}

// networkName is the name under which a network mode is shown.
func networkName(mode string) string {
	if mode == "" || mode == network.NetworkDefault {
		return network.NetworkBridge
	}
	return mode
}

// endpointSettings joins what was asked with what is.
func endpointSettings(v *container.View, asked *network.EndpointSettings, ep *endpoint) network.EndpointSettings {
	var es network.EndpointSettings
	if asked != nil {
		es = network.EndpointSettings{
			IPAMConfig: asked.IPAMConfig, Links: asked.Links, Aliases: asked.Aliases,
			DriverOpts: asked.DriverOpts, GwPriority: asked.GwPriority, MacAddress: asked.MacAddress,
		}
	}
	if ep == nil {
		return es
	}
	es.NetworkID, es.EndpointID = ep.NetworkID, ep.EndpointID
	es.Gateway, _ = netip.ParseAddr(ep.Gateway) // an empty one is the zero address
	es.IPAddress, _ = netip.ParseAddr(ep.IP)
	es.IPPrefixLen = ep.PrefixLen
	es.GlobalIPv6Address, _ = netip.ParseAddr(ep.IP6)
	es.GlobalIPv6PrefixLen = ep.PrefixLen6
	es.IPv6Gateway, _ = netip.ParseAddr(ep.Gateway6)
	if es.Gateway.IsValid() && es.Gateway.IsUnspecified() { // straight onto the link
		es.Gateway = netip.Addr{}
	}
	if es.IPv6Gateway.IsValid() && es.IPv6Gateway.IsUnspecified() {
		es.IPv6Gateway = netip.Addr{}
	}
	if mac, err := net.ParseMAC(ep.MAC); err == nil {
		es.MacAddress = network.HardwareAddr(mac)
	}
	if apicontainer.NetworkMode(ep.Network).IsUserDefined() {
		es.DNSNames = dnsNames(v, es.Aliases)
	}
	return es
}

// dnsNames are the names others on a network of the user's find a container by.
func dnsNames(v *container.View, aliases []string) []string {
	names := []string{v.Name}
	for _, n := range append(slices.Clone(aliases), v.ID.Short(), v.Config.Hostname) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}
