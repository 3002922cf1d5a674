package network

import (
	"context"

	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
)

// absent is the driver of networks whose own driver is not there any more: they
// can be looked at and removed.
type absent string

var _ Driver = absent("")

func (d absent) missing() error {
	return worded(errdefs.ErrNotFound, "could not resolve driver %s in registry", string(d))
}

// Type implements Driver.
func (d absent) Type() string { return string(d) }

// Check implements Driver.
func (d absent) Check(Spec) error { return d.missing() }

// Create implements Driver.
func (d absent) Create(context.Context, Spec) (Info, error) { return Info{}, d.missing() }

// Delete implements Driver.
func (d absent) Delete(context.Context, string) error { return nil }

// Join implements Driver.
func (d absent) Join(context.Context, string, *netns.Handle, Join) (Endpoint, error) {
	return Endpoint{}, d.missing()
}

// Leave implements Driver.
func (d absent) Leave(context.Context, Endpoint) error { return nil }

// Restore implements Driver.
func (d absent) Restore(context.Context, map[string][]Live) error { return nil }

// Close implements Driver.
func (d absent) Close() error { return nil }
