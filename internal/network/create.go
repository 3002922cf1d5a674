package network

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/network/ipam"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
)

// Create is what a client asks of a new network. Addresses are as it wrote them.
type Create struct {
	Name, Driver, Scope           string
	EnableIPv4, EnableIPv6        *bool // nil: as the options say, else IPv4 alone
	Internal, Attachable, Ingress bool
	ConfigOnly                    bool
	ConfigFrom                    string
	IPAM                          *CreateIPAM
	Options, Labels               map[string]string
}

// CreateIPAM is what it asks of the addresses.
type CreateIPAM struct {
	Driver  string
	Options map[string]string
	Config  []CreateSubnet
}

// CreateSubnet is one subnet.
type CreateSubnet struct {
	Subnet, IPRange, Gateway string
	Aux                      map[string]string
}

// Options of networks of any driver.
const (
	optionIPv4 = "com.docker.network.enable_ipv4"
	optionIPv6 = "com.docker.network.enable_ipv6"
)

// The IPAM drivers: nullIPAM gives no addresses.
const (
	defaultIPAM = "default"
	nullIPAM    = "null"
)

// maker makes networks and removes them.
type maker struct {
	*base
	records  records
	making   *sync.Mutex // held by who makes or removes one
	spanning *sync.Mutex // held by who makes one of the cluster's here, so that the next finds it
}

