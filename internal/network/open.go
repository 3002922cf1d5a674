package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"escale.dev/escale/internal/sys/netns"
)

// batch lets each driver that can do many networks in one step do so.
func (m maker) batch(do func() error) error {
	for _, d := range m.drivers {
		if b, ok := d.(Batcher); ok {
			inner := do
			do = func() error { return b.Batch(inner) }
		}
	}
	return do()
}

func (m maker) openAll(ctx context.Context, list []*record) error {
	unlock, err := netns.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range slices.Sorted(maps.Keys(predefined)) {
		d, ok := m.drivers[predefined[name]]
		if !ok {
			continue
		}
		spec := Spec{Name: name, ID: m.cfg.NetworkID(name), IPv4: true}
		for _, r := range list {
			for _, s := range r.IPAM.Subnets {
				spec.Avoid = append(spec.Avoid, s.Prefix)
			}
		}
		if err := m.openOne(ctx, makers{driver: d}, spec, Info{Scope: "local", EnableIPv4: true, Created: time.Now()}); err != nil {
			return fmt.Errorf("network %q: %w", name, err)
		}
	}
	for _, r := range list {
		if err := m.openRecord(ctx, r); err != nil {
			m.log.Error("network could not be made; it is tried again when a container wants it", "network", r.Name, "error", err)
		}
	}
	return nil
}

// openOne makes a network or takes it up. info is what is known of it beside
// what the driver tells.
func (m maker) openOne(ctx context.Context, with makers, spec Spec, info Info) error {
	made, err := with.driver.Create(ctx, spec)
	if err != nil {
		return err
	}
	info.Options = made.Options
	return m.install(with, spec, info, made.IPAM.Subnets)
}

// install adds a network that is there.
func (m maker) install(with makers, spec Spec, info Info, subnets []Subnet) error {
	d := with.driver
	info.Name, info.ID, info.Driver = spec.Name, spec.ID, d.Type()
	info.IPAM.Driver, info.IPAM.Subnets = cmp.Or(info.IPAM.Driver, "default"), subnets
	pools, err := newPools(subnets)
	if err != nil {
		return err
	}
	direct, ok := d.(Director)
	for _, p := range pools {
		switch {
		case foreign(d):
			p.gateway = netip.Addr{} // it tells at each join
		case ok && direct.Direct(spec) && p.is6():
			p.gateway = netip.IPv6Unspecified()
		case ok && direct.Direct(spec):
			p.gateway = netip.IPv4Unspecified()
		}
	}
	m.networks.mu.Lock()
	defer m.networks.mu.Unlock()
	a, there := m.networks.byName[spec.Name]
	if !there {
		a = &attached{driver: d, addresses: with.addresses, containers: map[string]Endpoint{}}
		m.networks.byName[spec.Name] = a
	}
	renewed := !there || !sameSubnets(a.info.IPAM.Subnets, info.IPAM.Subnets) // else what is given out stays given out
	a.info, a.spec, a.broken = info, spec, nil
	if renewed {
		a.pools = pools
		m.networks.keepAll(a)
	}
	return nil
}

func sameSubnets(a, b []Subnet) bool {
	return slices.EqualFunc(a, b, func(x, y Subnet) bool { return x.Prefix == y.Prefix && x.Gateway == y.Gateway && x.Range == y.Range })
}

// openRecord takes up a network of a user's. One that cannot be made is there all
// the same, broken.
func (m maker) openRecord(ctx context.Context, r *record) error {
	d, ok := m.drivers[r.Driver]
	info := r.info()
	if r.ConfigOnly {
		m.networks.put(&attached{info: info, containers: map[string]Endpoint{}})
		return nil
	}
	with := makers{driver: d}
	var err error
	if with.addresses, _, err = m.addresses(ctx, r.IPAM.Driver, true); err != nil {
		return err
	}
	if spanning(r.Driver) && m.cfg.Spanning != nil {
		with.addresses = m.cfg.Spanning
	}
	switch {
	case ok:
		if err = m.openOne(ctx, with, r.spec(), info); err == nil {
			return nil
		}
	case m.cfg.Others != nil:
		with.driver = m.cfg.Others.Known(r.Driver)
		return m.install(with, r.spec(), info, r.IPAM.Subnets)
	default:
		err, with.driver = fmt.Errorf("driver %q is not there", r.Driver), absent(r.Driver)
	}
	pools, poolErr := newPools(r.IPAM.Subnets)
	if poolErr != nil {
		return errors.Join(err, poolErr)
	}
	m.networks.put(&attached{
		driver: with.driver, addresses: with.addresses, info: info, spec: r.spec(), pools: pools, containers: map[string]Endpoint{}, broken: err,
	})
	return err
}

// whole tries again to make a network that could not be.
func (m maker) whole(ctx context.Context, a *attached) error {
	m.networks.mu.Lock()
	broken, spec, info := a.broken, a.spec, a.info
	m.networks.mu.Unlock()
	if broken == nil {
		return nil
	}
	m.making.Lock()
	defer m.making.Unlock()
	if err := m.openOne(ctx, makers{a.driver, a.addresses}, spec, info); err != nil {
		return fmt.Errorf("network %s: %w", spec.Name, err)
	}
	m.log.Info("network is whole again", "network", spec.Name)
	return nil
}
