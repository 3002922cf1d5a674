package swarm

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/moby/moby/api/types/swarm"
)

// minRootLife is how long a root that somebody gives has to be valid still; Docker's.
const minRootLife = 365 * 24 * time.Hour

// firstRoot is the root that a swarm begins with: the one that its spec gives, or one of its own.
func (s *Swarm) firstRoot(c *cluster.Cluster) (Root, error) {
	given, err := s.given(&c.Spec.CAConfig)
	if err != nil {
		return Root{}, err
	}
	if given != nil {
		forget(&c.Spec.CAConfig)
		return *given, nil
	}
	root, err := s.Authority.NewRoot(c.ID, s.Now())
	if err != nil {
		return root, fmt.Errorf("root certificate: %w", err)
	}
	return root, nil
}

// given is the root that a client gives; nil: none.
func (s *Swarm) given(ca *swarm.CAConfig) (*Root, error) {
	if ca.SigningCACert == "" {
		return nil, nil
	}
	root, err := s.Authority.LoadRoot([]byte(ca.SigningCACert), []byte(ca.SigningCAKey))
	switch {
	case err != nil:
		return nil, invalid("%s", strings.TrimSuffix(err.Error(), ": invalid argument"))
	case root.Ends.Before(s.Now().Add(minRootLife)):
		return nil, invalid("CA certificate expires too soon")
	}
	return &root, nil
}

// rotate begins to exchange the root of a swarm, if that is asked: nodes get certificates of
// the next one, by which those who trust the old one believe them, and the loop for roots
// ends it once they all have. Whoever gives the root that is in use calls an exchange off.
func (s *Swarm) rotate(c *cluster.Cluster, ca *swarm.CAConfig) error {
	given, err := s.given(ca)
	if err != nil {
		return err
	}
	forced := ca.ForceRotate != c.Spec.CAConfig.ForceRotate
	st := &c.Status
	now := Root{Cert: st.RootCA, Key: st.Key}
	var next Root
	switch {
	case given != nil && bytes.Equal(given.Cert, st.RootCA):
		st.Key, st.RootRotation = given.Key, nil
		return nil
	case given != nil && st.RootRotation != nil && bytes.Equal(given.Cert, st.RootRotation.Cert):
		st.RootRotation.Key = given.Key
		return nil
	case given != nil:
		next = *given
	case !forced:
		return nil
	default:
		if next, err = s.Authority.NewRoot(c.ID, s.Now()); err != nil {
			return fmt.Errorf("root certificate: %w", err)
		}
	}
	r, err := s.Authority.Rotate(now, next)
	if err != nil {
		return fmt.Errorf("root certificate: %w", err)
	}
	st.RootRotation = &r
	return nil
}

// forget takes out of a spec what is not told again: the key is secret, and who gave the
// certificate back without it would ask for another root.
func forget(ca *swarm.CAConfig) { ca.SigningCACert, ca.SigningCAKey = "", "" }

// tlsInfo is how certificates of the swarm are recognized: the root that is trusted, and who
// signs, which is the next one while the root is exchanged.
func tlsInfo(c *cluster.Cluster) swarm.TLSInfo {
	by := c.Status.RootCA
	if r := c.Status.RootRotation; r != nil {
		by = r.Cert
	}
	return certInfo(c.Status.RootCA, by)
}

// nodeTLS is the same of a node's certificate.
func nodeTLS(c *cluster.Cluster, n *cluster.Node) swarm.TLSInfo {
	by := c.Status.RootCA
	if r := c.Status.RootRotation; r != nil && n.Status.CertIssuer == r.Issuer {
		by = r.Cert
	}
	return certInfo(c.Status.RootCA, by)
}

func certInfo(root, by []byte) swarm.TLSInfo {
	out := swarm.TLSInfo{TrustRoot: string(root)}
	if block, _ := pem.Decode(by); block != nil {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out.CertIssuerSubject, out.CertIssuerPublicKey = c.RawSubject, c.RawSubjectPublicKeyInfo
		}
	}
	return out
}
