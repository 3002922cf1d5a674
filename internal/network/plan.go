package network

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// plan is what a request amounts to.
type plan struct {
	parts []part // in the order of their links
	ports []port.Spec
}

// part is a network that is to be joined.
type part struct {
	net      *attached
	settings *network.EndpointSettings // never nil
}

func (p *plan) networks() []*attached {
	out := make([]*attached, len(p.parts))
	for i := range p.parts {
		out[i] = p.parts[i].net
	}
	return out
}

// ways are the claims of the endpoints that will be.
func (p *plan) ways() []way {
	out := make([]way, len(p.parts))
	for i, part := range p.parts {
		a := part.net
		out[i] = way{name: a.info.Name, priority: part.settings.GwPriority, internal: a.info.Internal}
		if a.info.Internal || foreign(a.driver) {
			continue
		}
		for _, pool := range a.pools {
			switch {
			case pool.is6() && !out[i].v6.IsValid():
				out[i].v6 = pool.gateway
			case !pool.is6() && !out[i].v4.IsValid():
				out[i].v4 = pool.gateway
			}
		}
	}
	return out
}

// Validate tells what is wrong with a request that can be told before Setup.
func (m *Manager) Validate(req Request) error {
	p, err := m.plan(req)
	if err == nil {
		m.networks.free(p.networks())
	}
	return err
}

