package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

// Identity is a node's: who it is, its certificate and key, and whom it trusts. It never changes.
type Identity struct {
	Peer
	Issuer string // names the key that has signed its certificate
	Roots  []byte // that it trusts, PEM

	kept kept
	cert tls.Certificate
	pool *x509.CertPool
}

// Peer is who is at the other end of a connection, as its certificate says.
type Peer struct {
	Node    string
	Cluster string
	Role    Role
	Issued  time.Time
	Expires time.Time
}

// Formats of the file in which an identity is kept (docs/formats.md): plain, and with the
// key sealed.
const (
	Format       = 1
	FormatSealed = 2
)

// kept is an identity as it is kept: the key as it is, or sealed.
type kept struct {
	Format       int
	Key          string `json:",omitempty"` // PEM
	Sealed       []byte `json:",omitempty"`
	Chain, Roots string // PEM
}

// newIdentity checks that all of it fits together, and is valid but for the time. Without a key
// it is that of a node that nobody has unlocked. InvalidArgument.
func newIdentity(key, chain, roots []byte) (*Identity, error) {
	list, err := parseCerts(chain)
	if err != nil {
		return nil, fmt.Errorf("certificate of the node: %w", err)
	}
	id := &Identity{Issuer: issuer(list[0].AuthorityKeyId), Roots: roots, kept: kept{Format: Format, Key: string(key), Chain: string(chain), Roots: string(roots)}}
	if id.Peer, err = peerOf(list[0]); err != nil {
		return nil, err
	}
	if err := id.hold(key, list); err != nil {
		return nil, err
	}
	if id.pool, err = poolOf(roots); err != nil {
		return nil, fmt.Errorf("trusted roots: %w", err)
	}
	between := x509.NewCertPool()
	for _, c := range list[1:] {
		between.AddCert(c)
	}
	if _, err := list[0].Verify(x509.VerifyOptions{Roots: id.pool, Intermediates: between, CurrentTime: id.Issued, KeyUsages: list[0].ExtKeyUsage}); err != nil {
		return nil, fmt.Errorf("certificate of the node: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return id, nil
}

// hold takes the key, if there is one, with the certificate.
func (id *Identity) hold(key []byte, list []*x509.Certificate) (err error) {
	if key == nil {
		for _, c := range list {
			id.cert.Certificate = append(id.cert.Certificate, c.Raw)
		}
		return nil
	}
	if _, err := parseKey(key); err != nil {
		return fmt.Errorf("key of the node: %w", err)
	}
	if id.cert, err = tls.X509KeyPair([]byte(id.kept.Chain), key); err != nil {
		return fmt.Errorf("certificate and key of the node: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// peerOf reads a node's certificate, whose chain somebody else has checked.
// Unauthenticated when it is no node's.
func peerOf(c *x509.Certificate) (Peer, error) {
	s := c.Subject
	if s.CommonName == "" || len(s.OrganizationalUnit) != 1 || len(s.Organization) != 1 || !Role(s.OrganizationalUnit[0]).Valid() {
		return Peer{}, fmt.Errorf("certificate of %q: it is no node's: %w", s, errdefs.ErrUnauthenticated)
	}
	return Peer{
		Node: s.CommonName, Role: Role(s.OrganizationalUnit[0]), Cluster: s.Organization[0], Issued: c.NotBefore.Add(backdate), Expires: c.NotAfter,
	}, nil
}

// RenewAt is when the node asks for its next certificate: somewhere between half and four
// fifths of this one's life, so that nodes that came together do not ask together.
func (p Peer) RenewAt() time.Time {
	life := p.Expires.Sub(p.Issued)
	return p.Issued.Add(life/2 + time.Duration(rand.Float64()*float64(life)*0.3))
}

// Keeper keeps a node's identity in a file, 0600. Its methods may be called from several goroutines.
type Keeper struct {
	path string

	mu   sync.Mutex
	id   *Identity
	seal Sealer        // of the key where it is kept; nil: it is kept as it is
	more chan struct{} // closed with the next one; nil: nobody waits
}

// Open reads the identity that path keeps. NotFound when there is none; DataLoss when it
// cannot be read as one; FailedPrecondition when it is of a later format.
func Open(path string) (*Keeper, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("identity of the node: %w: %w", err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	id, err := parseIdentity(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Keeper{path: path, id: id}, nil
}

func parseIdentity(raw []byte) (*Identity, error) {
	var k kept
	if err := json.Unmarshal(raw, &k); err != nil {
		return nil, fmt.Errorf("identity of the node: %w: %w", err, errdefs.ErrDataLoss)
	}
	if k.Format > FormatSealed {
		return nil, fmt.Errorf("identity of the node: its format is %d, this version of Escale knows %d: %w", k.Format, FormatSealed, errdefs.ErrFailedPrecondition)
	}
	key := []byte(k.Key)
	if len(k.Sealed) > 0 {
		key = nil
	}
	id, err := newIdentity(key, []byte(k.Chain), []byte(k.Roots))
	if err != nil {
		return nil, fmt.Errorf("identity of the node: %w: %w", err, errdefs.ErrDataLoss)
	}
	if key == nil {
		id.kept = k
	}
	return id, nil
}

// Keep writes an identity to path, durably, over what is there. All PEM. InvalidArgument
// when the parts do not fit together.
func Keep(path string, key, chain, roots []byte) (*Keeper, error) {
	k := &Keeper{path: path}
	return k, k.Set(key, chain, roots)
}

// Set exchanges the identity, durably. InvalidArgument when the parts do not fit together;
// FailedPrecondition while it is locked.
func (k *Keeper) Set(key, chain, roots []byte) error {
	if key == nil {
		key = []byte{} // that is none
	}
	id, err := newIdentity(key, chain, roots)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id != nil && k.id.locked() {
		return errLocked
	}
	return k.keep(id)
}

// Trust exchanges the roots that are trusted, durably. InvalidArgument when they would not
// believe the node itself; FailedPrecondition while it is locked.
func (k *Keeper) Trust(roots []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if bytes.Equal(roots, k.id.Roots) {
		return nil
	}
	if k.id.locked() {
		return errLocked
	}
	id, err := newIdentity([]byte(k.id.kept.Key), []byte(k.id.kept.Chain), roots)
	if err != nil {
		return err
	}
	return k.keep(id)
}

// keep writes the file of an identity, which is the node's then. Called with mu held.
func (k *Keeper) keep(id *Identity) error {
	if err := k.write(id); err != nil {
		return err
	}
	k.exchange(id)
	return nil
}

// write writes the file. Called with mu held.
func (k *Keeper) write(id *Identity) error {
	raw, err := json.Marshal(id.sealed(k.seal))
	if err != nil {
		return err
	}
	return atomicfile.Write(k.path, raw, 0o600, atomicfile.Options{Sync: true})
}

// exchange has another identity be the node's. Called with mu held.
func (k *Keeper) exchange(id *Identity) {
	k.id = id
	if k.more != nil {
		close(k.more)
		k.more = nil
	}
}

// Changed is closed when the identity is exchanged the next time. Ask before Identity.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.more == nil {
		k.more = make(chan struct{})
	}
	return k.more
}

// The names of what WriteFiles writes.
const (
	pairFile  = "node.pem"
	rootsFile = "roots.pem"
)

// WriteFiles writes the identity of now as PEM to files in dir, 0600, for programs that read
// such: pair has the key and the certificate in one file, so that they always fit together;
// roots has what is trusted. Each is replaced in one step, and left alone when it is what it
// is to be.
func (k *Keeper) WriteFiles(dir string) (pair, roots string, err error) {
	now := k.Identity()
	if now.locked() {
		return "", "", errLocked
	}
	id := now.kept
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	pair, roots = filepath.Join(dir, pairFile), filepath.Join(dir, rootsFile)
	for _, f := range []struct{ path, text string }{{roots, id.Roots}, {pair, id.Chain + id.Key}} {
		if is, err := os.ReadFile(f.path); err == nil && string(is) == f.text {
			continue
		}
		if err := atomicfile.Write(f.path, []byte(f.text), 0o600, atomicfile.Options{Sync: true}); err != nil {
			return "", "", err
		}
	}
	return pair, roots, nil
}

// Identity is the node's now.
func (k *Keeper) Identity() *Identity {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.id
}

// Forget removes the file: the node belongs to no cluster any more. Idempotent.
func (k *Keeper) Forget() error {
	if err := os.Remove(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
