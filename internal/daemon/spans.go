package daemon

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/daemon/membership"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/overlay"
	"github.com/containerd/errdefs"
)

// spans are the cluster's networks as this node's engine has them: which they are, and who
// gives out their addresses.
type spans struct {
	d      *Daemon
	opened chan struct{} // closed when m is there
	m      *membership.Membership
	none   store.Store // is empty, until then
}

var _ network.Spanning = (*spans)(nil)

func newSpans(d *Daemon) *spans {
	return &spans{d: d, opened: make(chan struct{}), none: mem.New(store.NewState())}
}

// open says what this node's part in a cluster is.
func (s *spans) open(m *membership.Membership) {
	s.m = m
	close(s.opened)
}

// store is that in which all networks are that this node knows: on a manager all there are.
func (s *spans) store() store.Store {
	select {
	case <-s.opened:
	default:
		return s.none
	}
	if st := s.m.State(); st.Phase == membership.Manager && st.Ready || st.Phase == membership.Alone {
		return s.m.Objects()
	}
	return s.m.Part()
}

// opening waits for the store, which an engine opens after its containers, of which some may
// start at once.
func (s *spans) opening(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, whole)
	defer cancel()
	select {
	case <-s.opened:
	case <-ctx.Done():
	}
}

// node is the id of this one; "" before it has joined.
func (s *spans) node() string {
	select {
	case <-s.opened:
		return s.m.Node()
	default:
		return ""
	}
}

// whole is how long one waits for a network that was made just now to get its subnets.
const whole = 10 * time.Second

// await waits until a network has its subnets, or says why it cannot have them.
func (s *spans) await(ctx context.Context, id string) (*cluster.Network, error) {
	ctx, cancel := context.WithTimeout(ctx, whole)
	defer cancel()
	for {
		v := s.store().View()
		n, err := store.Find[*cluster.Network](v, id)
		if err != nil {
			return nil, err
		}
		node := s.node()
		placed := !n.Ingress() || slices.ContainsFunc(n.Status.Attached, func(a cluster.Attached) bool { return a.Container == "" && a.Node == node })
		switch {
		case n.Ready() && placed:
			return n, nil
		case n.Status.Err != "":
			return n, errdefs.ErrInvalidArgument.WithMessage(n.Status.Err)
		}
		w, err := s.store().Watch(v.Revision(), cluster.KindNetwork)
		if err != nil && !errdefs.IsOutOfRange(err) {
			return nil, err
		}
		if err == nil {
			_, err = w.Next(ctx)
		}
		if err != nil && !errdefs.IsOutOfRange(err) {
			return nil, fmt.Errorf("network %s has no subnet yet: %w", n.Spec.Name, err)
		}
	}
}

