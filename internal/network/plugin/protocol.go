package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/plugin"
	"github.com/containerd/errdefs"
)

// How long a plugin has.
const (
	makeTime = 30 * time.Second // to make a network or a pool
	joinTime = 15 * time.Second // to make an endpoint, or give an address
	endTime  = 5 * time.Second  // to end something; it is told again later
)

// Options that the protocols name.
const (
	optGeneric     = "com.docker.network.generic"
	optInternal    = "com.docker.network.internal"
	optIPv4        = "com.docker.network.enable_ipv4"
	optIPv6        = "com.docker.network.enable_ipv6"
	optPorts       = "com.docker.network.portmap"
	optExposed     = "com.docker.network.endpoint.exposedports"
	optMAC         = "com.docker.network.endpoint.macaddress"
	optGateway     = "com.docker.network.gateway"
	optAddressType = "RequestAddressType"
	// optOurs names the network or the endpoint for which an IPAM driver is asked. Asked
	// again with the same value it may give the same again: a request whose answer was lost
	// is repeated so.
	optOurs = "escale.request"
)

// caller asks one plugin for one kind of things.
type caller struct {
	*plugin.Plugin
	kind string // plugin.NetworkDriver or plugin.IpamDriver
}

// call asks, at most for the time given. Of a method that the plugin does not know the
// error is NotImplemented.
func (c caller) call(ctx context.Context, method string, args, ret any, how plugin.How) error {
	if args == nil {
		args = struct{}{}
	}
	var raw json.RawMessage
	err := c.Call(ctx, c.kind+"."+method, args, &raw, how)
	if err == nil {
		err = decode(raw, ret)
	}
	var remote *plugin.RemoteError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &remote) && remote.Status == 404:
		return errdefs.ErrNotImplemented.WithMessage(remote.Error())
	case remote != nil && remote.Status == 200:
		return fmt.Errorf("remote: %w", remote) // Docker's words
	}
	return fmt.Errorf("plugin %s: %s.%s: %w", c.Name, c.kind, method, err)
}

// decode reads an answer, in which IPAM drivers tell errors otherwise than others.
func decode(raw json.RawMessage, ret any) error {
	var failure struct{ Error string }
	if err := json.Unmarshal(raw, &failure); err != nil {
		return err
	}
	if failure.Error != "" {
		return &plugin.RemoteError{Status: 200, Message: failure.Error}
	}
	if ret == nil {
		return nil
	}
	return json.Unmarshal(raw, ret)
}

func isRemote(err error) bool {
	var remote *plugin.RemoteError
	return errors.As(err, &remote) || errdefs.IsNotImplemented(err)
}

// ipamData is a subnet of a network as a network driver is told it.
type ipamData struct {
	AddressSpace string
	Pool         string
	Gateway      string         `json:",omitempty"`
	AuxAddresses map[string]any `json:",omitempty"`
}

// subnets are those of a family for a driver.
func subnets(s network.Spec, v6 bool) []ipamData {
	out := []ipamData{}
	for _, n := range s.Subnets {
		if n.Prefix.Addr().Is6() != v6 {
			continue
		}
		d := ipamData{AddressSpace: "LocalDefault", Pool: n.Prefix.String()}
		if n.Gateway.IsValid() {
			d.Gateway = netip.PrefixFrom(n.Gateway, n.Prefix.Bits()).String()
		}
		for name, a := range n.Aux {
			if d.AuxAddresses == nil {
				d.AuxAddresses = map[string]any{}
			}
			d.AuxAddresses[name] = netip.PrefixFrom(a, n.Prefix.Bits()).String()
		}
		out = append(out, d)
	}
	if len(out) == 0 && !v6 && s.IPv4 {
		out = append(out, ipamData{AddressSpace: "null", Pool: "0.0.0.0/0"})
	}
	return out
}

// networkOptions are the options of a network for a driver.
func networkOptions(s network.Spec) map[string]any {
	generic := s.Options
	if generic == nil {
		generic = map[string]string{}
	}
	o := map[string]any{optGeneric: generic, optIPv4: s.IPv4, optIPv6: s.IPv6}
	if s.Internal {
		o[optInternal] = true
	}
	return o
}

// port is a port of a container, binding one that is published, as drivers have them.
type port struct {
	Proto uint8
	Port  uint16
}

