package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/daemon/membership"
	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	apinetwork "github.com/moby/moby/api/types/network"
)

// ownNetworks are the networks as containers have them: those of the cluster that one wants
// are made here.
type ownNetworks struct {
	*network.Manager
	spans *spans
}

// Find finds a network, and makes it here when it is the cluster's.
func (n ownNetworks) Find(ref string) (network.Info, error) {
	i, err := n.Manager.Find(ref)
	if !errdefs.IsNotFound(err) || address.Overlay(n.spans.store().View(), ref) == nil {
		return i, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), whole) // detached: its callers only look
	defer cancel()
	s, err := n.spans.Find(ctx, ref)
	if err == nil {
		err = n.Span(ctx, s)
	}
	if err != nil {
		return i, err
	}
	return n.Manager.Find(s.ID)
}

// Validate tells what is wrong with a request that can be told before Setup.
func (n ownNetworks) Validate(r network.Request) error {
	for ref := range r.Networks {
		if _, err := n.Find(ref); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return n.Manager.Validate(r)
}

// allNetworks are the networks as clients have them: this host's and the cluster's.
type allNetworks struct{ ownNetworks }

var _ engine.Networks = allNetworks{}

func (n allNetworks) overlays() (out []*cluster.Network) {
	for _, o := range store.List[*cluster.Network](n.spans.store().View()) {
		if o.Overlay() && !o.Spec.Removed {
			out = append(out, o)
		}
	}
	return out
}

// List implements engine.Networks.
func (n allNetworks) List() []network.Info {
	out := n.Manager.List()
	for _, o := range n.overlays() {
		i := n.tell(o)
		out = slices.DeleteFunc(out, func(h network.Info) bool { return h.ID == i.ID })
		out = append(out, i)
	}
	slices.SortStableFunc(out, func(a, b network.Info) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// tell is a network of the cluster's with the containers of this node.
func (n allNetworks) tell(o *cluster.Network) network.Info {
	i := spanned(o)
	if here, err := n.Manager.Inspect(o.ID); err == nil {
		i.Containers = here.Containers
	}
	return i
}

// find finds a network of the cluster's; nil: the reference means one of this host's, or none.
func (n allNetworks) find(ref string) (*cluster.Network, error) {
	here, err := n.Manager.Find(ref)
	if err == nil && (here.Scope != "swarm" || here.Driver != "overlay") {
		return nil, nil
	}
	if err == nil {
		ref = here.ID
	}
	v := n.spans.store().View()
	o, err := store.Resolve[*cluster.Network](v, ref)
	if err != nil && !errdefs.IsInvalidArgument(err) || err == nil && !o.Overlay() {
		if named := address.Overlay(v, ref); named != nil { // an app has names of its own for networks
			o, err = named, nil
		}
	}
	switch {
	case errdefs.IsInvalidArgument(err):
		return nil, err
	case err != nil || !o.Overlay() || o.Spec.Removed:
		return nil, nil
	}
	return o, nil
}

// Inspect implements engine.Networks.
func (n allNetworks) Inspect(ref string) (network.Info, error) {
	o, err := n.find(ref)
	if err != nil {
		return network.Info{}, err
	}
	if o == nil {
		return n.Manager.Inspect(ref)
	}
	return n.tell(o), nil
}

// Find implements engine.Networks.
func (n allNetworks) Find(ref string) (network.Info, error) {
	o, err := n.find(ref)
	if err != nil {
		return network.Info{}, err
	}
	if o == nil {
		return n.Manager.Find(ref)
	}
	return spanned(o), nil
}

// Create implements engine.Networks. One of the cluster's has its subnets when this returns.
func (n allNetworks) Create(ctx context.Context, c network.Create) (network.Info, error) {
	v := n.spans.store().View()
	taken := errdefs.ErrConflict.WithMessage(fmt.Sprintf("network with name %s already exists", c.Name))
	if slices.ContainsFunc(n.overlays(), func(o *cluster.Network) bool { return o.Spec.Name == c.Name }) {
		return network.Info{}, taken
	}
	if n.spans.m.Alone() || c.Driver != "overlay" && (c.Scope != "swarm" || c.ConfigOnly) {
		return n.Manager.Create(ctx, c)
	}
	if n.spans.m.State().Phase != membership.Manager {
		return network.Info{}, errdefs.ErrPermissionDenied.WithMessage("Cannot create a multi-host network from a worker node. Please create the network from a manager node.")
	}
	if c.Driver != "overlay" {
		return network.Info{}, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("network %s: the swarm has networks of driver overlay only, not of %s", c.Name, cmp.Or(c.Driver, "bridge")))
	}
	if _, err := n.Inspect(c.Name); err == nil {
		return network.Info{}, taken
	}
	if o := address.Ingress(v); c.Ingress && o != nil {
		return network.Info{}, errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("rpc error: code = AlreadyExists desc = ingress network (%s) is already present", o.ID))
	}
	if c.Ingress && (c.Internal || c.Attachable) {
		return network.Info{}, errdefs.ErrInvalidArgument.WithMessage("rpc error: code = InvalidArgument desc = Ingress network can not be used for service attachment nor be internal")
	}
	o, err := n.asked(c)
	if err != nil {
		return network.Info{}, err
	}
	if err := n.spans.d.overlay.Check(network.Spec{Name: c.Name, ID: o.ID, Options: c.Options, Internal: c.Internal}); err != nil {
		return network.Info{}, err
	}
	if _, err := n.spans.store().Commit(ctx, store.Create(o)); err != nil {
		if errdefs.IsAlreadyExists(err) {
			err = taken
		}
		return network.Info{}, err
	}
	made, err := n.spans.await(ctx, o.ID)
	if err != nil {
		return network.Info{}, errors.Join(err, n.forget(context.WithoutCancel(ctx), o.ID))
	}
	return n.tell(made), nil
}

// asked reads what a client asks for.
func (n allNetworks) asked(c network.Create) (*cluster.Network, error) {
	subnets, err := network.ReadSubnets(c)
	if err != nil {
		return nil, err
	}
	r := &apinetwork.CreateRequest{
		Name: c.Name, Driver: c.Driver, Scope: "swarm", EnableIPv4: c.EnableIPv4, EnableIPv6: c.EnableIPv6, Internal: c.Internal, Attachable: c.Attachable,
		Ingress: c.Ingress, Options: maps.Clone(c.Options), Labels: maps.Clone(c.Labels), IPAM: &apinetwork.IPAM{Driver: "default"},
	}
	for _, s := range subnets {
		r.IPAM.Config = append(r.IPAM.Config, apinetwork.IPAMConfig{Subnet: s.Prefix, IPRange: s.Range, Gateway: s.Gateway, AuxAddress: s.Aux})
	}
	return &cluster.Network{Meta: cluster.Meta{ID: cluster.NewID(), Name: c.Name, Labels: c.Labels}, Spec: cluster.NetworkSpec{Name: c.Name, Create: r}}, nil
}

// forget takes back a network that could not be made.
func (n allNetworks) forget(ctx context.Context, id string) error {
	for {
		o, err := store.Find[*cluster.Network](n.spans.store().View(), id)
		if err != nil {
			return nil
		}
		if _, err = n.spans.store().Commit(ctx, store.Delete(o)); !errdefs.IsConflict(err) {
			return err
		}
	}
}

// gone is how long the removal of a network waits for nodes to have removed it.
const gone = 15 * time.Second

// Remove implements engine.Networks.
func (n allNetworks) Remove(ctx context.Context, ref string) error {
	for {
		o, err := n.find(ref)
		if err != nil {
			return err
		}
		if o == nil {
			return n.Manager.Remove(ctx, ref)
		}
		if err := n.empty(ctx, o); err != nil {
			return err
		}
		if o, err = store.Find[*cluster.Network](n.spans.store().View(), o.ID); err != nil {
			continue // somebody else has removed it
		}
		c := store.Copy(o)
		c.Spec.Removed = true
		if _, err = n.spans.store().Commit(ctx, store.Update(c)); errdefs.IsConflict(err) {
			continue
		}
		if err != nil {
			return err
		}
		return n.awaitGone(ctx, o.ID)
	}
}

// awaitGone waits until nothing is left of a network: this node's part goes first.
func (n allNetworks) awaitGone(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, gone)
	defer cancel()
	for {
		v := n.spans.store().View()
		if _, err := store.Find[*cluster.Network](v, id); err != nil {
			return nil
		}
		w, err := n.spans.store().Watch(v.Revision(), cluster.KindNetwork)
		if err == nil {
			_, err = w.Next(ctx)
		}
		if err != nil && !errdefs.IsOutOfRange(err) {
			return err
		}
	}
}

