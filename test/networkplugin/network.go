package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// network is a bridge.
type network struct {
	Link      string
	Gateway   string // CIDR
	Gateway6  string
	Options   map[string]any
	Endpoints map[string]*endpoint
}

// endpoint is a pair of links.
type endpoint struct {
	Host, Peer   string
	Joined, Open bool
	Address      string
	Options      map[string]any
}

const generic = "com.docker.network.generic"

func (s *loom) networkCall(method string, req *request) (map[string]any, error) {
	nothing := map[string]any{}
	switch method {
	case "GetCapabilities":
		return map[string]any{"Scope": "local", "ConnectivityScope": "local"}, nil
	case "CreateNetwork":
		return nothing, s.createNetwork(req)
	case "EndpointOperInfo":
		return map[string]any{"Value": map[string]any{}}, nil
	}
	n := s.Networks[req.NetworkID]
	if n == nil {
		return nil, fmt.Errorf("network %.12s is not on the loom", req.NetworkID)
	}
	if method == "DeleteNetwork" {
		if len(n.Endpoints) > 0 {
			return nil, errors.New("somebody is on the network")
		}
		delete(s.Networks, req.NetworkID)
		return nothing, remove(n.Link)
	}
	if method == "CreateEndpoint" {
		return s.createEndpoint(n, req)
	}
	ep := n.Endpoints[req.EndpointID]
	if ep == nil {
		return nil, fmt.Errorf("endpoint %.12s is not on the loom", req.EndpointID)
	}
	switch method {
	case "DeleteEndpoint":
		if ep.Joined {
			return nil, errors.New("it is joined")
		}
		delete(n.Endpoints, req.EndpointID)
		return nothing, remove(ep.Host)
	case "Join":
		return s.join(n, ep)
	case "Leave":
		ep.Joined = false
		return nothing, nil
	case "ProgramExternalConnectivity":
		ep.Open, ep.Options = true, req.Options
		return nothing, nil
	case "RevokeExternalConnectivity":
		ep.Open = false
		return nothing, nil
	}
	return nil, errUnknown
}

// remove removes a link; one that is not there is fine.
func remove(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

func (s *loom) createNetwork(req *request) error {
	if s.Networks[req.NetworkID] != nil {
		return errors.New("the network is there already")
	}
	options, _ := req.Options[generic].(map[string]any)
	if why, ok := options["refuse"].(string); ok {
		return errors.New(why)
	}
	n := &network{Link: s.prefix + req.NetworkID[:8], Options: options, Endpoints: map[string]*endpoint{}}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.Link
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	var err error
	for _, d := range []struct {
		list []ipamData
		to   *string
	}{{req.IPv4Data, &n.Gateway}, {req.IPv6Data, &n.Gateway6}} {
		if err != nil || len(d.list) == 0 || d.list[0].Gateway == "" {
			continue
		}
		var at *netlink.Addr
		if at, err = netlink.ParseAddr(d.list[0].Gateway); err == nil {
			err = netlink.AddrAdd(br, at)
			*d.to = d.list[0].Gateway
		}
	}
	if err == nil {
		err = netlink.LinkSetUp(br)
	}
	if err != nil {
		return errors.Join(err, netlink.LinkDel(br))
	}
	s.Networks[req.NetworkID] = n
	return nil
}

// createEndpoint makes the pair of links. Without an address of the engine's it gives
// one itself, if the network has the option "own".
func (s *loom) createEndpoint(n *network, req *request) (map[string]any, error) {
	if n.Endpoints[req.EndpointID] != nil {
		return nil, errors.New("the endpoint is there already")
	}
	ep := &endpoint{Host: s.prefix + "h" + req.EndpointID[:7], Peer: s.prefix + "p" + req.EndpointID[:7], Options: req.Options}
	bridge, err := netlink.LinkByName(n.Link)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = ep.Host, bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: ep.Peer}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		return nil, errors.Join(err, netlink.LinkDel(pair))
	}
	answer := face{}
	if own, ok := n.Options["own"].(string); ok && req.Interface.Address == "" {
		answer.Address = own
	}
	ep.Address = req.Interface.Address + answer.Address
	n.Endpoints[req.EndpointID] = ep
	return map[string]any{"Interface": answer}, nil
}

func (s *loom) join(n *network, ep *endpoint) (map[string]any, error) {
	ep.Joined = true
	src := ep.Peer
	if name, ok := n.Options["src"].(string); ok { // a link that is none of its own
		src = name
	}
	a := map[string]any{"InterfaceName": map[string]string{"SrcName": src, "DstPrefix": "loom"}}
	if gw, err := netip.ParsePrefix(n.Gateway); err == nil {
		a["Gateway"] = gw.Addr().String()
	}
	if gw, err := netip.ParsePrefix(n.Gateway6); err == nil {
		a["GatewayIPv6"] = gw.Addr().String()
	}
	if dst, ok := n.Options["route"].(string); ok {
		route := map[string]any{"Destination": dst, "RouteType": 1}
		if via, ok := n.Options["via"].(string); ok {
			route = map[string]any{"Destination": dst, "RouteType": 0, "NextHop": via}
		}
		a["StaticRoutes"] = []any{route}
	}
	return a, nil
}
