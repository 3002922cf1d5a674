// Package macvlan is the network drivers "macvlan" and "ipvlan": containers with
// links of their own on the network that a link of the host is on.
//
// A network has a parent: a link of the host, a VLAN of one that is made for the
// network ("eth0.50"), or where none is named a dummy link, over which its
// containers reach each other alone.
package macvlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Driver is the driver of one of the two kinds.
type Driver struct {
	kind string // "macvlan", "ipvlan"
	cfg  network.Config
	log  *slog.Logger

	mu       sync.Mutex
	networks map[string]*net // by id
	known    map[string]bool // ids that Create was called with
}

// net is one network.
type net struct {
	spec network.Spec
	options
	index int // of the parent
}

var (
	_ network.Driver      = (*Driver)(nil)
	_ network.Gatewayless = (*Driver)(nil)
	_ network.Sharer      = (*Driver)(nil)
	_ network.Sweeper     = (*Driver)(nil)
)

// New makes the driver "macvlan"; nothing is touched before Create.
func New(cfg network.Config) *Driver { return newDriver("macvlan", cfg) }

// IPVLAN makes the driver "ipvlan".
func IPVLAN(cfg network.Config) *Driver { return newDriver("ipvlan", cfg) }

func newDriver(kind string, cfg network.Config) *Driver {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{kind: kind, cfg: cfg, log: log, networks: map[string]*net{}, known: map[string]bool{}}
}

// Type implements network.Driver.
func (d *Driver) Type() string { return d.kind }

// Check implements network.Driver.
func (d *Driver) Check(spec network.Spec) error {
	_, err := d.read(spec)
	return err
}

// NoGateway implements network.Gatewayless.
func (d *Driver) NoGateway(spec network.Spec, _ bool) bool {
	o, err := d.read(spec)
	return err == nil && (spec.Internal || o.dummy || o.layer3())
}

// Direct implements network.Director: on layer 3 packets go straight onto the link.
func (d *Driver) Direct(spec network.Spec) bool {
	o, err := d.read(spec)
	return err == nil && !spec.Internal && o.layer3()
}

// Shares implements network.Sharer: the containers are on the host's own network.
func (d *Driver) Shares(network.Spec) bool { return true }

// Create implements network.Driver.
func (d *Driver) Create(_ context.Context, spec network.Spec) (network.Info, error) {
	o, err := d.read(spec)
	if err != nil {
		return network.Info{}, err
	}
	n := &net{spec: spec, options: o}
	d.mu.Lock()
	d.known[spec.ID] = true
	err = d.conflict(n)
	d.mu.Unlock()
	if err != nil {
		return network.Info{}, err
	}
	if n.index, err = d.ensureParent(n); err != nil {
		return network.Info{}, err
	}
	if err := d.probe(n); err != nil {
		return network.Info{}, errors.Join(err, d.dropParent(n))
	}
	d.mu.Lock()
	d.networks[spec.ID] = n
	d.mu.Unlock()
	return network.Info{
		Name: spec.Name, ID: spec.ID, Driver: d.kind, Scope: "local", Options: maps.Clone(spec.Options),
		IPAM: network.IPAM{Subnets: spec.Subnets},
	}, nil
}

// conflict refuses a parent that another network has for itself. Called with mu held.
func (d *Driver) conflict(n *net) error {
	for _, o := range d.networks {
		if o.spec.ID == n.spec.ID || o.parent != n.parent {
			continue
		}
		switch {
		case d.kind == "ipvlan":
			return errdefs.ErrInternal.WithMessage(fmt.Sprintf("network %s is already using parent interface %s", o.spec.ID, n.parent))
		case n.mode == "passthru":
			return errdefs.ErrInternal.WithMessage(fmt.Sprintf("cannot use mode passthru, macvlan network %s is already using parent interface %s", o.spec.ID, n.parent))
		case o.mode == "passthru":
			return errdefs.ErrInternal.WithMessage(fmt.Sprintf("macvlan network %s is already using parent interface %s in mode passthru", o.spec.ID, n.parent))
		}
	}
	return nil
}

// Delete implements network.Driver.
func (d *Driver) Delete(_ context.Context, id string) error {
	d.mu.Lock()
	n, ok := d.networks[id]
	delete(d.networks, id)
	delete(d.known, id)
	d.mu.Unlock()
	if !ok {
		return errors.Join(deleteNamed(ownName(d.kind, id)), d.sweepParents())
	}
	return d.dropParent(n)
}

// Close implements network.Driver.
func (d *Driver) Close() error { return nil }