// Create makes a network of a user's. Killed before the answer, it is there whole
// or not at all when the next engine is open. Blocks for the disk and the kernel,
// while another is made or removed, and as long as a plugin takes that has to do
// with it. Kinds and words of errors are Docker's.
func (m maker) Create(ctx context.Context, c Create) (Info, error) {
	if predefined[c.Name] != "" || c.Name == "default" {
		return Info{}, worded(errdefs.ErrPermissionDenied, "operation is not permitted on predefined %s network ", c.Name)
	}
	if c.Driver == "overlay" {
		return Info{}, worded(errdefs.ErrPermissionDenied, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	r, err := m.newRecord(c)
	if err != nil {
		return Info{}, err
	}
	if err := m.networks.claim(c.Name); err != nil {
		return Info{}, err
	}
	defer m.networks.unclaim(c.Name)
	if from, err := m.networks.hold(c.ConfigFrom); c.ConfigFrom != "" && err == nil {
		defer m.networks.free([]*attached{from}) // it stays meanwhile
	}
	with, err := m.settle(ctx, &c, r)
	if err != nil {
		return Info{}, err
	}
	if r.ConfigOnly {
		if err := m.records.save(r); err != nil {
			return Info{}, err
		}
		m.networks.put(&attached{info: r.info(), containers: map[string]Endpoint{}})
		return m.networks.inspect(r.ID)
	}
	if err := m.make(ctx, with, r); err != nil {
		return Info{}, err
	}
	info, err := m.networks.inspect(r.ID)
	if err == nil {
		m.tell(apievents.ActionCreate, &info)
	}
	return info, err
}

// newRecord reads what was asked.
func (m maker) newRecord(c Create) (*record, error) {
	r := &record{
		Format: recordFormat, ID: newID(), Name: c.Name, Driver: cmp.Or(c.Driver, "bridge"), Created: time.Now().UTC(),
		Internal: c.Internal, Attachable: c.Attachable, ConfigOnly: c.ConfigOnly, ConfigFrom: c.ConfigFrom,
		IPAM: IPAM{Driver: defaultIPAM}, Options: map[string]string{}, Labels: map[string]string{},
	}
	maps.Copy(r.Options, c.Options)
	maps.Copy(r.Labels, c.Labels)
	var err error
	if r.EnableIPv4, err = enabled(c.EnableIPv4, r.Options, optionIPv4, true); err != nil {
		return nil, err
	}
	if r.EnableIPv6, err = enabled(c.EnableIPv6, r.Options, optionIPv6, false); err != nil {
		return nil, err
	}
	if c.IPAM != nil {
		r.IPAM.Driver, r.IPAM.Options = cmp.Or(c.IPAM.Driver, defaultIPAM), c.IPAM.Options
		if r.IPAM.Subnets, err = readSubnets(c.IPAM.Config, r.EnableIPv6); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// enabled tells whether a family is on: as said, else as an option of the driver
// has it.
func enabled(said *bool, options map[string]string, key string, otherwise bool) (bool, error) {
	v, ok := options[key]
	switch {
	case said != nil:
		delete(options, key)
		return *said, nil
	case ok:
		on, err := strconv.ParseBool(v)
		if err != nil {
			return false, worded(errdefs.ErrInvalidArgument, "driver-opt %q is not a valid bool", key)
		}
		return on, nil
	}
	return otherwise, nil
}

// settle refuses what cannot be, takes over the configuration of another network
// and finds who makes it; nobody for a network that only lends its configuration.
func (m maker) settle(ctx context.Context, c *Create, r *record) (with makers, err error) {
	forbidden := func(format string, args ...any) error { return worded(errdefs.ErrPermissionDenied, format, args...) }
	if r.ConfigOnly {
		switch {
		case c.Ingress || c.Internal || c.Attachable || c.Scope != "":
			return with, forbidden("configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
		case r.ConfigFrom != "":
			return with, forbidden("a configuration network cannot depend on another configuration network")
		}
		r.Driver = "null"
		return with, nil
	}
	if r.ConfigFrom != "" {
		if !r.EnableIPv4 || r.EnableIPv6 || len(r.Labels) > 0 || len(r.IPAM.Options) > 0 || len(r.IPAM.Subnets) > 0 || r.IPAM.Driver != defaultIPAM {
			return with, forbidden("user specified configurations are not supported if the network depends on a configuration network")
		}
		if len(r.Options) > 0 {
			return with, forbidden("network driver options are not supported if the network depends on a configuration network")
		}
	}
	if with.driver, err = m.driver(ctx, r.Driver); err != nil {
		return with, err
	}
	if c.Ingress {
		return with, forbidden("Ingress network can only be global scope network")
	}
	if r.ConfigFrom != "" {
		from, err := m.networks.find(r.ConfigFrom)
		if err != nil || !from.info.ConfigOnly {
			return with, worded(errdefs.ErrNotFound, "configuration network %q does not exist", r.ConfigFrom)
		}
		lent := from.info
		r.ConfigFrom = lent.Name
		r.EnableIPv4, r.EnableIPv6, r.IPAM = lent.EnableIPv4, lent.EnableIPv6, lent.IPAM
		r.Options, r.Labels = maps.Clone(lent.Options), maps.Clone(lent.Labels)
	}
	if c.Scope == "swarm" {
		return with, forbidden("cannot create a swarm scoped network when swarm is not active")
	}
	if with.addresses, r.IPAM.Driver, err = m.addresses(ctx, r.IPAM.Driver, false); err != nil {
		return with, err
	}
	if r.IPAM.Driver == nullIPAM && len(r.IPAM.Subnets) > 0 {
		return with, worded(errdefs.ErrInvalidArgument, "null ipam driver does not handle specific address pool requests")
	}
	r.Driver = with.driver.Type()
	return with, with.driver.Check(r.spec())
}

// subnets gives a network the subnets that it lacks, and gateways to all, and
// refuses those that are in use.
func (m maker) subnets(d Driver, r *record) error {
	host, err := ipam.Host(0)
	if err != nil {
		return err
	}
	others := m.networks.subnets()
	switch r.IPAM.Driver {
	case nullIPAM:
		return nil
	case defaultIPAM:
	default: // a plugin has chosen; the kernel still is to tell them apart
		for _, s := range r.IPAM.Subnets {
			if sharer, ok := d.(Sharer); ok && sharer.Shares(r.spec()) {
				continue
			}
			if _, taken := ipam.Overlap(s.Prefix, append(slices.Clone(host), others...)); taken {
				return ipam.ErrOverlap
			}
		}
		return nil
	}
	var out []Subnet
	for _, v6 := range []bool{false, true} {
		if v6 && !r.EnableIPv6 || !v6 && !r.EnableIPv4 {
			continue
		}
		asked := slices.DeleteFunc(slices.Clone(r.IPAM.Subnets), func(s Subnet) bool { return s.Prefix.Addr().Is6() != v6 })
		if len(asked) == 0 {
			p, err := ipam.Choose(m.cfg.Ranges(v6), append(slices.Clone(host), others...))
			if err != nil {
				return err
			}
			asked = []Subnet{{Prefix: p}}
		}
		for _, s := range asked {
			if err := m.complete(d, r, &s, append(others, prefixes(out)...), host); err != nil {
				return err
			}
			out = append(out, s)
		}
	}
	r.IPAM.Subnets = out
	return nil
}

// complete checks one subnet and gives it a gateway.
func (m maker) complete(d Driver, r *record, s *Subnet, others, host []netip.Prefix) error {
	if _, taken := ipam.Overlap(s.Prefix, others); taken {
		return ipam.ErrOverlap
	}
	spec := r.spec()
	if sharer, ok := d.(Sharer); !ok || !sharer.Shares(spec) {
		if _, taken := ipam.Overlap(s.Prefix, host); taken {
			return ipam.ErrOverlap
		}
	}
	without := *s
	without.Gateway = netip.Addr{}
	p, err := newPool(without)
	if err != nil {
		return err
	}
	if s.Gateway.IsValid() {
		if p.gateway == s.Gateway { // an auxiliary address says the same
			return nil
		}
		if err := p.Take(s.Gateway); err != nil {
			return worded(errdefs.ErrInternal, "failed to allocate gateway (%s): %s", s.Gateway, err)
		}
		return nil
	}
	if g, ok := d.(Gatewayless); ok && g.NoGateway(spec, s.Prefix.Addr().Is6()) {
		return nil
	}
	if s.Gateway = p.First(); !s.Gateway.IsValid() {
		return worded(errdefs.ErrInternal, "failed to allocate gateway (): %s", ipam.ErrExhausted)
	}
	return nil
}

func prefixes(list []Subnet) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, s.Prefix)
	}
	return out
}

// tell publishes what happened to a network.
func (m maker) tell(action apievents.Action, i *Info) {
	if m.cfg.Events == nil {
		return
	}
	m.cfg.Events.Publish(events.Message{
		Type: apievents.NetworkEventType, Action: action,
		Actor: apievents.Actor{ID: i.ID, Attributes: map[string]string{"name": i.Name, "type": i.Driver}},
	})
}
