package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Setup makes the network of a container that is about to start: a namespace, an
// endpoint on each of its networks, and its published ports. On an error all is
// undone. Blocks for some 2 ms. The error's words and kinds are Docker's; one
// about ports has no kind.
func (m *Manager) Setup(ctx context.Context, req Request) (*Sandbox, error) {
	plan, err := m.plan(req)
	if err != nil {
		return nil, err
	}
	s := &setup{m: m, req: req, plan: plan, box: &Sandbox{ID: req.ContainerID}}
	if err := s.run(ctx); err != nil {
		if undo := s.undo(context.WithoutCancel(ctx)); undo != nil {
			m.log.Error("network of a container that could not start: not all undone", "container", req.ContainerID, "error", undo)
		}
		return nil, err
	}
	return s.box, nil
}

// plan is what a request amounts to.
type plan struct {
	networks []*attached // the one that has the default route comes first
	settings []*network.EndpointSettings
	ports    []port.Spec
}

// Validate tells what is wrong with a request that can be told before Setup.
func (m *Manager) Validate(req Request) error {
	_, err := m.plan(req)
	return err
}

func (m *Manager) plan(req Request) (plan, error) {
	var p plan
	names := slices.Sorted(maps.Keys(req.Networks))
	if len(names) == 0 {
		names = []string{Bridge}
	}
	if len(names) > 1 && slices.Contains(names, None) {
		return p, worded(errdefs.ErrInvalidArgument, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	for _, name := range names {
		settings := req.Networks[name]
		name = canonical(name)
		m.mu.Lock()
		a, ok := m.networks[name]
		m.mu.Unlock()
		if !ok {
			return p, worded(errdefs.ErrNotFound, "network %s not found", name)
		}
		if _, ok := predefined[name]; ok && settings != nil {
			if err := checkPredefined(settings); err != nil {
				return p, worded(errdefs.ErrInvalidArgument, "invalid config for network %s: invalid endpoint settings:\n%s", name, err)
			}
		}
		p.networks, p.settings = append(p.networks, a), append(p.settings, settings)
	}
	if _, ok := p.networks[0].driver.(Publisher); !ok {
		return p, nil
	}
	var err error
	p.ports, err = port.Specs(req.Bindings, req.Exposed, req.PublishAll)
	return p, err
}

// checkPredefined refuses what only user-defined networks have, in Docker's words.
func checkPredefined(s *network.EndpointSettings) error {
	if s.IPAMConfig != nil && (s.IPAMConfig.IPv4Address.IsValid() || s.IPAMConfig.IPv6Address.IsValid() || len(s.IPAMConfig.LinkLocalIPs) > 0) {
		return worded(errdefs.ErrInvalidArgument, "user specified IP address is supported on user defined networks only")
	}
	if len(s.Aliases) > 0 {
		return worded(errdefs.ErrInvalidArgument, "network-scoped alias is supported only for containers in user defined networks")
	}
	return nil
}

// setup is one Setup under way.
type setup struct {
	m        *Manager
	req      Request
	plan     plan
	box      *Sandbox
	handle   string // name of the namespace's handle
	mappings []port.Mapping
}

func (s *setup) run(ctx context.Context) error {
	ids := make([]string, len(s.plan.networks))
	for i := range ids {
		ids[i] = newID()
	}
	s.handle = handleName(s.req.ContainerID, ids[0])
	s.m.use(s.handle)
	s.box.Path = s.m.folder.Path(s.handle)
	ns, err := s.m.folder.New(s.handle)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.Do(loopbackUp); err != nil {
		return fmt.Errorf("container %s: loopback link: %w", s.req.ContainerID, err)
	}
	for i, a := range s.plan.networks {
		if err := ctx.Err(); err != nil {
			return err
		}
		j := Join{
			ContainerID: s.req.ContainerID, EndpointID: ids[i], Interface: fmt.Sprintf("eth%d", i),
			Gateway: i == 0, Published: i == 0 && len(s.plan.ports) > 0,
		}
		if set := s.plan.settings[i]; set != nil {
			j.MAC = []byte(set.MacAddress)
			if set.IPAMConfig != nil {
				j.IP = set.IPAMConfig.IPv4Address
			}
		}
		ep, err := a.driver.Join(ctx, a.info.ID, ns, j)
		if err != nil {
			return err
		}
		ep.Network, ep.NetworkID, ep.EndpointID = a.info.Name, a.info.ID, ids[i]
		s.box.Endpoints = append(s.box.Endpoints, ep)
	}
	if err := s.publish(ctx); err != nil {
		return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", s.req.Name, ids[0], err)
	}
	s.m.record(s.req.ContainerID, s.box.Endpoints)
	return nil
}

// publish gives the first endpoint its ports.
func (s *setup) publish(ctx context.Context) error {
	p, ok := s.plan.networks[0].driver.(Publisher)
	if !ok {
		return nil
	}
	ep := &s.box.Endpoints[0]
	if len(s.plan.ports) > 0 {
		addr, err := ep.addr()
		if err != nil {
			return err
		}
		if s.mappings, s.box.Held, err = s.m.ports.Hold(s.plan.ports, addr); err != nil {
			return err
		}
	}
	ep.Ports = port.PortMap(s.mappings, s.req.Exposed)
	if len(s.mappings) == 0 {
		return nil
	}
	return p.Publish(ctx, *ep)
}

// undo takes back what run did, last things first.
func (s *setup) undo(ctx context.Context) error {
	for _, f := range s.box.Held {
		f.Close()
	}
	s.m.ports.Free(s.mappings)
	var errs []error
	for i, ep := range slices.Backward(s.box.Endpoints) {
		if p, ok := s.plan.networks[i].driver.(Publisher); ok && len(s.mappings) > 0 {
			errs = append(errs, p.Unpublish(ctx, []Endpoint{ep}))
		}
		errs = append(errs, s.plan.networks[i].driver.Leave(ctx, ep))
	}
	errs = append(errs, s.m.drop(s.handle))
	return errors.Join(errs...)
}

// Unpublish takes the published ports of a container's endpoints back: nothing
// new reaches it. Quick, one transaction of the kernel; idempotent. The sockets
// that hold the ports are their owner's to close, before others can have them.
func (m *Manager) Unpublish(ctx context.Context, id string, eps []Endpoint) error {
	var errs []error
	for typ, d := range m.drivers {
		p, ok := d.(Publisher)
		if !ok {
			continue
		}
		var mine []Endpoint
		for _, ep := range eps {
			if d == m.driverOf(ep) {
				mine = append(mine, ep)
				m.ports.Free(ep.mappings())
			}
		}
		if len(mine) == 0 {
			continue
		}
		if err := p.Unpublish(ctx, mine); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %s ports: %w", id, typ, err))
		}
	}
	return errors.Join(errs...)
}

// Teardown takes back all that Setup gave a container: published ports, links,
// addresses, the namespace's handle. Idempotent. Blocks for tens of milliseconds
// while the kernel removes the links; it may run while the same container starts
// again. With no endpoints it removes the namespaces of the container that no
// Setup of this engine has made.
func (m *Manager) Teardown(ctx context.Context, id string, eps []Endpoint) error {
	errs := []error{m.Unpublish(ctx, id, eps)}
	for _, ep := range eps {
		d := m.driverOf(ep)
		if d == nil {
			errs = append(errs, fmt.Errorf("container %s: network %s not found", id, ep.Network))
			continue
		}
		if err := d.Leave(ctx, ep); err != nil {
			errs = append(errs, fmt.Errorf("container %s: network %q: %w", id, ep.Network, err))
		}
		m.forget(id, ep)
	}
	if len(eps) > 0 {
		errs = append(errs, m.drop(handleName(id, eps[0].EndpointID)))
	} else {
		errs = append(errs, m.dropUnused(func(name string) bool { return strings.HasPrefix(name, id+".") }))
	}
	return errors.Join(errs...)
}

// Path is the handle of the namespace of a container with these endpoints.
func (m *Manager) Path(id string, eps []Endpoint) string {
	if len(eps) == 0 {
		return ""
	}
	return filepath.Join(m.cfg.NetnsDir, handleName(id, eps[0].EndpointID))
}

// handleName is the file of a namespace. It tells the starts of a container
// apart, since the namespace of the last may still be on its way out.
func handleName(container, endpoint string) string {
	return container + "." + endpoint[:min(12, len(endpoint))]
}

func (m *Manager) use(handle string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handles[handle] = true
}

// drop removes a namespace's handle.
func (m *Manager) drop(handle string) error {
	if handle == "" {
		return nil
	}
	err := m.folder.Remove(handle)
	m.mu.Lock()
	delete(m.handles, handle)
	m.mu.Unlock()
	return err
}

// dropUnused removes those handles that no container has.
func (m *Manager) dropUnused(which func(name string) bool) error {
	if m.folder == nil { // it could not be opened
		return nil
	}
	names, err := m.folder.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		m.mu.Lock()
		used := m.handles[n]
		m.mu.Unlock()
		if !used && which(n) {
			errs = append(errs, m.folder.Remove(n))
		}
	}
	return errors.Join(errs...)
}

// record and forget keep what List and Inspect tell.
func (m *Manager) record(id string, eps []Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ep := range eps {
		if a, ok := m.networks[ep.Network]; ok {
			a.containers[id] = ep
		}
	}
}

func (m *Manager) forget(id string, ep Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.networks[ep.Network]; ok && a.containers[id].EndpointID == ep.EndpointID {
		delete(a.containers, id)
	}
}

// driverOf is the driver of an endpoint's network; nil when there is none.
func (m *Manager) driverOf(ep Endpoint) Driver {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.networks[ep.Network]; ok {
		return a.driver
	}
	return nil
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return hex.EncodeToString(b[:])
}

// loopbackUp brings up the loopback link of the namespace it runs in.
func loopbackUp() error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = 1, unix.IFF_UP, unix.IFF_UP // lo always is the first link
	req.AddData(msg)
	return c.Do(req)
}
