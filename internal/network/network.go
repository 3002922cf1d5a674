// Package network gives containers their network: a namespace with an
// interface, an address, and the published ports. Drivers live beneath it.
package network

import (
	"os"
	"time"

	"github.com/moby/moby/api/types/network"
)

// Request asks for the network of one container.
type Request struct {
	ContainerID string
	Name        string
	Hostname    string
	// Networks is what the client asked, by network name ("bridge", "none").
	Networks   map[string]*network.EndpointSettings
	Exposed    network.PortSet
	Bindings   network.PortMap
	PublishAll bool
}

// Endpoint is a container's place on one network. It is stored in the
// container's record, so it is enough to find and undo everything in the kernel.
type Endpoint struct {
	Network    string // name
	NetworkID  string
	EndpointID string // 64 hexadecimal digits
	IP         string // "172.17.0.2"; empty on "none"
	PrefixLen  int
	Gateway    string
	IP6        string // "fd00::2"; empty without IPv6
	PrefixLen6 int
	Gateway6   string
	MAC        string
	HostLink   string // the host's end of the veth pair
	Interface  string // the container's end, "eth0"
	Ports      network.PortMap
	Aliases    []string // what the client asked for: network-scoped aliases
	DNSNames   []string // every name it answers to on this network, its own included
}

// Sandbox is a container's network as it stands.
type Sandbox struct {
	ID        string
	Path      string // handle of the network namespace, a bind mount
	Endpoints []Endpoint
	Held      []*os.File // bound sockets of the published host ports; the caller owns them
}

// Info describes a network.
type Info struct {
	Name, ID, Driver, Scope string
	Subnet, Gateway         string
	Options                 map[string]string
	Created                 time.Time           // by this engine, or when it took it up
	Containers              map[string]Endpoint // by container id
}
