package allocate

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/network/ipam"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/moby/moby/api/types/network"
)

// The numbers of overlay networks. Those below are left to what people set up by hand, as
// with Docker.
const (
	firstVNI = 4096
	lastVNI  = 1<<24 - 1
)

// senders is how many UDP ports there are for encrypted networks to send from, of which the
// number of each says its own.
const senders = 1 << 14

// OptionVNI is the option of a network that asks for a number of its own; of several, separated
// by commas, the first counts.
const OptionVNI = "com.docker.network.driver.overlay.vxlanid_list"

// overlay makes an overlay network whole, and gives nodes their addresses on that of
// published ports.
func overlay(v store.View, n *cluster.Network) []store.Change {
	if n.Ready() {
		if n.Ingress() {
			return attach(v, n)
		}
		return nil
	}
	others := store.List[*cluster.Network](v)
	vni, err := number(n, others)
	var list []cluster.Subnet
	if err == nil {
		list, err = subnets(v, n, others)
	}
	was := n.Status.Err
	n = store.Copy(n)
	if err != nil {
		if n.Status.Err = errtext.Of(err); n.Status.Err == was {
			return nil
		}
	} else {
		n.Status.VNI, n.Status.Subnets, n.Status.Err = vni, list, ""
	}
	return []store.Change{store.Update(n)}
}

