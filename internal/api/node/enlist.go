package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/api/node/wire"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// Seat is a manager's place among those that keep the store.
type Seat struct {
	Members string   // NAME=URL of each, itself included, comma-separated
	Keys    [][]byte // that the store's values are sealed with, the newest first
}

// Enlist implements wire.NodeServer: for managers only, as their certificates and the store
// have it.
func (s *Server) Enlist(ctx context.Context, r *wire.EnlistRequest) (*wire.Seat, error) {
	who, err := s.caller(ctx)
	if err != nil {
		return answer[*wire.Seat](nil, err)
	}
	role, err := s.c.Role(who.Node)
	if err == nil && (role != ca.Manager || who.Role != ca.Manager) {
		err = fmt.Errorf("node %s is no manager: %w", who.Node, errdefs.ErrPermissionDenied)
	}
	if err == nil {
		_, err = netip.ParseAddrPort(r.GetAddr())
	}
	if err != nil {
		return answer[*wire.Seat](nil, err)
	}
	seat, err := s.c.Enlist(ctx, who.Node, r.GetAddr(), r.GetStore())
	return answer(&wire.Seat{Members: seat.Members, Keys: seat.Keys}, err)
}

// Attach implements wire.NodeServer.
func (s *Server) Attach(ctx context.Context, r *wire.AttachRequest) (*wire.AttachReply, error) {
	p, err := s.attach(ctx, r)
	return answer(&wire.AttachReply{Addr: p.String()}, err)
}

func (s *Server) attach(ctx context.Context, r *wire.AttachRequest) (p netip.Prefix, err error) {
	who, err := s.caller(ctx)
	if err != nil {
		return p, err
	}
	g := address.Guest{Node: who.Node, Network: r.GetNetwork(), Container: r.GetContainer(), Endpoint: r.GetEndpoint()}
	if g.Container == "" || g.Endpoint == "" {
		return p, fmt.Errorf("a container and its endpoint are needed: %w", errdefs.ErrInvalidArgument)
	}
	if g.Subnet, err = netip.ParsePrefix(r.GetSubnet()); err == nil && r.GetWant() != "" {
		g.Want, err = netip.ParseAddr(r.GetWant())
	}
	if err != nil {
		return p, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return s.c.Attach(ctx, g)
}

// Detach implements wire.NodeServer.
func (s *Server) Detach(ctx context.Context, r *wire.DetachRequest) (*wire.DetachReply, error) {
	who, err := s.caller(ctx)
	if err == nil {
		err = s.c.Detach(ctx, who.Node, func(endpoint string) bool {
			if r.GetEndpoint() != "" {
				return endpoint == r.GetEndpoint()
			}
			return !slices.Contains(r.GetLeft(), endpoint)
		})
	}
	return answer(&wire.DetachReply{}, err)
}

// call asks one manager after the other, until one answers: with an error that another would
// give, too, or with what was asked for. It blocks. Unavailable when none does.
func (m *Member) call(ctx context.Context, managers []dispatch.Manager, f func(ctx context.Context, c wire.NodeClient) error) error {
	err := fmt.Errorf("no manager is known: %w", errdefs.ErrUnavailable)
	for _, to := range managers {
		if to.Addr == "" {
			continue
		}
		if err = m.one(ctx, to.Addr, f); err == nil || ctx.Err() != nil || !errdefs.IsUnavailable(err) {
			return err
		}
	}
	return err
}

func (m *Member) one(ctx context.Context, addr string, f func(ctx context.Context, c wire.NodeClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := dial(addr, m.keeper.Client(ca.Manager))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := f(ctx, wire.NewNodeClient(conn)); err != nil {
		err = errgrpc.ToNative(err)
		if errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("manager %s: %w: %w", addr, err, errdefs.ErrUnavailable)
		}
		return err // in the words of who has decided
	}
	return nil
}

// Enlist asks for this node's place among those that keep the store: addr is where nodes are
// to call it, store the URL at which other managers reach its store. It blocks. Unavailable
// while another one is joining, too.
func (m *Member) Enlist(ctx context.Context, managers []dispatch.Manager, addr, store string) (Seat, error) {
	var got *wire.Seat
	err := m.call(ctx, managers, func(ctx context.Context, c wire.NodeClient) (err error) {
		got, err = c.Enlist(ctx, &wire.EnlistRequest{Protocol: dispatch.Protocol, Addr: addr, Store: store})
		return err
	})
	return Seat{Members: got.GetMembers(), Keys: got.GetKeys()}, err
}

// Attach asks for the address of a container on a network of the cluster; kinds as those of
// address.Attach, and Unavailable. It blocks.
func (m *Member) Attach(ctx context.Context, managers []dispatch.Manager, g address.Guest) (netip.Prefix, error) {
	r := &wire.AttachRequest{Protocol: dispatch.Protocol, Network: g.Network, Subnet: g.Subnet.String(), Container: g.Container, Endpoint: g.Endpoint}
	if g.Want.IsValid() {
		r.Want = g.Want.String()
	}
	var got *wire.AttachReply
	if err := m.call(ctx, managers, func(ctx context.Context, c wire.NodeClient) (err error) {
		got, err = c.Attach(ctx, r)
		return err
	}); err != nil {
		return netip.Prefix{}, err
	}
	return netip.ParsePrefix(got.GetAddr())
}

// Detach gives back what an endpoint had, or, of "", what all had that are not left. It blocks.
func (m *Member) Detach(ctx context.Context, managers []dispatch.Manager, endpoint string, left []string) error {
	return m.call(ctx, managers, func(ctx context.Context, c wire.NodeClient) error {
		_, err := c.Detach(ctx, &wire.DetachRequest{Protocol: dispatch.Protocol, Endpoint: endpoint, Left: left})
		return err
	})
}
