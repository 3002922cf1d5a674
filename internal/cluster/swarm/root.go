package swarm

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/moby/moby/api/types/swarm"
)

// minRootLife is how long a root that somebody gives has to be valid still; Docker's.
const minRootLife = 365 * 24 * time.Hour

// firstRoot is the root that a swarm begins with: the one that its spec gives, or one of its own.
func firstRoot(a Authority, c *cluster.Cluster, now time.Time) (Root, error) {
	mine, err := given(a, &c.Spec.CAConfig, now)
	if err != nil {
		return Root{}, err
	}
	if mine != nil {
		forget(&c.Spec.CAConfig)
		return *mine, nil
	}
	root, err := a.NewRoot(c.ID, now)
	if err != nil {
		return root, fmt.Errorf("root certificate: %w", err)
	}
	return root, nil
}

// given is the root that a client gives; nil: none.
func given(a Authority, ca *swarm.CAConfig, now time.Time) (*Root, error) {
	if ca.SigningCACert == "" {
		return nil, nil
	}
	root, err := a.LoadRoot([]byte(ca.SigningCACert), []byte(ca.SigningCAKey))
	switch {
	case err != nil:
		return nil, invalid("%s", errtext.Of(err))
	case root.Ends.Before(now.Add(minRootLife)):
		return nil, invalid("CA certificate expires too soon")
	}
	return &root, nil
}

// exchange begins to exchange the root of a swarm, if that is asked: nodes get certificates of
// the next one, by which those who trust the old one believe them, and the loop for roots
// ends it once they all have. Whoever gives the root that is in use calls an exchange off.
func exchange(a Authority, c *cluster.Cluster, ca *swarm.CAConfig, now time.Time) error {
	mine, err := given(a, ca, now)
	if err != nil {
		return err
	}
	forced := ca.ForceRotate != c.Spec.CAConfig.ForceRotate
	st := &c.Status
	root := Root{Cert: st.RootCA, Key: st.Key}
	var next Root
	switch {
	case mine != nil && bytes.Equal(mine.Cert, st.RootCA):
		st.Key, st.RootRotation = mine.Key, nil
		return nil
	case mine != nil && st.RootRotation != nil && bytes.Equal(mine.Cert, st.RootRotation.Cert):
		st.RootRotation.Key = mine.Key
		return nil
	case mine != nil:
		next = *mine
	case !forced:
		return nil
	default:
		if next, err = a.NewRoot(c.ID, now); err != nil {
			return fmt.Errorf("root certificate: %w", err)
		}
	}
	r, err := a.Rotate(root, next)
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
