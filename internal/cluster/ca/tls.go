package ca

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/containerd/errdefs"
)

// Server is the TLS of who is called. A caller without a certificate is let through, to join;
// who hands out anything else asks PeerOf. One whose certificate is foreign or expired, or
// whom check refuses, is not connected at all.
func (k *Keeper) Server(check func(Peer) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := k.Identity()
			if id.locked() {
				return nil, errLocked
			}
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{id.cert},
				ClientAuth:             tls.VerifyClientCertIfGiven,
				ClientCAs:              id.pool,
				NextProtos:             []string{"h2"},
				SessionTicketsDisabled: true, // every connection is checked anew
				VerifyConnection: func(c tls.ConnectionState) error {
					if len(c.PeerCertificates) == 0 {
						return nil
					}
					p, err := k.PeerOf(c)
					if err == nil {
						err = check(p)
					}
					return err
				},
			}, nil
		},
	}
}

// Client is the TLS of who calls a node of a role, in the same cluster. It trusts what is
// trusted now: make one for every connection.
func (k *Keeper) Client(role Role) *tls.Config {
	id := k.Identity()
	c := ClientOf(id.pool, role)
	c.GetClientCertificate = k.show
	c.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := k.PeerOf(s)
		return err
	}
	return c
}

// Lasting is the TLS of who calls nodes of a role, in the same cluster, and keeps one
// configuration for long: each connection is made with the identity of that moment. It
// names no protocol (ALPN), unlike Client.
func (k *Keeper) Lasting(role Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: string(role),
		InsecureSkipVerify:   true, // VerifyConnection does it, by the roots of that moment
		GetClientCertificate: k.show,
		VerifyConnection: func(s tls.ConnectionState) error {
			between := x509.NewCertPool()
			for i, c := range s.PeerCertificates {
				if i > 0 {
					between.AddCert(c)
				}
			}
			_, err := k.PeerOf(s)
			if err != nil {
				return err
			}
			_, err = s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: k.Identity().pool, Intermediates: between, DNSName: string(role)})
			return err
		},
	}
}

// show is the certificate of who calls.
func (k *Keeper) show(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	id := k.Identity()
	if id.locked() {
		return nil, errLocked
	}
	return &id.cert, nil
}

// ClientOfNode is the TLS of who calls a node by its id, in the same cluster; see Client.
func (k *Keeper) ClientOfNode(node string) *tls.Config {
	c := k.Client(Role(node)) // the id is one of the names in the node's certificate, as its role is
	c.VerifyConnection = func(s tls.ConnectionState) error {
		p, err := k.PeerOf(s)
		if err == nil && p.Node != node {
			err = fmt.Errorf("node %s answers in the place of %s: %w", p.Node, node, errdefs.ErrUnauthenticated)
		}
		return err
	}
	return c
}

// ServerOfNodes is the TLS of who is called by nodes only; see Server.
func (k *Keeper) ServerOfNodes(check func(Peer) error) *tls.Config {
	c := k.Server(check)
	lenient := c.GetConfigForClient
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		own, err := lenient(h)
		if err == nil {
			own.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return own, err
	}
	return c
}

// Joining is the TLS of who has no certificate yet, and calls a manager whose root it knows
// (PEM). InvalidArgument.
func Joining(root []byte) (*tls.Config, error) {
	pool, err := poolOf(root)
	if err != nil {
		return nil, err
	}
	return ClientOf(pool, Manager), nil
}

// ClientOf is the TLS of who calls a node of a role without showing a certificate.
func ClientOf(pool *x509.CertPool, role Role) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: string(role), NextProtos: []string{"h2"}}
}

// PeerOf is who is at the other end. Unauthenticated without a certificate, or with one of
// another cluster.
func (k *Keeper) PeerOf(c tls.ConnectionState) (Peer, error) {
	if len(c.PeerCertificates) == 0 {
		return Peer{}, fmt.Errorf("no certificate: %w", errdefs.ErrUnauthenticated)
	}
	p, err := peerOf(c.PeerCertificates[0])
	if err != nil {
		return Peer{}, err
	}
	if mine := k.Identity(); p.Cluster != mine.Cluster {
		return Peer{}, fmt.Errorf("node %s is of cluster %s, not %s: %w", p.Node, p.Cluster, mine.Cluster, errdefs.ErrUnauthenticated)
	}
	return p, nil
}
