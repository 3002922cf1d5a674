package plugin

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
)

// Driver is the networks of one plugin.
type Driver struct {
	store *Store
	name  string
	caps  capabilities // of one that is to make a network

	skip4, skip6 bool // what Check was told: the network needs no gateway
}

var (
	_ network.Driver      = (*Driver)(nil)
	_ network.Outside     = (*Driver)(nil)
	_ network.Sharer      = (*Driver)(nil)
	_ network.Gatewayless = (*Driver)(nil)
)

// capabilities are what a network driver says of itself.
type capabilities struct {
	Scope          string
	GwAllocChecker bool // it says which networks need no gateway
}

// capabilities asks; one that says nothing makes networks of this machine.
func (c caller) capabilities(ctx context.Context) (out capabilities, err error) {
	err = c.call(ctx, "GetCapabilities", nil, &out, plugin.How{})
	if isRemote(err) {
		err = nil
	}
	switch out.Scope {
	case "":
		out.Scope = "local"
	case "local", "global":
	default:
		return out, fmt.Errorf("invalid capability: expecting 'local' or 'global', got %s", out.Scope)
	}
	return out, err
}

// Type implements network.Driver: the plugin's name.
func (d *Driver) Type() string { return d.name }

// Check implements network.Driver. A plugin refuses when it makes the network; one that
// wants to be asked says now whether it needs a gateway.
func (d *Driver) Check(spec network.Spec) error {
	if !d.caps.GwAllocChecker {
		return nil
	}
	ctx, cancel := d.store.bound(d.store.ctx, joinTime)
	defer cancel()
	c, err := d.store.find(ctx, d.name, plugin.NetworkDriver, false)
	if err != nil {
		return err
	}
	var answer struct{ SkipIPv4, SkipIPv6 bool }
	err = c.call(ctx, "GwAllocCheck", map[string]any{"Options": networkOptions(spec)}, &answer, plugin.How{})
	d.skip4, d.skip6 = answer.SkipIPv4, answer.SkipIPv6
	return err
}

// Shares implements network.Sharer: where a plugin's networks lie is its affair.
func (d *Driver) Shares(network.Spec) bool { return true }

// NoGateway implements network.Gatewayless.
func (d *Driver) NoGateway(_ network.Spec, v6 bool) bool { return v6 && d.skip6 || !v6 && d.skip4 }

// Create implements network.Driver. It blocks for the plugin, half a minute at most.
func (d *Driver) Create(ctx context.Context, spec network.Spec) (network.Info, error) {
	ctx, cancel := d.store.bound(ctx, makeTime)
	defer cancel()
	c, err := d.store.find(ctx, d.name, plugin.NetworkDriver, false)
	if err != nil {
		return network.Info{}, err
	}
	e, err := d.store.open(ctx, spec.ID, "", "")
	if err != nil {
		return network.Info{}, err
	}
	made := e.note.Driver != ""
	if !made {
		e.note.Driver = d.name
		err = d.store.save(e, true)
	}
	if !made && err == nil { // else it is taken up
		err = c.call(ctx, "CreateNetwork", map[string]any{
			"NetworkID": spec.ID, "Options": networkOptions(spec), "IPv4Data": subnets(spec, false), "IPv6Data": subnets(spec, true),
		}, nil, plugin.How{})
	}
	if isRemote(err) { // it has none
		e.note.Driver = ""
		err = withNote(err, d.store.save(e, false))
	}
	e.unlock()
	if err != nil {
		d.store.end(ctx, e, true, false)
		return network.Info{}, err
	}
	return network.Info{
		Name: spec.Name, ID: spec.ID, Driver: d.name, Scope: d.caps.Scope, Options: maps.Clone(spec.Options),
		IPAM: network.IPAM{Subnets: spec.Subnets},
	}, nil
}

// withNote is an error, and one about the note if there is one.
func withNote(err, note error) error {
	if note != nil {
		return fmt.Errorf("%w; %w", err, note)
	}
	return err
}

