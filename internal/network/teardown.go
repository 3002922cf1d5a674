package network

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Unpublish takes the published ports of a container's endpoints back: nothing
// new reaches it. Quick, one transaction of the kernel; idempotent. The sockets
// that hold the ports are their owner's to close, before others can have them.
func (m *Manager) Unpublish(ctx context.Context, id string, eps []Endpoint) error {
	m.networks.part(id, eps)
	m.names.drop(id, eps) // nobody is to find it by name any more
	var errs []error
	m.rotation.drop(id, eps)
	for typ, d := range m.drivers {
		if _, ok := d.(Publisher); !ok {
			continue
		}
		var mine []Endpoint
		for _, ep := range eps {
			if d == m.networks.driverOf(ep) {
				mine = append(mine, ep)
			}
		}
		if len(mine) == 0 {
			continue
		}
		if err := m.unpublish(ctx, mine...); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %s ports: %w", id, typ, err))
		}
		for _, ep := range mine { // not sooner: who gets them has to find them free in the kernel
			m.ports.Free(ep.mappings())
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
	if len(eps) > 0 {
		m.unserve(handleOf(id, eps))
	}
	for _, ep := range eps {
		if ep.Network == "" {
			continue
		}
		errs = append(errs, m.leave(ctx, id, ep))
	}
	if len(eps) > 0 {
		errs = append(errs, m.drop(handleOf(id, eps)))
	} else {
		errs = append(errs, m.dropUnused(func(name string) bool { return strings.HasPrefix(name, id+".") }))
	}
	return errors.Join(errs...)
}

// leave takes a container from one network and gives its addresses back.
func (m *base) leave(ctx context.Context, id string, ep Endpoint) error {
	a := m.networks.of(ep)
	if a == nil { // it is no more: whatever of it is left must go
		var errs []error
		for _, d := range m.drivers {
			errs = append(errs, d.Leave(ctx, ep))
		}
		if m.cfg.Others != nil {
			if a, _, err := m.cfg.Others.Addresses(ctx, "", true); err == nil {
				a.GiveBack(ctx, ep.EndpointID)
			}
		}
		return errors.Join(errs...)
	}
	err := a.driver.Leave(ctx, ep)
	if m.networks.forget(id, ep) { // else they may be another's by now
		m.networks.giveBack(ctx, a, ep)
	}
	if err != nil {
		return fmt.Errorf("container %s: network %q: %w", id, ep.Network, err)
	}
	return nil
}

// Path is the handle of the namespace of a container with these endpoints.
func (m *Manager) Path(id string, eps []Endpoint) string {
	if len(eps) == 0 {
		return ""
	}
	return filepath.Join(m.cfg.NetnsDir, handleOf(id, eps))
}

// handleOf is the name of the handle of a container with these endpoints; those of
// engines before networks of users do not tell it.
func handleOf(id string, eps []Endpoint) string {
	if eps[0].Handle != "" {
		return eps[0].Handle
	}
	return handleName(id, eps[0].EndpointID)
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
