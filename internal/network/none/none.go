// Package none is the network driver "null": a namespace with nothing but its
// loopback link.
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
	mu       sync.Mutex
	networks map[string]bool
}

var _ network.Driver = (*Driver)(nil)

// New makes a Driver.
func New() *Driver { return &Driver{networks: map[string]bool{}} }

// Type implements network.Driver.
func (d *Driver) Type() string { return "null" }

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