type binding struct {
	Proto       uint8
	IP          string
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

var protocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// endpointOptions are those of an endpoint for a driver.
func endpointOptions(j network.Join) map[string]any {
	o := map[string]any{}
	for k, v := range j.Options {
		o[k] = v
	}
	exposed, ports := []port{}, []binding{}
	for p := range j.Wants.Exposed {
		exposed = append(exposed, port{protocols[string(p.Proto())], p.Num()})
	}
	for p, list := range j.Wants.Bindings {
		for _, b := range list {
			one := binding{Proto: protocols[string(p.Proto())], Port: p.Num()}
			if b.HostIP.IsValid() {
				one.HostIP = b.HostIP.String()
			}
			from, to, ranged := strings.Cut(b.HostPort, "-")
			if !ranged {
				to = from
			}
			fmt.Sscan(from, &one.HostPort)
			fmt.Sscan(to, &one.HostPortEnd)
			ports = append(ports, one)
		}
	}
	o[optExposed], o[optPorts] = exposed, ports
	return o
}

// face is the interface of an endpoint, as asked for and as answered.
type face struct {
	Address, AddressIPv6, MacAddress string
}

// joined is what a driver answers to Join, read.
type joined struct {
	src, prefix       string // names of the link: on the host, and the beginning of that inside
	gateway, gateway6 netip.Addr
	routes            []route
}

// route is one that a driver wants inside.
type route struct {
	dst netip.Prefix
	via netip.Addr // the zero Addr: straight onto the link
}

// joinAnswer is what a driver answers to Join.
type joinAnswer struct {
	InterfaceName        *struct{ SrcName, DstPrefix string }
	Gateway, GatewayIPv6 string
	StaticRoutes         []struct {
		Destination string
		RouteType   int // 0: by a next hop, 1: onto the link
		NextHop     string
	}
	DisableGatewayService bool
}

// parse checks what a plugin says before the kernel hears of it.
func (a *joinAnswer) parse() (out joined, err error) {
	if i := a.InterfaceName; i != nil && i.SrcName != "" {
		out.src, out.prefix = i.SrcName, i.DstPrefix
		if out.prefix == "" {
			out.prefix = "eth"
		}
		if !network.ValidLink(out.src) {
			return out, fmt.Errorf("the plugin names a link %q", out.src)
		}
		if !network.ValidLink(out.prefix + "0") {
			return out, fmt.Errorf("the plugin names links in containers %q", out.prefix)
		}
	}
	for _, g := range []struct {
		text string
		to   *netip.Addr
		six  bool
	}{{a.Gateway, &out.gateway, false}, {a.GatewayIPv6, &out.gateway6, true}} {
		if g.text == "" {
			continue
		}
		at, err := netip.ParseAddr(g.text)
		if err != nil || at.Unmap().Is6() != g.six || at.Zone() != "" || at.IsUnspecified() {
			return out, fmt.Errorf("the plugin names a gateway %q", g.text)
		}
		*g.to = at.Unmap()
	}
	for _, r := range a.StaticRoutes {
		dst, err := netip.ParsePrefix(r.Destination)
		if err != nil {
			return out, fmt.Errorf("the plugin names a route to %q", r.Destination)
		}
		one := route{dst: dst.Masked()}
		switch r.RouteType {
		case 0:
			if one.via, err = netip.ParseAddr(r.NextHop); err != nil || one.via.Is6() != dst.Addr().Is6() || one.via.Zone() != "" || one.via.IsUnspecified() {
				return out, fmt.Errorf("the plugin names a route to %s by %q", dst, r.NextHop)
			}
		case 1:
		default:
			return out, fmt.Errorf("the plugin names a route to %s of kind %d", dst, r.RouteType)
		}
		out.routes = append(out.routes, one)
	}
	return out, nil
}

// merge takes what a driver has chosen of an endpoint's interface into the join. What
// was given to it stays.
func (f *face) merge(j *network.Join) error {
	for _, a := range []struct {
		text string
		to   *netip.Prefix
		six  bool
	}{{f.Address, &j.IP, false}, {f.AddressIPv6, &j.IP6, true}} {
		if a.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(a.text)
		if err != nil || p.Addr().Is6() != a.six || p.Addr().IsUnspecified() {
			return fmt.Errorf("the plugin names an address %q", a.text)
		}
		if a.to.IsValid() {
			return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint interface IP present (%s). Cannot be modified with %s.", *a.to, p))
		}
		*a.to = p
	}
	if f.MacAddress != "" {
		mac, err := net.ParseMAC(f.MacAddress)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("the plugin names a MAC address %q", f.MacAddress)
		}
		if len(j.MAC) > 0 {
			return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint interface MAC address present (%s). Cannot be modified with %s.", j.MAC, mac))
		}
		j.MAC = mac
	}
	return nil
}

// granted is a pool as an IPAM driver answers.
type granted struct {
	PoolID, Pool string
	Data         map[string]string
}

// parse checks it; the gateway is the zero Addr when the answer names none.
func (g *granted) parse(v6 bool) (pool netip.Prefix, gateway netip.Addr, err error) {
	pool, err = netip.ParsePrefix(g.Pool)
	if err != nil || pool.Addr().Is6() != v6 {
		return pool, gateway, fmt.Errorf("the plugin gives a pool %q", g.Pool)
	}
	if text := g.Data[optGateway]; text != "" {
		p, err := netip.ParsePrefix(text)
		if err != nil || !pool.Contains(p.Addr()) {
			return pool, gateway, fmt.Errorf("the plugin gives pool %s a gateway %q", pool, text)
		}
		gateway = p.Addr()
	}
	return pool.Masked(), gateway, nil
}

// parseAddress reads an address of a pool as an IPAM driver gives it.
func parseAddress(text string, pool netip.Prefix) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || !pool.Contains(p.Addr()) {
		return netip.Prefix{}, fmt.Errorf("the plugin gives an address %q in pool %s", text, pool)
	}
	return p, nil
}
