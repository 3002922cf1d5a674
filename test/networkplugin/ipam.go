package main

import (
	"errors"
	"fmt"
	"net/netip"
)

// pool is a subnet of which addresses are given out.
type pool struct {
	Prefix, Range string
	Options       map[string]any
	Taken         map[string]string // address → for whom ("escale.request")
}

const ours = "escale.request"

func (s *loom) ipamCall(method string, req *request) (map[string]any, error) {
	switch method {
	case "GetCapabilities":
		return map[string]any{"RequiresMACAddress": s.has("mac"), "RequiresRequestReplay": s.has("replay")}, nil
	case "GetDefaultAddressSpaces":
		return map[string]any{"LocalDefaultAddressSpace": "loomlocal", "GlobalDefaultAddressSpace": "loomglobal"}, nil
	case "RequestPool":
		return s.requestPool(req)
	}
	p := s.Pools[req.PoolID]
	if p == nil {
		return nil, fmt.Errorf("pool %q is not on the loom", req.PoolID)
	}
	switch method {
	case "ReleasePool":
		if len(p.Taken) > 0 {
			return nil, fmt.Errorf("pool %q is not empty: %v", req.PoolID, p.Taken)
		}
		delete(s.Pools, req.PoolID)
		return map[string]any{}, nil
	case "RequestAddress":
		return s.requestAddress(p, req)
	case "ReleaseAddress":
		if _, ok := p.Taken[req.Address]; !ok {
			return nil, fmt.Errorf("address %s was not given out", req.Address)
		}
		delete(p.Taken, req.Address)
		return map[string]any{}, nil
	}
	return nil, errUnknown
}

// requestPool gives a subnet: the one that is asked for, or one of its own.
func (s *loom) requestPool(req *request) (map[string]any, error) {
	who, _ := req.Options[ours].(string)
	for id, p := range s.Pools { // asked again
		had, _ := p.Options[ours].(string)
		if who != "" && had == who && (req.Pool == "" || req.Pool == p.Prefix) && netip.MustParsePrefix(p.Prefix).Addr().Is6() == req.V6 {
			return map[string]any{"PoolID": id, "Pool": p.Prefix}, nil
		}
	}
	prefix := req.Pool
	for i := 1; prefix == "" && i < 250; i++ {
		try := fmt.Sprintf("10.%d.%d.0/24", s.base, i)
		if req.V6 {
			try = fmt.Sprintf("fd31:%x:0:%x::/64", s.base, i)
		}
		if s.Pools[req.AddressSpace+"/"+try] == nil {
			prefix = try
		}
	}
	id := req.AddressSpace + "/" + prefix
	if s.Pools[id] != nil {
		return nil, fmt.Errorf("pool %s is taken", prefix)
	}
	if _, err := netip.ParsePrefix(prefix); err != nil {
		return nil, err
	}
	s.Pools[id] = &pool{Prefix: prefix, Range: req.SubPool, Options: req.Options, Taken: map[string]string{}}
	return map[string]any{"PoolID": id, "Pool": prefix, "Data": map[string]string{}}, nil
}

// requestAddress gives the address that is asked for, or the first free one from .100 on
// (a gateway: from .1 on).
func (s *loom) requestAddress(p *pool, req *request) (map[string]any, error) {
	prefix := netip.MustParsePrefix(p.Prefix)
	who, _ := req.Options[ours].(string)
	give := func(a netip.Addr) (map[string]any, error) {
		p.Taken[a.String()] = who
		return map[string]any{"Address": netip.PrefixFrom(a, prefix.Bits()).String()}, nil
	}
	if s.has("mac") && req.Options["RequestAddressType"] == nil && req.Options["com.docker.network.endpoint.macaddress"] == nil {
		return nil, errors.New("no MAC address")
	}
	if req.Address != "" {
		a, err := netip.ParseAddr(req.Address)
		if err != nil || !prefix.Contains(a) {
			return nil, fmt.Errorf("address %s is not of pool %s", req.Address, prefix)
		}
		if had, ok := p.Taken[a.String()]; ok && had != who {
			return nil, fmt.Errorf("address %s is taken", a)
		}
		return give(a)
	}
	for a, had := range p.Taken { // asked again
		if who != "" && had == who {
			return give(netip.MustParseAddr(a))
		}
	}
	gateway := req.Options["RequestAddressType"] == "com.docker.network.gateway"
	a, skip := prefix.Masked().Addr(), 100
	if gateway {
		skip = 1
	}
	for i := 0; prefix.Contains(a) && i < 250; i, a = i+1, a.Next() {
		if _, taken := p.Taken[a.String()]; i >= skip && !taken {
			return give(a)
		}
	}
	return nil, errors.New("no address is free")
}
