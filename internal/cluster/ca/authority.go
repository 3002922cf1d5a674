package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// Rotation is a root on its way in, as it is kept: Next signs from now on, Cross lets those
// believe it who trust the old one only, and both are trusted until every node has a
// certificate of the next. All PEM.
type Rotation struct{ Cert, Key, Cross []byte }

// Authority is what signs for a cluster, and what is to be trusted in it.
type Authority struct {
	root  *Root
	next  *Root  // while the root is exchanged
	cross []byte // PEM
}

// NewAuthority makes one of the root, and of a rotation under way or nil. InvalidArgument
// when the rotation is none of this root.
func NewAuthority(root *Root, r *Rotation) (*Authority, error) {
	a := &Authority{root: root}
	if r == nil {
		return a, nil
	}
	next, err := LoadRoot(r.Cert, r.Key)
	if err != nil {
		return nil, fmt.Errorf("rotation: %w", err)
	}
	list, err := parseCerts(r.Cross)
	if err != nil || len(list) != 1 || list[0].CheckSignatureFrom(root.cert) != nil || !bytes.Equal(list[0].RawSubjectPublicKeyInfo, next.cert.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("rotation: no certificate by which the root %s vouches for %s: %w", root.Digest(), next.Digest(), errdefs.ErrInvalidArgument)
	}
	a.next, a.cross = next, r.Cross
	return a, nil
}

// Rotate begins to exchange the root: who keeps the Authority keeps the answer beside it.
// One that is under way already is given up for this one: what it has signed is believed by
// nobody once that is done, and renewed before.
func (a *Authority) Rotate(next *Root) (*Rotation, error) {
	if next.Same(a.root) {
		return nil, fmt.Errorf("root %s: it is in use already: %w", next.Digest(), errdefs.ErrInvalidArgument)
	}
	key, err := next.KeyPEM()
	if err != nil {
		return nil, err
	}
	cross, err := a.root.CrossSign(next)
	if err != nil {
		return nil, err
	}
	return &Rotation{Cert: next.PEM(), Key: key, Cross: cross}, nil
}

// Root is the one that join tokens name: the old one until the exchange is done.
func (a *Authority) Root() *Root { return a.root }

// Next is the one on its way in, nil when there is none.
func (a *Authority) Next() *Root { return a.next }

// signer is the root that signs now.
func (a *Authority) signer() *Root {
	if a.next != nil {
		return a.next
	}
	return a.root
}

// Trusted are the roots that every node is to believe, PEM.
func (a *Authority) Trusted() []byte {
	if a.next == nil {
		return a.root.PEM()
	}
	return append(a.root.PEM(), a.next.PEM()...)
}

// Issue signs as Root.Issue does, and adds what others need to believe it.
func (a *Authority) Issue(csr []byte, role Role, node, cluster string, valid time.Duration) ([]byte, error) {
	cert, err := a.signer().Issue(csr, role, node, cluster, valid)
	if err != nil {
		return nil, err
	}
	return append(cert, a.cross...), nil
}

// Issuer names the key that signs now, and that every node's certificate is to be of: an
// exchange is done once they all are (Identity.Issuer).
func (a *Authority) Issuer() string { return issuer(a.signer().cert.SubjectKeyId) }

// CheckSigner tells whether the Authority can sign. FailedPrecondition when the key is not here.
func (a *Authority) CheckSigner() error {
	_, err := a.signer().KeyPEM()
	return err
}

// Issuer names the key of the root, as Authority.Issuer does.
func (r *Root) Issuer() string { return issuer(r.cert.SubjectKeyId) }

func issuer(id []byte) string { return base64.StdEncoding.EncodeToString(id) }

// poolOf are the certificates of a PEM. InvalidArgument.
func poolOf(text []byte) (*x509.CertPool, error) {
	list, err := parseCerts(text)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool, nil
}
