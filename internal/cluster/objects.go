package cluster

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"time"

	"github.com/moby/moby/api/types/network"
)

// Network is a network that the orchestrator keeps.
type Network struct {
	Meta
	Spec   NetworkSpec
	Status NetworkStatus
}

// Kind implements Object.
func (*Network) Kind() Kind { return KindNetwork }

// NetworkSpec is what a network is to be; Name is that in the engine.
type NetworkSpec struct {
	Name     string
	External bool                   `json:",omitempty"` // it is somebody else's, and only used
	Removed  bool                   `json:",omitempty"` // it goes: the engine's first, then the object
	Create   *network.CreateRequest `json:",omitempty"` // of what options, its name apart
	Made     uint64                 `json:",omitempty"` // counts changes of what it has to be made anew for; kept by who writes the spec
}

// Differs tells whether a network of this spec has to be made anew for another: its
// labels say nothing of how it works, and what is somebody else's is as it is.
func (s NetworkSpec) Differs(want NetworkSpec) bool {
	return s.Name == want.Name && !s.External && !want.External && !reflect.DeepEqual(s.works(), want.works())
}

// works is what a network is made of, its labels apart. What was read from a store is
// like what is to be written there.
func (s NetworkSpec) works() (out any) {
	var c network.CreateRequest
	if s.Create != nil {
		c = *s.Create
		c.Labels = nil
	}
	if b, err := json.Marshal(c); err == nil {
		_ = json.Unmarshal(b, &out) // it was written a line above
	}
	return out
}

// Overlay tells whether the network spans the nodes, with addresses that the cluster gives out.
func (n *Network) Overlay() bool {
	return !n.Spec.External && n.Spec.Create != nil && n.Spec.Create.Driver == "overlay"
}

// Encrypted tells whether what goes from node to node by an overlay network is encrypted.
func (n *Network) Encrypted() bool {
	if !n.Overlay() {
		return false
	}
	text, ok := n.Spec.Create.Options["encrypted"]
	return ok && text != "false"
}

// Ingress tells whether it is the network of published ports.
func (n *Network) Ingress() bool { return n.Overlay() && n.Spec.Create.Ingress }

// Ready tells whether an overlay network has what nodes need to make it.
func (n *Network) Ready() bool { return n.Status.VNI != 0 && len(n.Status.Subnets) > 0 }

// NewIngress is the network of published ports that a cluster begins with.
func NewIngress() *Network {
	return &Network{Meta: Meta{Name: "ingress"}, Spec: NetworkSpec{
		Name: "ingress", Create: &network.CreateRequest{Name: "ingress", Driver: "overlay", Scope: "swarm", Ingress: true},
	}}
}

// NetworkStatus is what became of it.
type NetworkStatus struct {
	EngineID string   `json:",omitempty"` // of the engine's network
	Err      string   `json:",omitempty"`
	VNI      uint32   `json:",omitempty"` // of an overlay network, by which nodes tell them apart: 24 bits
	Subnets  []Subnet `json:",omitempty"` // of an overlay network; of IPv4 first
	Full     bool     `json:",omitempty"` // somebody waits for an address of it
	// Attached are those who have addresses of an overlay network beside tasks and services.
	Attached []Attached `json:",omitempty"`
}

// Subnet is one of an overlay network's.
type Subnet struct {
	Prefix  netip.Prefix
	Range   netip.Prefix `json:",omitzero"` // from which addresses are given out; zero: all of it
	Gateway netip.Addr
	Aux     []netip.Addr `json:",omitempty"` // that are not given out
	Last    netip.Addr   `json:",omitzero"`  // that was given out last: the next one comes after it
}

// Attached is a node, or a container of its own that no task has, on an overlay network.
type Attached struct {
	Node      string // id
	Container string `json:",omitempty"` // id; "": the node itself
	Endpoint  string `json:",omitempty"` // of the container
	Addrs     []netip.Prefix
}

// Volume is a volume that the orchestrator keeps.
type Volume struct {
	Meta
	Spec   VolumeSpec
	Status VolumeStatus
}

// Kind implements Object.
func (*Volume) Kind() Kind { return KindVolume }

// VolumeSpec is what a volume is to be; Name is that in the engine.
type VolumeSpec struct {
	Name     string
	External bool              `json:",omitempty"`
	Removed  bool              `json:",omitempty"` // it goes, with its data
	Driver   string            `json:",omitempty"`
	Options  map[string]string `json:",omitempty"`
	Labels   map[string]string `json:",omitempty"`
}