// Delete implements network.Driver. It blocks for some seconds; a plugin that does not
// hear then is told later.
func (d *Driver) Delete(ctx context.Context, id string) error {
	d.store.end(ctx, d.store.entry(id), true, false)
	return nil
}

// Restore implements network.Driver: see Store.Settle.
func (d *Driver) Restore(context.Context, map[string][]network.Live) error { return nil }

// Close implements network.Driver.
func (d *Driver) Close() error { return nil }

// Join implements network.Driver. It blocks for the plugin, some seconds at most.
func (d *Driver) Join(ctx context.Context, id string, ns *netns.Handle, j network.Join) (network.Endpoint, error) {
	if e := d.store.entry(id); e == nil {
		return network.Endpoint{}, fmt.Errorf("network %s not found: %w", id, errdefs.ErrNotFound)
	}
	ctx, cancel := d.store.bound(ctx, joinTime)
	defer cancel()
	c, err := d.store.find(ctx, d.name, plugin.NetworkDriver, true)
	if err != nil {
		return network.Endpoint{}, err
	}
	e, err := d.store.open(ctx, j.EndpointID, id, j.ContainerID)
	if err != nil {
		return network.Endpoint{}, err
	}
	ep, err := d.store.attach(ctx, c, e, ns, j)
	e.unlock()
	if err != nil {
		d.store.end(ctx, e, true, false)
		return network.Endpoint{}, err
	}
	return ep, nil
}

// attach has a plugin make an endpoint and join it; the entry is locked.
func (s *Store) attach(ctx context.Context, c caller, e *entry, ns *netns.Handle, j network.Join) (ep network.Endpoint, err error) {
	e.note.Driver, e.note.Container, e.note.Options, e.note.Path = c.Name, j.ContainerID, endpointOptions(j), j.Path
	if err := s.save(e, true); err != nil {
		return ep, err
	}
	ids := map[string]any{"NetworkID": e.note.Network, "EndpointID": e.note.ID}
	ask, answer := maps.Clone(ids), struct{ Interface *face }{}
	ask["Options"], ask["Interface"] = e.note.Options, faceOf(j)
	if err := c.call(ctx, "CreateEndpoint", ask, &answer, plugin.How{}); err != nil {
		return ep, err
	}
	if answer.Interface != nil {
		if err := answer.Interface.merge(&j); err != nil {
			return ep, err
		}
	}
	e.note.Joined = true
	if err := s.save(e, true); err != nil {
		return ep, err
	}
	var raw joinAnswer
	ask = maps.Clone(ids)
	ask["SandboxKey"], ask["Options"] = j.Path, e.note.Options
	if err := c.call(ctx, "Join", ask, &raw, plugin.How{}); err != nil {
		return ep, err
	}
	link, err := raw.parse()
	if err != nil {
		return ep, err
	}
	ep = network.Endpoint{NetworkID: e.note.Network, EndpointID: e.note.ID, MAC: j.MAC.String()}
	if link.src != "" {
		if ep.Interface, err = s.bring(e, ns, link, &j); err != nil {
			return ep, err
		}
		ep.MAC = j.MAC.String()
	}
	if j.IP.IsValid() {
		ep.IP, ep.PrefixLen = j.IP.Addr().String(), j.IP.Bits()
	}
	if j.IP6.IsValid() {
		ep.IP6, ep.PrefixLen6 = j.IP6.Addr().String(), j.IP6.Bits()
	}
	if link.gateway.IsValid() {
		ep.Gateway = link.gateway.String()
	}
	if link.gateway6.IsValid() {
		ep.Gateway6 = link.gateway6.String()
	}
	var told struct{ Value map[string]any }
	if err := c.call(ctx, "EndpointOperInfo", ids, &told, plugin.How{Timeout: endTime, Once: true}); err != nil && !isRemote(err) {
		return ep, err
	}
	if mac, ok := told.Value[optMAC].(string); ok && ep.MAC == "" {
		ep.MAC = strings.ToLower(mac)
	}
	return ep, nil
}

