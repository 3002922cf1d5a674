package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/sys/netns"
)

// makers are who makes a network.
type makers struct {
	driver    Driver
	addresses Addresses // nil: the engine's own
}

// make chooses the subnets, writes the record and makes the network, in the kernel or
// by a plugin.
func (m maker) make(ctx context.Context, with makers, r *record) (err error) {
	if with.addresses != nil {
		if r.IPAM.Subnets, err = with.addresses.Pools(ctx, poolRequest(with.driver, r)); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				with.addresses.Drop(context.WithoutCancel(ctx), r.ID)
			}
		}()
	}
	if foreign(with.driver) {
		return m.makeThere(ctx, with, r)
	}
	m.making.Lock()
	defer m.making.Unlock()
	// Engines on one machine do this one after the other.
	unlock, err := netns.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.subnets(with.driver, r); err != nil {
		return err
	}
	if err := m.records.save(r); err != nil {
		return err
	}
	if err = m.openOne(ctx, with, r.spec(), r.info()); err != nil {
		return errors.Join(err, m.records.remove(r.ID))
	}
	return nil
}

// makeThere has a plugin make a network. Nobody else waits meanwhile: its name and its
// subnets are claimed. The record comes last: what a plugin was asked for without one is
// ended by the next engine.
func (m maker) makeThere(ctx context.Context, with makers, r *record) error {
	if err := m.chooseFor(with.driver, r); err != nil {
		return err
	}
	made, err := with.driver.Create(ctx, r.spec())
	if err != nil {
		return err
	}
	r.Scope = made.Scope
	if err := m.records.save(r); err != nil {
		return errors.Join(err, with.driver.Delete(context.WithoutCancel(ctx), r.ID))
	}
	return m.install(with, r.spec(), r.info(), r.IPAM.Subnets)
}

// chooseFor gives the network of a plugin its subnets and claims them.
func (m maker) chooseFor(d Driver, r *record) error {
	m.making.Lock()
	defer m.making.Unlock()
	unlock, err := netns.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.subnets(d, r); err != nil {
		return err
	}
	m.networks.claimSubnets(r.Name, prefixes(r.IPAM.Subnets))
	return nil
}

// poolRequest is what a network asks of an IPAM driver: a subnet of each family that it
// has, at least.
func poolRequest(d Driver, r *record) PoolRequest {
	ask := PoolRequest{Network: r.ID, Options: r.IPAM.Options, NoGateway: func(v6 bool) bool {
		g, ok := d.(Gatewayless)
		return ok && g.NoGateway(r.spec(), v6)
	}}
	for _, v6 := range []bool{false, true} {
		if v6 && !r.EnableIPv6 || !v6 && !r.EnableIPv4 {
			continue
		}
		mine := slices.DeleteFunc(slices.Clone(r.IPAM.Subnets), func(s Subnet) bool { return s.Prefix.Addr().Is6() != v6 })
		if len(mine) == 0 {
			any := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if v6 {
				any = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			mine = []Subnet{{Prefix: any}}
		}
		ask.Subnets = append(ask.Subnets, mine...)
	}
	return ask
}
