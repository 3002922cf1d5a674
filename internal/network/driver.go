package network

import (
	"context"
	"net"
	"net/netip"

	"escale.dev/escale/internal/sys/netns"
)

// Driver makes networks of one kind and connects namespaces to them. Every
// driver passes the suite in network/networktest. Methods may be called from
// several goroutines; those that change the kernel block until it is done.
type Driver interface {
	// Type is the driver's name as Docker has it: "bridge", "null".
	Type() string

	// Create makes a network, or takes up and repairs the one that an earlier
	// engine left. Idempotent. The Info is without containers.
	Create(ctx context.Context, spec Spec) (Info, error)

	// Delete removes a network and whatever of it is left in the kernel; it must
	// have no endpoints. Idempotent.
	Delete(ctx context.Context, id string) error

	// Join connects the namespace. On an error nothing is left behind. NotFound
	// when there is no such network; the errors about addresses are Docker's.
	Join(ctx context.Context, id string, ns *netns.Handle, j Join) (Endpoint, error)

	// Leave undoes Join by what the endpoint says, also when the namespace has
	// gone or the engine has been started anew. Idempotent.
	Leave(ctx context.Context, ep Endpoint) error

	// Restore takes up the endpoints that live, by the id of their network, and
	// repairs them; whatever else the driver finds of this instance in the kernel
	// it removes. It is called after Create and before the first Join.
	Restore(ctx context.Context, live map[string][]Live) error

	// Close lets go of what the driver holds open; networks and endpoints stay.
	Close() error
}

// Publisher is a Driver whose endpoints can have ports published on the host.
type Publisher interface {
	// Publish makes the published ports of an endpoint (Endpoint.Ports) work,
	// all of them or none.
	Publish(ctx context.Context, ep Endpoint) error

	// Unpublish undoes Publish for some endpoints in one step. Idempotent, quick.
	Unpublish(ctx context.Context, eps []Endpoint) error
}

// Watcher is a Driver that looks after its networks while the engine runs.
type Watcher interface {
	// Watch blocks until ctx ends. It calls ready once it would see a change.
	Watch(ctx context.Context, ready func()) error
}

// Spec is a network as it is asked for.
type Spec struct {
	Name string
	ID   string // 64 hexadecimal digits
}

// Join says how a namespace is to be connected.
type Join struct {
	ContainerID string
	EndpointID  string           // 64 hexadecimal digits
	Interface   string           // name of the link inside, "eth0"
	Gateway     bool             // the default route goes this way
	Published   bool             // the endpoint will have published ports
	IP          netip.Addr       // the address wanted; the zero Addr leaves it to the driver
	MAC         net.HardwareAddr // the same
}

// Live is an endpoint of a container that lived through a restart of the engine.
type Live struct {
	ContainerID string
	Path        string // handle of the namespace; nothing may be there any more
	Gateway     bool   // as in Join
	Endpoint    Endpoint
}
