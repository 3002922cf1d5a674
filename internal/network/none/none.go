// Package none has the network drivers for which nothing is made: "null", a
// namespace with nothing but its loopback link, and "host", the host's own.
package none

import (
	"context"
	"fmt"
	"sync"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
)

// Driver is the driver of networks without links. It keeps nothing in the kernel.
type Driver struct {
	typ string

	mu       sync.Mutex
	networks map[string]bool
}

var _ network.Driver = (*Driver)(nil)

// New makes the driver "null".
func New() *Driver { return &Driver{typ: "null", networks: map[string]bool{}} }

// Host makes the driver "host". Nobody joins its network: containers on it are
// started in the host's namespace.
func Host() *Driver { return &Driver{typ: "host", networks: map[string]bool{}} }

// Type implements network.Driver.
func (d *Driver) Type() string { return d.typ }

// Check implements network.Driver: there is one network of each kind, and it is
// always there.
func (d *Driver) Check(network.Spec) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("only one instance of %q network is allowed", d.typ))
}

// Create implements network.Driver.
func (d *Driver) Create(_ context.Context, spec network.Spec) (network.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.networks[spec.ID] = true
	return network.Info{Name: spec.Name, ID: spec.ID, Driver: d.Type(), Scope: "local"}, nil
}

// Delete implements network.Driver.
func (d *Driver) Delete(_ context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.networks, id)
	return nil
}

// Join implements network.Driver.
func (d *Driver) Join(_ context.Context, id string, _ *netns.Handle, j network.Join) (network.Endpoint, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.networks[id] {
		return network.Endpoint{}, fmt.Errorf("network %s not found: %w", id, errdefs.ErrNotFound)
	}
	return network.Endpoint{NetworkID: id, EndpointID: j.EndpointID}, nil
}

// Leave implements network.Driver.
func (d *Driver) Leave(context.Context, network.Endpoint) error { return nil }

// Restore implements network.Driver.
func (d *Driver) Restore(context.Context, map[string][]network.Live) error { return nil }

// Close implements network.Driver.
func (d *Driver) Close() error { return nil }
