// Package network gives containers their network: a namespace with interfaces,
// addresses, and the published ports. Drivers live beneath it.
package network

import (
	"net/netip"
	"os"
	"time"

	"github.com/moby/moby/api/types/network"
)

// Request asks for the network of one container.
type Request struct {
	ContainerID string
	Name        string
	Hostname    string
	There       bool // the container is there already: errors say nothing of its configuration
	Later       bool // to Validate: networks of users need not be there yet
	// Main is the network that comes first; the others follow by name.
	Main string
	// Networks is what the client asked, by name or id of the network ("bridge",
	// "none"). Nil stands for the default network, an empty map for none at all.
	Networks   map[string]*network.EndpointSettings
	Exposed    network.PortSet
	Bindings   network.PortMap
	PublishAll bool
	Resolve    Resolve
	// Balance names the group of containers with which its published ports may be
	// shared; empty: they are its own.
	Balance string
	// Probed says that the container has a health check: it takes nothing of what is
	// shared until it is healthy.
	Probed bool
}

// Endpoint is a container's place on one network. It is stored in the
// container's record, so it is enough to find and undo everything in the kernel.
// One without a network (Network is empty) stands for the namespace of a container
// that is on none.
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
	Aliases    []string        // what the client asked for: network-scoped aliases
	DNSNames   []string        // every name it answers to on this network, its own first
	Links      []string        `json:",omitempty"` // "container:alias": names of others that this container alone uses
	GwPriority int             `json:",omitempty"` // the endpoint with the highest has the default route
	LinkLocal  []string        `json:",omitempty"` // further addresses of the interface
	Sysctls    []string        `json:",omitempty"` // "net.ipv4.conf.IFNAME.forwarding=1"
	Balance    string          `json:",omitempty"` // the group with which the published ports are shared
	Own        network.PortMap `json:",omitempty"` // published ports, of those in Ports, that are not shared although there is a group
	Resting    bool            `json:",omitempty"` // nothing new is to come by shared ports
	Handle     string          `json:",omitempty"` // name of the namespace's handle; the same in all of a start
}

// Sandbox is a container's network as it stands.
type Sandbox struct {
	ID        string
	Path      string // handle of the network namespace, a bind mount
	Endpoints []Endpoint
	Held      []*os.File // bound sockets of the published host ports and of the name server; the caller owns them
}

// Subnet is a stretch of addresses of a network.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr            // the zero Addr: none
	Range   netip.Prefix          // where addresses are chosen; the zero Prefix: in all of it
	Aux     map[string]netip.Addr `json:",omitempty"` // addresses that are others', by name
	Asked   bool                  `json:",omitempty"` // a user has asked for it: addresses in it may be asked for
}

// IPAM says how the addresses of a network are managed.
type IPAM struct {
	Driver  string
	Options map[string]string
	Subnets []Subnet // of IPv4 first
}

// Info describes a network.
type Info struct {
	Name, ID, Driver, Scope string
	EnableIPv4, EnableIPv6  bool
	Internal, Attachable    bool
	Ingress                 bool   // it is a cluster's, of published ports
	ConfigOnly              bool   // it only lends others its configuration
	ConfigFrom              string // name of the network whose configuration it has
	IPAM                    IPAM
	Options, Labels         map[string]string
	Created                 time.Time           // by this engine, or when it took it up
	Containers              map[string]Endpoint // by container id
}

// Predefined tells whether the network is always there.
func (i *Info) Predefined() bool { return predefined[i.Name] != "" }

// Subnet is the network's first subnet of a family; the zero Subnet: none.
func (i *Info) Subnet(v6 bool) Subnet {
	for _, s := range i.IPAM.Subnets {
		if s.Prefix.Addr().Is6() == v6 {
			return s
		}
	}
	return Subnet{}
}