// plan reads a request. The networks of the plan are held: free them.
func (m *base) plan(req Request) (p plan, err error) {
	defer func() {
		if err != nil {
			m.networks.free(p.networks())
		}
	}()
	asked := req.Networks
	if asked == nil {
		asked = map[string]*network.EndpointSettings{Bridge: nil}
	}
	later := false
	for _, ref := range slices.Sorted(maps.Keys(asked)) {
		name := canonical(ref)
		a, err := m.networks.hold(name)
		if missing := req.Later && errdefs.IsNotFound(err) && predefined[name] == ""; missing {
			later = true
		} else if err != nil {
			return p, err
		}
		settings := asked[ref]
		if settings == nil {
			settings = &network.EndpointSettings{}
		}
		if a != nil {
			p.parts, name = append(p.parts, part{a, settings}), a.info.Name
		}
		if err := a.allows(settings); err != nil {
			if req.There {
				return p, err
			}
			return p, worded(kindOf(err), "invalid config for network %s: %s", name, err)
		}
	}
	if err := compatible(p.networks()); err != nil {
		return p, err
	}
	main := canonical(req.Main)
	slices.SortStableFunc(p.parts, func(x, y part) int {
		first := func(a *attached) int {
			if main != "" && (a.info.Name == main || a.info.ID == main) {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(first(x.net), first(y.net)), cmp.Compare(x.net.info.Name, y.net.info.Name))
	})
	if !later && !slices.ContainsFunc(p.parts, func(x part) bool { _, ok := x.net.driver.(Publisher); return ok }) {
		return p, nil
	}
	p.ports, err = port.Specs(req.Bindings, req.Exposed, req.PublishAll)
	return p, err
}

// compatible refuses networks that one container cannot be on together.
func compatible(list []*attached) error {
	for i, a := range list {
		switch {
		case a.driver == nil:
			return worded(errdefs.ErrPermissionDenied, "cannot create endpoint on configuration-only network")
		case a.info.Driver == "host":
			return worded(errdefs.ErrInvalidArgument, "cannot connect container to host network - container must be created in host network mode")
		case a.info.Name == None && len(list) > 1:
			return worded(errdefs.ErrInvalidArgument, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
		case slices.Contains(list[:i], a):
			return worded(errdefs.ErrInvalidArgument, "network %s is specified multiple times", a.info.Name)
		}
	}
	return nil
}

// Options of endpoints of any driver.
const (
	optionIfname  = "com.docker.network.endpoint.ifname"
	optionSysctls = "com.docker.network.endpoint.sysctls"
	optionPrefix  = "com.docker.network.container_iface_prefix" // of networks
)

// allows refuses settings that the network cannot have, in Docker's words. Of nil, a
// user's network that is not there yet, it refuses those that none can have.
func (a *attached) allows(s *network.EndpointSettings) error {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	ip := s.IPAMConfig
	if ip == nil {
		ip = &network.EndpointIPAMConfig{}
	}
	if a != nil && a.info.Predefined() {
		if ip.IPv4Address.IsValid() || ip.IPv6Address.IsValid() {
			say("user specified IP address is supported on user defined networks only")
		}
		if len(s.Aliases) > 0 {
			say("network-scoped alias is supported only for containers in user defined networks")
		}
	}
	if ip.IPv4Address.IsValid() && (!ip.IPv4Address.Is4() || ip.IPv4Address.IsUnspecified()) {
		say("invalid IPv4 address: %s", ip.IPv4Address)
	}
	if ip.IPv6Address.IsValid() && (!ip.IPv6Address.Is6() || ip.IPv6Address.IsUnspecified()) {
		say("invalid IPv6 address: %s", ip.IPv6Address)
	}
	for _, l := range ip.LinkLocalIPs {
		if !l.IsValid() || !l.IsLinkLocalUnicast() {
			say("invalid link-local IP address: %s", l)
		}
	}
	if a != nil && !a.info.Predefined() {
		for _, want := range []netip.Addr{ip.IPv4Address, ip.IPv6Address} {
			if want.IsValid() {
				a.inRange(want, say)
			}
		}
	}
	for _, sysctl := range sysctls(s) {
		if _, _, ok := cutSysctl(sysctl); !ok {
			say("unrecognised network interface sysctl '%s'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'", sysctl)
		}
	}
	if name, ok := s.DriverOpts[optionIfname]; ok && !ValidLink(name) {
		say("invalid interface name: %s", name)
	}
	for _, l := range s.Links {
		if l == "" || strings.Count(l, ":") > 1 {
			say("bad format for links: %s", l)
		}
	}
	if len(wrong) > 0 {
		return worded(errdefs.ErrInvalidArgument, "invalid endpoint settings:\n%s", listed(wrong))
	}
	return nil
}

func (a *attached) inRange(want netip.Addr, say func(string, ...any)) {
	asked := false
	for _, s := range a.info.IPAM.Subnets {
		if !s.Asked || s.Prefix.Addr().BitLen() != want.BitLen() {
			continue
		}
		if asked = true; s.Prefix.Contains(want) {
			return
		}
	}
	if asked {
		say("no configured subnet or ip-range contain the IP address %s", want)
		return
	}
	say("user specified IP address is supported only when connecting to networks with user configured subnets")
}

func sysctls(s *network.EndpointSettings) []string {
	if list, ok := s.DriverOpts[optionSysctls]; ok {
		return strings.Split(list, ",")
	}
	return nil
}

// cutSysctl splits "net.ipv4.conf.IFNAME.forwarding=1".
func cutSysctl(s string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(s, "=")
	f := strings.SplitN(key, ".", 5)
	ok = ok && len(f) == 5 && f[0] == "net" && (f[1] == "ipv4" || f[1] == "ipv6" || f[1] == "mpls") && strings.EqualFold(f[3], "ifname") &&
		!strings.ContainsAny(key, "/\x00") && f[4] != ""
	return key, value, ok
}

// ValidLink tells whether the kernel takes the name for a link.
func ValidLink(name string) bool {
	return name != "" && len(name) <= maxLink && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r\x00") && name != "lo" && name != "all" && name != "default"
}

// namer gives names to the links of a container: eth0, eth1 and so on, passing
// over those that are taken. A name that is asked for is claimed first.
type namer map[string]bool

func (n namer) claim(parts []part) error {
	for _, p := range parts {
		name := p.settings.DriverOpts[optionIfname]
		if name != "" && n[name] {
			return worded(errdefs.ErrConflict, "interface name %q is in use already", name)
		}
		n[name] = true
	}
	return nil
}

func (n namer) next(p *part) string {
	if name := p.settings.DriverOpts[optionIfname]; name != "" {
		return name
	}
	if foreign(p.net.driver) {
		return ""
	}
	prefix := cmp.Or(p.net.info.Options[optionPrefix], "eth")
	for i := 0; ; i++ {
		if name := prefix + strconv.Itoa(i); !n[name] {
			n[name] = true
			return name
		}
	}
}

// join is how the part is to be joined; addresses are taken later.
func (p *part) join(req Request, link string) Join {
	j := Join{ContainerID: req.ContainerID, EndpointID: newID(), Interface: link, MAC: []byte(p.settings.MacAddress), Sysctls: sysctls(p.settings)}
	if foreign(p.net.driver) {
		j.Options, j.Wants = p.settings.DriverOpts, Wants{req.Bindings, req.Exposed}
	}
	if c := p.settings.IPAMConfig; c != nil {
		j.LinkLocal = c.LinkLocalIPs
	}
	return j
}

// names are those by which others on the network find the container.
func (p *part) names(req Request) []string {
	if p.net.info.Predefined() {
		return nil
	}
	var names []string
	for _, n := range append(append([]string{req.Name}, p.settings.Aliases...), req.ContainerID[:min(12, len(req.ContainerID))], req.Hostname) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// join connects a namespace to a network with addresses of it. On an error nothing
// is left behind.
func (m *base) join(ctx context.Context, ns *netns.Handle, req Request, p *part, j Join, out4, out6 bool) (ep Endpoint, err error) {
	var want4, want6 netip.Addr
	if c := p.settings.IPAMConfig; c != nil {
		want4, want6 = c.IPv4Address, c.IPv6Address
	}
	if err := m.networks.await(ctx, p.net, want4, want6); err != nil {
		return ep, err
	}
	at4, err := m.networks.take(ctx, p.net, &j, false, want4)
	if err != nil {
		return ep, err
	}
	at6, err := m.networks.take(ctx, p.net, &j, true, want6)
	if err == nil {
		j.IP, j.IP6 = at4.prefix, at6.prefix
		if out4 {
			j.Gateway = at4.gateway
		}
		if out6 {
			j.Gateway6 = at6.gateway
		}
		ep, err = p.net.driver.Join(ctx, p.net.info.ID, ns, j)
	}
	ep.setAddresses(at4, at6)
	if err != nil {
		ep.EndpointID = j.EndpointID
		m.networks.giveBack(context.WithoutCancel(ctx), p.net, ep)
		return Endpoint{}, err
	}
	ep.Network, ep.NetworkID, ep.EndpointID = p.net.info.Name, p.net.info.ID, j.EndpointID
	if p.net.info.Internal {
		ep.Gateway, ep.Gateway6 = "", ""
	}
	ep.Aliases, ep.DNSNames, ep.GwPriority, ep.Sysctls = p.settings.Aliases, p.names(req), p.settings.GwPriority, j.Sysctls
	if !p.net.info.Predefined() {
		ep.Links = p.settings.Links
	}
	for _, l := range j.LinkLocal {
		ep.LinkLocal = append(ep.LinkLocal, l.String())
	}
	return ep, nil
}

func (ep *Endpoint) setAddresses(at4, at6 place) {
	if at4.prefix.IsValid() {
		ep.IP, ep.PrefixLen = at4.prefix.Addr().String(), at4.prefix.Bits()
	}
	if at4.gateway.IsValid() {
		ep.Gateway = at4.gateway.String()
	}
	if at6.prefix.IsValid() {
		ep.IP6, ep.PrefixLen6 = at6.prefix.Addr().String(), at6.prefix.Bits()
	}
	if at6.gateway.IsValid() {
		ep.Gateway6 = at6.gateway.String()
	}
}

// mend tries again to make those networks of a plan that could not be.
func (m maker) mend(ctx context.Context, p plan) error {
	for _, a := range p.networks() {
		if err := m.whole(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