// empty waits until the tasks that are about to end have left a network: a stack's network is
// removed right after its services. FailedPrecondition, in Docker's words, when somebody stays.
func (n allNetworks) empty(ctx context.Context, o *cluster.Network) error {
	ctx, cancel := context.WithTimeout(ctx, gone)
	defer cancel()
	for {
		v := n.spans.store().View()
		leaves, err := n.spans.used(v, o.ID)
		if err != nil && !leaves || err == nil {
			return err
		}
		w, failed := n.spans.store().Watch(v.Revision(), cluster.KindTask, cluster.KindNetwork)
		if failed == nil {
			_, failed = w.Next(ctx)
		}
		switch {
		case errors.Is(failed, context.DeadlineExceeded):
			return err // who it is that does not leave
		case failed != nil && !errdefs.IsOutOfRange(failed):
			return failed
		}
	}
}

// used tells who is on a network, and whether that is only such as are about to leave it.
func (s *spans) used(v store.View, id string) (leaves bool, err error) {
	inUse := func(by, who string) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("rpc error: code = FailedPrecondition desc = network %s is in use by %s %s", id, by, who))
	}
	o, missing := store.Find[*cluster.Network](v, id)
	if missing != nil {
		return false, nil
	}
	for _, service := range store.List[*cluster.Service](v) {
		if slices.ContainsFunc(address.Wanted(v, service, service.Spec.Networks), func(w *cluster.Network) bool { return w.ID == id }) {
			return false, inUse("service", service.ID)
		}
	}
	live, node := s.endpoints(), s.node()
	for _, a := range o.Status.Attached {
		if a.Container == "" {
			continue
		}
		// A container that was removed gives its address back a moment later.
		if leaves, err = a.Node == node && !live[a.Endpoint], inUse("task", a.Container); !leaves {
			return false, err
		}
	}
	for _, t := range store.List[*cluster.Task](v, store.On(id)) {
		if t.Status.State.Ended() {
			continue
		}
		_, missing := store.Find[*cluster.Service](v, t.Owner)
		if leaves, err = t.Desired.Stops() || missing != nil, inUse("task", t.ID); !leaves {
			return false, err
		}
	}
	return leaves, err
}
