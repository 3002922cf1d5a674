package ca

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"math/big"
	"strings"

	"github.com/containerd/errdefs"
)

// The parts of a token: SWMTKN, its version, the digest of the root, the secret.
const (
	tokenPrefix  = "SWMTKN"
	tokenVersion = "1"
	digestSize   = 50 // digits of base 36 that 256 bits take
	secretSize   = 25 // … that 128 bits take
)

// JoinToken is what a machine joins with: which root to believe, and the secret that says
// as what it may.
type JoinToken struct{ Digest, Secret string }

// Token writes one.
func Token(digest, secret string) string {
	return strings.Join([]string{tokenPrefix, tokenVersion, digest, secret}, "-")
}

// ParseToken reads one. InvalidArgument, in Docker's words.
func ParseToken(s string) (JoinToken, error) {
	part := strings.Split(s, "-")
	if len(part) != 4 || part[0] != tokenPrefix || part[1] != tokenVersion || !digits(part[2], digestSize, 256) || !digits(part[3], secretSize, 128) {
		return JoinToken{}, fmt.Errorf("invalid join token: %w", errdefs.ErrInvalidArgument)
	}
	return JoinToken{Digest: part[2], Secret: part[3]}, nil
}

// Names tells whether the token is one of the root whose PEM this is.
func (t JoinToken) Names(root []byte) bool { return SameSecret(t.Digest, digest(root)) }

// NewSecret makes the part of a token that nobody else knows.
func NewSecret() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return base36(b[:], secretSize)
}

// SameSecret compares without telling, by the time it takes, where two differ. The empty
// one is nobody's.
func SameSecret(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

func digest(root []byte) string {
	sum := sha256.Sum256(root)
	return base36(sum[:], digestSize)
}

func base36(b []byte, size int) string {
	return fmt.Sprintf("%0*s", size, new(big.Int).SetBytes(b).Text(36))
}

// digits tells whether s is size digits of base 36 that make no more than so many bits.
func digits(s string, size, bits int) bool {
	if len(s) != size || strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }) {
		return false
	}
	n, ok := new(big.Int).SetString(s, 36)
	return ok && n.BitLen() <= bits
}
