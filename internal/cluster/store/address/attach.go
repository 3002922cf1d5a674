package address

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Guest is a container that no task has, on its way into an overlay network.
type Guest struct {
	Node      string // id
	Network   string // id
	Container string // id
	Endpoint  string // id
	Subnet    netip.Prefix
	Want      netip.Addr // zero: any of the subnet
}

// Attach gives a guest its address, durably. It blocks. NotFound; PermissionDenied, in Docker's
// words, for a network that is for tasks only; Unavailable when there is no free address.
func Attach(ctx context.Context, s store.Store, g Guest) (netip.Prefix, error) {
	for {
		v := s.View()
		n, err := store.Find[*cluster.Network](v, g.Network)
		if err != nil {
			return netip.Prefix{}, err
		}
		if n.Spec.Create == nil || !n.Spec.Create.Attachable {
			return netip.Prefix{}, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("Could not attach to network %s: rpc error: code = PermissionDenied desc = network %s not manually attachable", n.Spec.Name, n.Spec.Name))
		}
		b := Open(v, n)
		var p netip.Prefix
		if g.Want.IsValid() {
			p, err = b.Want(g.Want)
		} else {
			p, err = b.TakeOf(g.Subnet)
		}
		if err != nil {
			return p, err
		}
		to := &b.Network().Status
		at := slices.IndexFunc(to.Attached, func(a cluster.Attached) bool { return a.Endpoint == g.Endpoint && a.Node == g.Node })
		if at < 0 {
			to.Attached = append(to.Attached, cluster.Attached{Node: g.Node, Container: g.Container, Endpoint: g.Endpoint})
			at = len(to.Attached) - 1
		}
		to.Attached[at].Addrs = append(to.Attached[at].Addrs, p)
		if _, err = s.Commit(ctx, store.Update(b.Network())); !errdefs.IsConflict(err) {
			return p, err
		}
	}
}

// Detach takes back the addresses of a node's guests that have gone. It blocks.
func Detach(ctx context.Context, s store.Store, node string, gone func(endpoint string) bool) error {
	var errs []error
	for _, n := range store.List[*cluster.Network](s.View()) {
		for {
			c := store.Copy(n)
			c.Status.Attached = slices.DeleteFunc(c.Status.Attached, func(a cluster.Attached) bool { return a.Node == node && a.Container != "" && gone(a.Endpoint) })
			if len(c.Status.Attached) == len(n.Status.Attached) {
				break
			}
			_, err := s.Commit(ctx, store.Update(c))
			if err == nil || errdefs.IsNotFound(err) {
				break
			}
			if !errdefs.IsConflict(err) {
				errs = append(errs, fmt.Errorf("network %s: %w", n.Spec.Name, err))
				break
			}
			if n, err = store.Find[*cluster.Network](s.View(), n.ID); err != nil {
				break
			}
		}
	}
	return errors.Join(errs...)
}
