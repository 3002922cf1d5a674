package node

import (
	"context"
	"fmt"

	"escale.dev/escale/internal/api/node/wire"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"github.com/containerd/errdefs"
)

// errToken is Docker's answer to a token that is none of this cluster's.
var errToken = fmt.Errorf("A valid join token is necessary to join this cluster: %w", errdefs.ErrInvalidArgument) //nolint:staticcheck // Docker's words

// allowed keeps those who are no nodes from asking too often. ResourceExhausted.
func (s *Server) allowed() error {
	if !s.joins.Allow() {
		return fmt.Errorf("too many machines ask to join: try again later: %w", errdefs.ErrResourceExhausted)
	}
	return nil
}

// Root implements wire.JoinServer. It is no secret.
func (s *Server) Root(context.Context, *wire.RootRequest) (*wire.RootReply, error) {
	if err := s.allowed(); err != nil {
		return answer[*wire.RootReply](nil, err)
	}
	a, err := s.c.Authority()
	if err != nil {
		return answer[*wire.RootReply](nil, err)
	}
	return &wire.RootReply{Certificate: a.Root().PEM()}, nil
}

// Join implements wire.JoinServer.
func (s *Server) Join(ctx context.Context, r *wire.JoinRequest) (*wire.Certificate, error) {
	return answer(s.join(ctx, r))
}

func (s *Server) join(ctx context.Context, r *wire.JoinRequest) (*wire.Certificate, error) {
	if err := s.allowed(); err != nil {
		return nil, err
	}
	a, err := s.c.Authority()
	if err != nil {
		return nil, err
	}
	t, err := ca.ParseToken(r.GetToken())
	if err != nil || !t.Names(a.Root().PEM()) {
		return nil, errToken
	}
	var role ca.Role
	worker, manager := s.c.Secrets()
	switch {
	case ca.SameSecret(t.Secret, manager):
		role = ca.Manager
	case ca.SameSecret(t.Secret, worker):
		role = ca.Worker
	default:
		return nil, errToken
	}
	switch cluster.Availability(r.GetAvailability()) {
	case "", cluster.Active, cluster.Paused, cluster.Drain:
	default:
		return nil, fmt.Errorf("invalid availability %q: %w", r.GetAvailability(), errdefs.ErrInvalidArgument)
	}
	// Signed first for nobody, so that who asks for what cannot be signed leaves no node behind.
	if _, err := a.Issue(r.GetCsr(), role, "nobody", s.keeper.Identity().Cluster, s.c.Expiry()); err != nil {
		return nil, err
	}
	id, err := s.c.Admit(ctx, role, r.GetAvailability())
	if err != nil {
		return nil, err
	}
	s.log.Info("a node has joined", "node", id, "role", role)
	return s.certificate(a, r.GetCsr(), role, id)
}

// Renew implements wire.NodeServer.
func (s *Server) Renew(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
	return answer(s.renew(ctx, r))
}

func (s *Server) renew(ctx context.Context, r *wire.RenewRequest) (*wire.Certificate, error) {
	who, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	role, err := s.c.Role(who.Node) // it may have been promoted, or demoted
	if err != nil {
		return nil, err
	}
	a, err := s.c.Authority()
	if err != nil {
		return nil, err
	}
	return s.certificate(a, r.GetCsr(), role, who.Node)
}

// Sign signs a certificate for the manager itself, and gives its chain and the roots that
// are to be trusted, PEM: one whose own has expired can ask nobody else. Kinds are those of
// Cluster.Authority and ca.Authority.Issue.
func (s *Server) Sign(csr []byte) (chain, roots []byte, err error) {
	node := s.keeper.Identity().Node
	role, err := s.c.Role(node)
	if err != nil {
		return nil, nil, err
	}
	a, err := s.c.Authority()
	if err != nil {
		return nil, nil, err
	}
	got, err := s.certificate(a, csr, role, node)
	return got.GetChain(), got.GetRoots(), err
}

func (s *Server) certificate(a *ca.Authority, csr []byte, role ca.Role, node string) (*wire.Certificate, error) {
	chain, err := a.Issue(csr, role, node, s.keeper.Identity().Cluster, s.c.Expiry())
	if err != nil {
		return nil, err
	}
	return &wire.Certificate{Node: node, Chain: chain, Roots: a.Trusted(), Cluster: s.clusterJSON()}, nil
}