// Find implements network.Spanning.
func (s *spans) Find(ctx context.Context, ref string) (network.Spanned, error) {
	s.opening(ctx)
	n := address.Overlay(s.store().View(), ref)
	if n == nil || n.Spec.Removed {
		return network.Spanned{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", ref))
	}
	n, err := s.await(ctx, n.ID)
	if err != nil {
		return network.Spanned{}, err
	}
	i := spanned(n)
	out := network.Spanned{
		ID: i.ID, Name: i.Name, Driver: i.Driver, Created: i.Created, IPv4: i.EnableIPv4, IPv6: i.EnableIPv6, Internal: i.Internal, Attachable: i.Attachable, Ingress: i.Ingress,
		Subnets: i.IPAM.Subnets, Options: i.Options, Labels: i.Labels,
	}
	out.Options["com.docker.network.driver.mtu"] = cmp.Or(out.Options["com.docker.network.driver.mtu"], strconv.Itoa(s.d.overlay.MTU(overlay.Encrypted(out.Options))))
	if n.Ingress() {
		s.own(n, &out)
	}
	return out, nil
}

// make makes a network of the cluster's on this node.
func (s *spans) make(ctx context.Context, id string) error {
	n, err := s.Find(ctx, id)
	if err != nil {
		return err
	}
	return s.d.networks.Span(ctx, n)
}

// own makes this node's address on the network of published ports that of its host there:
// from it comes what it sends to tasks of other nodes.
func (s *spans) own(n *cluster.Network, to *network.Spanned) {
	node := s.node()
	for _, who := range n.Status.Attached {
		if who.Node != node || who.Container != "" {
			continue
		}
		for i := range to.Subnets {
			for _, a := range who.Addrs {
				if to.Subnets[i].Prefix.Contains(a.Addr()) {
					to.Subnets[i].Gateway = a.Addr()
				}
			}
		}
	}
}

// spanned is a network of the cluster's as the engine tells of networks.
func spanned(n *cluster.Network) network.Info {
	c := n.Spec.Create
	i := network.Info{
		Name: n.Spec.Name, ID: n.ID, Driver: c.Driver, Scope: "swarm", EnableIPv4: c.EnableIPv4 == nil || *c.EnableIPv4, EnableIPv6: c.EnableIPv6 != nil && *c.EnableIPv6,
		Internal: c.Internal, Attachable: c.Attachable, Ingress: c.Ingress, Created: n.CreatedAt, Options: map[string]string{}, Labels: maps.Clone(c.Labels), IPAM: network.IPAM{Driver: "default"},
	}
	maps.Copy(i.Options, c.Options)
	if n.Status.VNI != 0 {
		i.Options[overlay.OptionVNI] = strconv.FormatUint(uint64(n.Status.VNI), 10)
	}
	for _, sub := range n.Status.Subnets {
		i.IPAM.Subnets = append(i.IPAM.Subnets, network.Subnet{Prefix: sub.Prefix, Range: sub.Range, Gateway: sub.Gateway})
	}
	return i
}

// Pools implements network.Addresses: the cluster has chosen.
func (*spans) Pools(_ context.Context, ask network.PoolRequest) ([]network.Subnet, error) {
	return ask.Subnets, nil
}

// Take implements network.Addresses. A task's container has the address that the task was
// given; any other one gets its own, which the cluster notes.
func (s *spans) Take(ctx context.Context, r *network.AddressRequest) (netip.Prefix, error) {
	s.opening(ctx)
	if r.Want.IsValid() && s.isTasks(s.m.Part().View(), r) {
		return netip.PrefixFrom(r.Want, r.Subnet.Bits()), nil
	}
	return s.m.Attach(ctx, address.Guest{Node: s.node(), Network: r.Network, Container: r.Container, Endpoint: r.Endpoint, Subnet: r.Subnet, Want: r.Want})
}

// isTasks tells whether a container's address is that of its task on this node.
func (s *spans) isTasks(v store.View, r *network.AddressRequest) bool {
	c, err := s.d.containers.Get(r.Container)
	if err != nil || c.Owner == nil {
		return false
	}
	t, err := store.Find[*cluster.Task](v, c.Owner.Task)
	return err == nil && slices.ContainsFunc(t.Addresses, func(a cluster.TaskAddress) bool { return a.Network == r.Network && a.Addr.Addr() == r.Want })
}

// GiveBack implements network.Addresses.
func (s *spans) GiveBack(ctx context.Context, endpoint string) {
	for _, n := range store.List[*cluster.Network](s.store().View()) {
		if slices.ContainsFunc(n.Status.Attached, func(a cluster.Attached) bool { return a.Endpoint == endpoint && a.Container != "" }) {
			s.detach(ctx, endpoint, nil)
			return
		}
	}
}

// detach gives back what an endpoint had, or, of "", what all had that are not left.
func (s *spans) detach(ctx context.Context, endpoint string, left []string) {
	if err := s.m.Detach(ctx, endpoint, left); err != nil && ctx.Err() == nil {
		s.d.log.Error("addresses of containers that have gone stay taken until the engine starts anew", "error", err)
	}
}

// Drop implements network.Addresses.
func (*spans) Drop(context.Context, string) {}

// settle gives back what containers had that an engine was killed beside.
func (s *spans) settle(ctx context.Context) {
	live, node := s.endpoints(), s.node()
	for _, n := range store.List[*cluster.Network](s.store().View()) {
		if slices.ContainsFunc(n.Status.Attached, func(a cluster.Attached) bool { return a.Node == node && a.Container != "" && !live[a.Endpoint] }) {
			s.detach(ctx, "", slices.Collect(maps.Keys(live)))
			return
		}
	}
}

// endpoints are those of the containers that there are.
func (s *spans) endpoints() map[string]bool {
	live := map[string]bool{}
	for _, v := range s.d.containers.List() {
		for _, ep := range v.Endpoints {
			live[ep.EndpointID] = true
		}
	}
	return live
}