// number is the one that a network asks for, or one after all that are in use.
func number(n *cluster.Network, others []*cluster.Network) (uint32, error) {
	used, from := map[uint32]bool{}, map[uint32]bool{}
	next := uint32(firstVNI)
	for _, o := range others {
		if o.ID != n.ID && o.Status.VNI != 0 {
			used[o.Status.VNI] = true
			from[o.Status.VNI%senders] = from[o.Status.VNI%senders] || o.Encrypted()
			if o.Status.VNI >= next {
				next = o.Status.VNI + 1
			}
		}
	}
	if list, ok := n.Spec.Create.Options[OptionVNI]; ok {
		text, _, _ := strings.Cut(list, ",")
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil || id == 0 || id > lastVNI {
			return 0, fmt.Errorf("invalid vxlan id value %q passed", list)
		}
		if used[uint32(id)] {
			return 0, fmt.Errorf("vxlan id %d is in use already", id)
		}
		if n.Encrypted() && from[uint32(id)%senders] {
			return 0, fmt.Errorf("vxlan id %d: an encrypted network has one that differs by a multiple of %d, and they would send from one port", id, senders)
		}
		return uint32(id), nil
	}
	free := func(id uint32) bool { return !used[id] && !(n.Encrypted() && from[id%senders]) }
	if next <= lastVNI && free(next) {
		return next, nil
	}
	for id := uint32(firstVNI); id <= lastVNI; id++ {
		if free(id) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("no vxlan id is free")
}

// The pool of subnets that a cluster has which says nothing of it, as Docker's.
var (
	defaultPools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	defaultSize  = 24
)

// subnets are those that a network asks for, or free ones. None overlaps with another
// network's, nor, where there is a choice, with what a node reaches otherwise.
func subnets(v store.View, n *cluster.Network, others []*cluster.Network) (out []cluster.Subnet, err error) {
	var used []netip.Prefix
	for _, o := range others {
		for _, s := range o.Status.Subnets {
			if o.ID != n.ID {
				used = append(used, s.Prefix)
			}
		}
	}
	c := n.Spec.Create
	v4, v6 := c.EnableIPv4 == nil || *c.EnableIPv4, c.EnableIPv6 != nil && *c.EnableIPv6
	var asked []network.IPAMConfig
	if c.IPAM != nil {
		asked = c.IPAM.Config
	}
	for _, six := range []bool{false, true} {
		if six && !v6 || !six && !v4 {
			continue
		}
		had := len(out)
		for _, a := range asked {
			if !a.Subnet.IsValid() || a.Subnet.Addr().Is6() != six {
				continue
			}
			if _, overlaps := ipam.Overlap(a.Subnet, used); overlaps {
				return nil, fmt.Errorf("invalid pool request: Pool overlaps with other one on this address space")
			}
			out, used = append(out, asSubnet(a)), append(used, a.Subnet.Masked())
		}
		if len(out) > had {
			continue
		}
		p, err := choose(v, n, six, used)
		if err != nil {
			return nil, err
		}
		out = append(out, asSubnet(network.IPAMConfig{Subnet: p}))
	}
	return out, nil
}

// asSubnet is a subnet with its gateway: the first address, unless another is asked for.
func asSubnet(c network.IPAMConfig) cluster.Subnet {
	s := cluster.Subnet{Prefix: c.Subnet.Masked(), Range: c.IPRange, Gateway: c.Gateway}
	for _, a := range c.AuxAddress {
		s.Aux = append(s.Aux, a)
	}
	slices.SortFunc(s.Aux, netip.Addr.Compare)
	if s.Gateway.IsValid() {
		return s
	}
	for a := s.Prefix.Addr().Next(); s.Prefix.Contains(a); a = a.Next() {
		if !slices.Contains(s.Aux, a) {
			s.Gateway = a
			break
		}
	}
	return s
}

// choose finds a free subnet that no other network asks for.
func choose(v store.View, n *cluster.Network, six bool, used []netip.Prefix) (netip.Prefix, error) {
	if six { // the network's own, as RFC 4193 has it
		sum := sha256.Sum256([]byte("overlay\x00" + n.ID))
		raw := [16]byte{0xfd}
		copy(raw[1:8], sum[:])
		return netip.PrefixFrom(netip.AddrFrom16(raw), 64), nil
	}
	pools, size := defaultPools, defaultSize
	if c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster); err == nil && len(c.Status.AddressPools) > 0 {
		pools, size = c.Status.AddressPools, cmp.Or(c.Status.SubnetSize, defaultSize)
	}
	var ranges []ipam.Range
	for _, p := range pools {
		if p.Addr().Is4() {
			ranges = append(ranges, ipam.Range{Base: p, Size: max(size, p.Bits())})
		}
	}
	used = slices.Clone(used)
	for _, o := range store.List[*cluster.Network](v) {
		if o.Overlay() && o.ID != n.ID && o.Spec.Create.IPAM != nil {
			for _, c := range o.Spec.Create.IPAM.Config {
				used = append(used, c.Subnet)
			}
		}
	}
	avoid := slices.Clone(used)
	for _, node := range store.List[*cluster.Node](v) {
		avoid = append(avoid, node.Status.Routes...)
	}
	p, err := ipam.Choose(ranges, avoid)
	if err != nil {
		p, err = ipam.Choose(ranges, used)
	}
	return p, err
}

// attach gives each node its address on the network of published ports: from it comes
// what it sends to tasks of other nodes.
func attach(v store.View, n *cluster.Network) []store.Change {
	b := address.Open(v, n)
	to := b.Network()
	nodes := map[string]bool{}
	changed := false
	for _, node := range store.List[*cluster.Node](v) {
		nodes[node.ID] = true
	}
	to.Status.Attached = slices.DeleteFunc(to.Status.Attached, func(a cluster.Attached) bool {
		gone := a.Container == "" && !nodes[a.Node]
		changed = changed || gone
		return gone
	})
	for _, node := range store.List[*cluster.Node](v) {
		if slices.ContainsFunc(to.Status.Attached, func(a cluster.Attached) bool { return a.Container == "" && a.Node == node.ID }) {
			continue
		}
		got, err := b.Take()
		if err != nil {
			changed = changed || !n.Status.Full
			to.Status.Full = true
			break
		}
		changed = true
		to.Status.Attached = append(to.Status.Attached, cluster.Attached{Node: node.ID, Addrs: got})
	}
	if !changed {
		return nil
	}
	return []store.Change{store.Update(to)}
}