func (d *Driver) network(id string) (*net, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, ok := d.networks[id]
	if !ok {
		return nil, fmt.Errorf("network %s not found: %w", id, errdefs.ErrNotFound)
	}
	return n, nil
}

// Join implements network.Driver. Blocks for about a millisecond.
func (d *Driver) Join(_ context.Context, id string, ns *netns.Handle, j network.Join) (network.Endpoint, error) {
	n, err := d.network(id)
	if err != nil {
		return network.Endpoint{}, err
	}
	mac, err := d.connect(n, ns, j)
	if err != nil {
		return network.Endpoint{}, fmt.Errorf("network %q: endpoint %s: %w", n.spec.Name, j.EndpointID, err)
	}
	return network.Endpoint{NetworkID: id, EndpointID: j.EndpointID, Interface: j.Interface, MAC: mac}, nil
}

// mark is the alias of the link of an endpoint, or of the parent of a network:
// what bears it is this instance's.
func (d *Driver) mark(id string) string { return d.cfg.Instance + ":" + id }

// connect makes a link on the parent, marks it, and takes it into the namespace
// under its name there. On an error nothing is left behind.
func (d *Driver) connect(n *net, ns *netns.Handle, j network.Join) (mac string, err error) {
	name := d.cfg.LinkPrefix() + j.EndpointID[:min(7, len(j.EndpointID))]
	link := n.link(d.kind, name, hardware(n, j))
	if err := netlink.LinkAdd(link); err != nil {
		return "", fmt.Errorf("link %q on %q: %w", name, n.parent, err)
	}
	moved := false
	defer func() {
		if err == nil {
			return
		}
		remove := func() error { return netlink.LinkDel(link) }
		if moved {
			err = errors.Join(err, ns.Do(func() error { return deleteNamed(j.Interface) }))
		} else {
			err = errors.Join(err, remove())
		}
	}()
	if err := netlink.LinkSetAlias(link, d.mark(j.EndpointID)); err != nil {
		return "", fmt.Errorf("link %q: %w", name, err)
	}
	if err := inside.Move(link.Attrs().Index, ns.Fd(), j.Interface); err != nil {
		return "", fmt.Errorf("link %q inside: %w", j.Interface, err)
	}
	moved = true
	err = ns.Do(func() error {
		if err := j.Inside().Up(); err != nil {
			return err
		}
		l, err := netlink.LinkByName(j.Interface)
		if err == nil {
			mac = l.Attrs().HardwareAddr.String()
		}
		return err
	})
	return mac, err
}

// Leave implements network.Driver. The links of a container that has ended go with
// its namespace.
func (d *Driver) Leave(_ context.Context, ep network.Endpoint) error {
	if ep.Handle == "" || strings.Contains(ep.Handle, "/") {
		return nil
	}
	path := filepath.Join(d.cfg.NetnsDir, ep.Handle)
	if !netns.Bound(path) {
		return nil
	}
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error { return d.deleteMarked(func(id string) bool { return id == ep.EndpointID }) })
}

// Restore implements network.Driver: links that are missing in the namespaces of
// endpoints that live come back, and what was half-made on the host goes.
func (d *Driver) Restore(_ context.Context, live map[string][]network.Live) error {
	errs := []error{d.sweepLinks(), d.sweepParents()}
	for id, list := range live {
		n, err := d.network(id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, l := range list {
			if err := d.repair(n, l); err != nil {
				d.log.Error("taking up the network of a running container", "container", l.ContainerID, "link", l.Endpoint.Interface, "error", err)
			}
		}
	}
	return errors.Join(errs...)
}

// repair makes the link of an endpoint anew when it is gone.
func (d *Driver) repair(n *net, l network.Live) error {
	if !netns.Bound(l.Path) {
		return nil // the manager has told of it
	}
	ns, err := netns.Open(l.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = ns.Do(func() error { _, err := netlink.LinkByName(l.Endpoint.Interface); return err })
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return err
	}
	d.log.Warn("making the link of a running container anew", "container", l.ContainerID, "link", l.Endpoint.Interface)
	j, err := l.Join()
	if err != nil {
		return err
	}
	_, err = d.connect(n, ns, j)
	return err
}

// Sweep implements network.Sweeper.
func (d *Driver) Sweep(ns *netns.Handle, live map[string]bool) error {
	return ns.Do(func() error { return d.deleteMarked(func(id string) bool { return !live[id] }) })
}

// Sweeps implements network.Sweeper.
func (d *Driver) Sweeps() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.networks) > 0
}