// VolumeStatus is what became of it.
type VolumeStatus struct {
	Made bool   `json:",omitempty"`
	Err  string `json:",omitempty"`
	// Node is where an app's volume is that exists on one node, as far as that is known: its id.
	Node string `json:",omitempty"`
	// Owed says that the node was away when the volume was to be removed: it is removed there once the
	// node is back. Nobody has it any more, and another may have its name.
	Owed bool `json:",omitempty"`
}

// Secret is a few bytes for the eyes of tasks only.
type Secret struct {
	Meta
	Spec SecretSpec
}

// Kind implements Object.
func (*Secret) Kind() Kind { return KindSecret }

// Replaced tells whether another one has its name now: it is there for those who go back.
func (s *Secret) Replaced() bool { return s.Spec.ReplacedBy != "" }

// SecretSpec is a secret; at most 500 kB.
type SecretSpec struct {
	Name     string `json:",omitempty"`
	External bool   `json:",omitempty"`
	Data     []byte `json:",omitempty"`
	Template bool   `json:",omitempty"` // Data is a template: see Place.Expand

	ReplacedBy string `json:",omitempty"` // id of the one that has its name now; this one has another in the store

	// Network is the id of the encrypted network whose keys these are, as JSON of NetworkKeys. Such
	// a secret is for nodes, and nobody is told of it.
	Network string `json:",omitempty"`
}

// Config is a file for tasks.
type Config struct {
	Meta
	Spec ConfigSpec
}

// Kind implements Object.
func (*Config) Kind() Kind { return KindConfig }

// Replaced tells whether another one has its name now: it is there for those who go back.
func (c *Config) Replaced() bool { return c.Spec.ReplacedBy != "" }

// ConfigSpec is a config; at most 500 kB.
type ConfigSpec struct {
	Name     string `json:",omitempty"`
	External bool   `json:",omitempty"`
	Data     []byte `json:",omitempty"`
	Template bool   `json:",omitempty"` // Data is a template: see Place.Expand

	ReplacedBy string `json:",omitempty"` // id of the one that has its name now; this one has another in the store
}

// Node is a machine.
type Node struct {
	Meta
	Spec   NodeSpec
	Status NodeStatus
}

// Kind implements Object.
func (*Node) Kind() Kind { return KindNode }

// NodeSpec is what people say of a node.
type NodeSpec struct {
	Manager      bool // the role that is wanted
	Availability Availability
	Labels       map[string]string `json:",omitempty"`
}

// Availability is what a node is for.
type Availability string

// The availabilities of a node.
const (
	Active Availability = "active"
	Paused Availability = "pause" // it gets no new tasks
	Drain  Availability = "drain" // it has none
)

// NodeStatus is what a node says of itself, and what is seen of it.
type NodeStatus struct {
	Ready        bool
	Since        time.Time
	Message      string              `json:",omitempty"`
	Addr         string              `json:",omitempty"`
	Platform     Platform            `json:",omitzero"`
	Resources    Resources           `json:",omitzero"`
	Used         Resources           `json:",omitzero"` // of them, by whatever runs on the node; measured where scheduling asks for it
	EngineLabels map[string]string   `json:",omitempty"`
	Version      string              `json:",omitempty"`
	Routes       []netip.Prefix      `json:",omitempty"` // that it has beside those of its networks: no overlay network is to overlap with them
	Plugins      []Plugin            `json:",omitempty"` // drivers that its engine has
	Named        map[string][]string `json:",omitempty"` // the resources that have names, by their kind; Resources counts them, too
	ListenAddr   string              `json:",omitempty"` // host:port where other nodes call it
	DataPathAddr string              `json:",omitempty"` // where overlay networks' packets go; "": Addr
	Encrypts     bool                `json:",omitempty"` // overlay networks: its kernel can
	CertIssuer   string              `json:",omitempty"` // names the key that has signed the node's certificate
	Manager      *ManagerStatus      `json:",omitempty"` // of a manager
}

// Plugin is a driver that an engine has, its own among them.
type Plugin struct{ Type, Name string }

// ManagerStatus is what is seen of a manager.
type ManagerStatus struct {
	Leader    bool   `json:",omitempty"`
	Reachable bool   `json:",omitempty"`
	Addr      string `json:",omitempty"` // host:port where managers and nodes call it
}
