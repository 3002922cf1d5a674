package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/network/ipam"
	"escale.dev/escale/internal/sys/netns"
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
	records records
	making  *sync.Mutex // held by who makes or removes one
}

// Create makes a network of a user's. Killed before the answer, it is there whole
// or not at all when the next engine is open. Blocks for the disk and the kernel,
// and while another is made or removed. Kinds and words of errors are Docker's.
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
	m.making.Lock()
	defer m.making.Unlock()
	if strings.TrimSpace(c.Name) == "" {
		return Info{}, worded(errdefs.ErrInvalidArgument, "invalid name: name is empty")
	}
	if m.networks.has(c.Name) {
		return Info{}, worded(errdefs.ErrConflict, "network with name %s already exists", c.Name)
	}
	d, err := m.settle(&c, r)
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
	if err := m.make(ctx, d, r); err != nil {
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
// and finds the driver; nil for a network that only lends its configuration.
func (m maker) settle(c *Create, r *record) (Driver, error) {
	forbidden := func(format string, args ...any) error { return worded(errdefs.ErrPermissionDenied, format, args...) }
	if r.ConfigOnly {
		switch {
		case c.Ingress || c.Internal || c.Attachable || c.Scope != "":
			return nil, forbidden("configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
		case r.ConfigFrom != "":
			return nil, forbidden("a configuration network cannot depend on another configuration network")
		}
		r.Driver = "null"
		return nil, nil
	}
	if r.ConfigFrom != "" {
		if !r.EnableIPv4 || r.EnableIPv6 || len(r.Labels) > 0 || len(r.IPAM.Options) > 0 || len(r.IPAM.Subnets) > 0 || r.IPAM.Driver != defaultIPAM {
			return nil, forbidden("user specified configurations are not supported if the network depends on a configuration network")
		}
		if len(r.Options) > 0 {
			return nil, forbidden("network driver options are not supported if the network depends on a configuration network")
		}
	}
	d, ok := m.drivers[r.Driver]
	if !ok {
		return nil, worded(errdefs.ErrNotFound, "plugin %q not found", r.Driver)
	}
	if c.Ingress {
		return nil, forbidden("Ingress network can only be global scope network")
	}
	if r.ConfigFrom != "" {
		from, err := m.networks.find(r.ConfigFrom)
		if err != nil || !from.info.ConfigOnly {
			return nil, worded(errdefs.ErrNotFound, "configuration network %q does not exist", r.ConfigFrom)
		}
		lent := from.info
		r.ConfigFrom = lent.Name
		r.EnableIPv4, r.EnableIPv6, r.IPAM = lent.EnableIPv4, lent.EnableIPv6, lent.IPAM
		r.Options, r.Labels = maps.Clone(lent.Options), maps.Clone(lent.Labels)
	}
	switch {
	case c.Scope == "swarm":
		return nil, forbidden("cannot create a swarm scoped network when swarm is not active")
	case r.IPAM.Driver != defaultIPAM && r.IPAM.Driver != nullIPAM:
		return nil, worded(errdefs.ErrNotFound, "plugin %q not found", r.IPAM.Driver)
	case r.IPAM.Driver == nullIPAM && len(r.IPAM.Subnets) > 0:
		return nil, worded(errdefs.ErrInvalidArgument, "null ipam driver does not handle specific address pool requests")
	}
	return d, d.Check(r.spec())
}

// make chooses the subnets, writes the record and makes the network in the kernel,
// which engines on one machine do one after the other.
func (m maker) make(ctx context.Context, d Driver, r *record) error {
	unlock, err := netns.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.subnets(d, r); err != nil {
		return err
	}
	if err := m.records.save(r); err != nil {
		return err
	}
	if err = m.openOne(ctx, d, r.spec(), r.info()); err != nil {
		return errors.Join(err, m.records.remove(r.ID))
	}
	return nil
}

// subnets gives a network the subnets that it lacks, and gateways to all, and
// refuses those that are in use.
func (m maker) subnets(d Driver, r *record) error {
	host, err := ipam.Host(0)
	if err != nil {
		return err
	}
	others := m.networks.subnets()
	if r.IPAM.Driver == nullIPAM {
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

// leavePatience is how long the removal of a network waits for the kernel to give
// back what containers that have ended had there.
const leavePatience = 15 * time.Second

// Remove removes a network of a user's that no container is on. Killed before the
// answer, it is there whole or not at all when the next engine is open. Kinds and
// words of errors are Docker's.
func (m maker) Remove(ctx context.Context, ref string) error {
	m.making.Lock()
	defer m.making.Unlock()
	patient, cancel := context.WithTimeout(ctx, leavePatience)
	a, err := m.networks.leave(patient, ref)
	cancel()
	if err != nil {
		return err
	}
	if a.driver != nil {
		if err := a.driver.Delete(ctx, a.info.ID); err != nil {
			m.networks.stay(a)
			return fmt.Errorf("error while removing network: %w", err)
		}
	}
	if err := m.records.remove(a.info.ID); err != nil {
		m.networks.stay(a)
		return fmt.Errorf("error while removing network: %w", err)
	}
	m.networks.drop(a)
	if !a.info.ConfigOnly {
		m.tell(apievents.ActionDestroy, &a.info)
	}
	return nil
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
