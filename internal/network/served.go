package network

import (
	"context"
	"fmt"
	"os"
	"slices"

	"escale.dev/escale/internal/network/dns"
	"escale.dev/escale/internal/network/resolvconf"
	"escale.dev/escale/internal/sys/netns"
)

// Resolver answers names in the namespaces of containers; see dns.Resolver.
type Resolver interface {
	Listen(ns *netns.Handle) ([]*os.File, error)
	Serve(box string, files []*os.File, names dns.Names, up dns.Upstream) error
	Forget(box string)
}

// Resolve is what a container says instead of the host's resolv.conf.
type Resolve = resolvconf.Settings

// nameable tells whether containers with these endpoints find others by name: networks
// that are always there have no names.
func nameable(eps []Endpoint) bool {
	return slices.ContainsFunc(eps, func(ep Endpoint) bool { return ep.Network != "" && predefined[ep.Network] == "" })
}

// serve lets our name server answer in a namespace, on sockets that are there or
// new ones. It is known by the namespace's handle: the last run of a container may be
// on its way out.
func (m *Manager) serve(ns *netns.Handle, handle, id string, files []*os.File, s Resolve) (made []*os.File, err error) {
	_, up, err := resolvconf.Make(m.cfg.ResolvConf, resolvconf.Served, s, false)
	if err != nil {
		return nil, err
	}
	if len(s.Servers) == 0 {
		up.Now = m.host.Servers // while the container runs the host may come to another network
	}
	if files == nil {
		if made, err = m.cfg.Resolver.Listen(ns); err != nil {
			return nil, err
		}
		files = made
	}
	if err := m.cfg.Resolver.Serve(handle, files, m.Names(id), up); err != nil {
		closeFiles(made)
		return nil, err
	}
	m.served.Store(handle, true)
	return made, nil
}

// unserve undoes serve. Idempotent.
func (m *Manager) unserve(handle string) {
	if m.cfg.Resolver == nil {
		return
	}
	m.cfg.Resolver.Forget(handle)
	m.served.Delete(handle)
}

func (m *Manager) isServed(handle string) bool {
	_, ok := m.served.Load(handle)
	return ok
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Survivor is a container that lives after the engine was started anew.
type Survivor struct {
	ContainerID string
	Endpoints   []Endpoint
	Resolve     Resolve
	Held        []*os.File // what its monitor holds; the caller's
}

// TakeUp goes on with what the engine itself does for a container that lived through
// its restart: names are answered again, and those questions that came meanwhile;
// connections to published ports that it passes on are, too.
// made are sockets that nobody held, for the monitor to hold from now on; the
// caller owns them. To be called after Restore.
func (m *Manager) TakeUp(_ context.Context, s Survivor) (made []*os.File, err error) {
	m.regain(s)
	if m.cfg.Resolver == nil || len(s.Endpoints) == 0 {
		return nil, nil
	}
	ns, err := netns.Open(m.Path(s.ContainerID, s.Endpoints))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", s.ContainerID, err)
	}
	defer ns.Close()
	own := dns.Held(s.Held, ns)
	if own == nil && !nameable(s.Endpoints) {
		return nil, nil
	}
	if made, err = m.serve(ns, handleOf(s.ContainerID, s.Endpoints), s.ContainerID, own, s.Resolve); err != nil {
		return nil, fmt.Errorf("container %s: %w", s.ContainerID, err)
	}
	return made, nil
}

// WriteResolvConf writes the resolv.conf of a container at path. What somebody
// has changed there stays. host tells that the container is on the host's network.
func (m *Manager) WriteResolvConf(path string, s Resolve, host bool, id string, eps []Endpoint) error {
	kind := resolvconf.Bridge
	switch {
	case host:
		kind = resolvconf.Host
	case len(eps) > 0 && m.isServed(handleOf(id, eps)):
		kind = resolvconf.Served
	}
	ipv6 := slices.ContainsFunc(eps, func(ep Endpoint) bool { return ep.IP6 != "" })
	text, _, err := resolvconf.Make(m.cfg.ResolvConf, kind, s, ipv6)
	if err != nil {
		return err
	}
	return resolvconf.Write(path, text)
}
