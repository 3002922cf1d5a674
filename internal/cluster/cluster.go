package cluster

import (
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// DefaultCluster is the name of the one Cluster that there is.
const DefaultCluster = "default"

// Cluster is what makes a swarm of a host: there is one from swarm init on.
type Cluster struct {
	Meta
	Spec   swarm.Spec // in Docker's form, as it was asked
	Status ClusterStatus
}

// Kind implements Object.
func (*Cluster) Kind() Kind { return KindCluster }

// ClusterStatus is what a swarm needs to let nodes in and to lay networks over them.
type ClusterStatus struct {
	RootCA        []byte         `json:",omitempty"` // certificate of the root, PEM
	Key           []byte         `json:",omitempty"` // of the root, PEM; encrypted when there is a key to do it with
	WorkerSecret  string         `json:",omitempty"` // the part of the token for workers after the digest
	ManagerSecret string         `json:",omitempty"`
	UnlockKey     string         `json:",omitempty"`
	AddressPools  []netip.Prefix `json:",omitempty"` // that overlay networks get their subnets from
	SubnetSize    int            `json:",omitempty"` // bits of such a subnet's prefix
	Ingress       bool           `json:",omitempty"` // the network of published ports was made; who removes it has it gone
	DataPathPort  uint16         `json:",omitempty"` // UDP, of VXLAN
	Barred        []Barred       `json:",omitempty"` // nodes that were removed
	LongestCert   time.Duration  `json:",omitempty"` // for which certificates were ever signed; at most it, or what the spec says now
	RootRotation  *RootRotation  `json:",omitempty"` // while the root is exchanged
}

// RootRotation is a root on its way in: it signs from now on, and the one before is trusted
// until every node has a certificate of it.
type RootRotation struct {
	Cert   []byte // PEM
	Key    []byte // PEM; encrypted when there is a key to do it with
	Cross  []byte // certificate by which the root before vouches for it, PEM
	Issuer string // names its key, as NodeStatus.CertIssuer does
}