func faceOf(j network.Join) face {
	f := face{MacAddress: j.MAC.String()}
	if j.IP.IsValid() {
		f.Address = j.IP.String()
	}
	if j.IP6.IsValid() {
		f.AddressIPv6 = j.IP6.String()
	}
	return f
}

// Leave implements network.Driver. It blocks for some seconds; a plugin that does not
// hear then is told later.
func (d *Driver) Leave(ctx context.Context, ep network.Endpoint) error {
	d.store.end(ctx, d.store.entry(ep.EndpointID), true, false)
	return nil
}

// endDriver tells a network driver the end of what it was told; the entry is locked.
func (s *Store) endDriver(ctx context.Context, e *entry) error {
	e.note.Ending = true // cut off here, an endpoint that lives all the same is made anew
	if err := s.save(e, false); err != nil {
		return err
	}
	var err error
	if e.network == "" {
		err = s.endNetwork(ctx, e)
	} else {
		err = s.endEndpoint(ctx, e)
	}
	if err != nil {
		return err
	}
	e.note.Driver, e.note.Joined, e.note.Open, e.note.Ending = "", false, false, false
	return s.save(e, false)
}

func (s *Store) endNetwork(ctx context.Context, e *entry) error {
	c, err := s.find(ctx, e.note.Driver, plugin.NetworkDriver, false)
	if err != nil {
		return err
	}
	return s.heard("DeleteNetwork", e, c.call(ctx, "DeleteNetwork", map[string]any{"NetworkID": e.id}, nil, plugin.How{Timeout: endTime, Once: true}))
}

func (s *Store) endEndpoint(ctx context.Context, e *entry) error {
	n, how := &e.note, plugin.How{Timeout: endTime, Once: true}
	ids := map[string]any{"NetworkID": n.Network, "EndpointID": n.ID}
	c, err := s.find(ctx, n.Driver, plugin.NetworkDriver, false)
	if err == nil && n.Open {
		err = s.heard("RevokeExternalConnectivity", e, c.call(ctx, "RevokeExternalConnectivity", ids, nil, how))
	}
	if err == nil && n.Joined {
		err = s.heard("Leave", e, c.call(ctx, "Leave", ids, nil, how))
	}
	if back := sendBack(n); back != nil { // whatever the plugin does, the container is to lose it
		s.cfg.Logger.Warn("the link of a plugin could not be taken back", "container", n.Container, "link", n.Inside, "error", back)
	}
	if err != nil {
		return err
	}
	return s.heard("DeleteEndpoint", e, c.call(ctx, "DeleteEndpoint", ids, nil, how))
}

// Opens implements network.Outside.
func (d *Driver) Opens(ctx context.Context, ep network.Endpoint, on bool) error {
	e := d.store.entry(ep.EndpointID)
	if e == nil {
		return nil
	}
	ctx, cancel := d.store.bound(ctx, joinTime)
	defer cancel()
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	if left, _ := d.store.marked(e); e.gone || left || e.note.Open == on {
		return nil
	}
	c, err := d.store.find(ctx, d.name, plugin.NetworkDriver, true)
	if err != nil {
		return err
	}
	ask := map[string]any{"NetworkID": e.note.Network, "EndpointID": e.note.ID}
	if !on {
		if err := d.store.heard("RevokeExternalConnectivity", e, c.call(ctx, "RevokeExternalConnectivity", ask, nil, plugin.How{})); err != nil {
			return err
		}
		e.note.Open = false
		return d.store.save(e, false)
	}
	e.note.Open = true
	if err := d.store.save(e, true); err != nil {
		return err
	}
	ask["Options"] = e.note.Options
	err = c.call(ctx, "ProgramExternalConnectivity", ask, nil, plugin.How{})
	if errdefs.IsNotImplemented(err) {
		return nil
	}
	if isRemote(err) {
		e.note.Open = false
		err = withNote(err, d.store.save(e, false))
	}
	return err
}
