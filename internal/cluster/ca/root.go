// Package ca says who belongs to a cluster: the root that signs, the tokens with which
// machines join, the certificates of nodes, their renewal, the rotation of the root, and
// the TLS on both ends of a connection between nodes. It keeps no list of nodes: who checks
// a connection is given one.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/containerd/errdefs"
)

// Role is what a node is allowed to do: the unit (OU) of its certificate, in Docker's words.
type Role string

// The roles.
const (
	Manager Role = "swarm-manager"
	Worker  Role = "swarm-worker"
)

// Valid tells whether it is a role.
func (r Role) Valid() bool { return r == Manager || r == Worker }

// How long what is signed is valid.
const (
	rootLife      = 20 * 365 * 24 * time.Hour
	DefaultExpiry = 90 * 24 * time.Hour // of a node's certificate
	MinExpiry     = time.Hour
	backdate      = time.Hour // clocks differ
)

// maxPEM is the length of what is read as PEM, in bytes.
const maxPEM = 64 << 10

// Root is a certificate that others trust, and, where there is one, the key to sign with.
type Root struct {
	cert *x509.Certificate
	key  crypto.Signer // nil: it can only be trusted
}

// NewRoot makes the root of a cluster: ECDSA P-256, for 20 years.
func NewRoot(cluster string, now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	want := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "swarm-ca", Organization: []string{cluster}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
		SubjectKeyId: id,
	}
	der, err := x509.CreateCertificate(rand.Reader, want, want, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Root{cert, key}, err
}

// LoadRoot reads a root from PEM; without a key it can only be trusted. InvalidArgument
// when it is no root of its own, not valid now, or the key is another's.
func LoadRoot(cert, key []byte) (*Root, error) {
	list, err := parseCerts(cert)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("root certificate: %d certificates, one is wanted: %w", len(list), errdefs.ErrInvalidArgument)
	}
	r := &Root{cert: list[0]}
	if err := r.check(time.Now()); err != nil {
		return nil, fmt.Errorf("root certificate: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(r.cert.SubjectKeyId) == 0 { // what it signs says by it who has
		if r.cert.SubjectKeyId, err = keyID(r.cert.PublicKey); err != nil {
			return nil, fmt.Errorf("root certificate: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if len(key) == 0 {
		return r, nil
	}
	if r.key, err = parseKey(key); err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	if pub, ok := r.cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(r.key.Public()) {
		return nil, fmt.Errorf("root key: it is not the key of the certificate: %w", errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// check tells why the certificate is none that signs others.
func (r *Root) check(now time.Time) error {
	c := r.cert
	switch {
	case !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("it may not sign others")
	case !bytes.Equal(c.RawSubject, c.RawIssuer) || c.CheckSignatureFrom(c) != nil:
		return fmt.Errorf("it is not signed by itself")
	case now.Before(c.NotBefore):
		return fmt.Errorf("not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		return fmt.Errorf("not valid after %s", c.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// PEM is the certificate.
func (r *Root) PEM() []byte { return encodeCert(r.cert) }

// KeyPEM is the key, PKCS #8. FailedPrecondition when there is none.
func (r *Root) KeyPEM() ([]byte, error) {
	if r.key == nil {
		return nil, fmt.Errorf("root %s: its key is not here: %w", r.Digest(), errdefs.ErrFailedPrecondition)
	}
	return encodeKey(r.key)
}

// Digest is what tokens name the root by: SHA-256 of its PEM, 50 digits of base 36.
func (r *Root) Digest() string { return digest(r.PEM()) }

// Ends is when the root is valid no more.
func (r *Root) Ends() time.Time { return r.cert.NotAfter }

// Same tells whether the roots are of one certificate.
func (r *Root) Same(other *Root) bool { return r.cert.Equal(other.cert) }

// CrossSign gives the certificate by which those who trust r only trust what next signs:
// next's name and key, signed by r. PEM. FailedPrecondition when r has no key.
func (r *Root) CrossSign(next *Root) ([]byte, error) {
	if r.key == nil {
		return nil, fmt.Errorf("root %s: its key is not here: %w", r.Digest(), errdefs.ErrFailedPrecondition)
	}
	end := r.cert.NotAfter
	if next.cert.NotAfter.Before(end) {
		end = next.cert.NotAfter
	}
	want := &x509.Certificate{
		SerialNumber:          serial(),
		RawSubject:            next.cert.RawSubject,
		NotBefore:             time.Now().Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
		SubjectKeyId: next.cert.SubjectKeyId,
	}
	der, err := x509.CreateCertificate(rand.Reader, want, r.cert, next.cert.PublicKey, r.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Issue signs the key of a request for a node of a cluster, for at least MinExpiry; 0 is
// DefaultExpiry. Of the request nothing but the key is taken over. It gives the node's
// certificate as PEM. InvalidArgument for a request that is none or not signed by its key,
// FailedPrecondition when the root has no key.
func (r *Root) Issue(csr []byte, role Role, node, cluster string, valid time.Duration) ([]byte, error) {
	pub, err := parseRequest(csr)
	if err != nil {
		return nil, err
	}
	switch {
	case r.key == nil:
		return nil, fmt.Errorf("root %s: its key is not here: %w", r.Digest(), errdefs.ErrFailedPrecondition)
	case !role.Valid() || node == "" || cluster == "":
		return nil, fmt.Errorf("certificate of node %q of cluster %q as %q: %w", node, cluster, role, errdefs.ErrInvalidArgument)
	case valid == 0:
		valid = DefaultExpiry
	}
	id, err := keyID(pub)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	end := now.Add(max(valid, MinExpiry))
	if r.cert.NotAfter.Before(end) {
		end = r.cert.NotAfter // what is beyond it nobody would believe
	}
	want := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: node, OrganizationalUnit: []string{string(role)}, Organization: []string{cluster}},
		NotBefore:    now.Add(-backdate),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     []string{string(role), node},
		SubjectKeyId: id, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, want, r.cert, pub, r.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// serial is a number that nobody has.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// keyID names a key: the first 20 bytes of the SHA-256 of it (RFC 7093, 2.1).
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}
