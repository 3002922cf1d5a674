// Package seal keeps what a cluster's store holds from eyes that see its disk: values
// are sealed with a data key, and the file of data keys, if asked, with an unlock key
// that only people have. XChaCha20-Poly1305 throughout (draft-irtf-cfrg-xchacha-03):
// its nonces are so long that random ones never meet.
package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/chacha20poly1305"
)

// Key is a secret key.
type Key [chacha20poly1305.KeySize]byte

// NewKey makes a key that nobody has.
func NewKey() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails: see crypto/rand
	return k
}

// unlockPrefix is that of unlock keys as Docker writes them.
const unlockPrefix = "SWMKEY-1-"

// String is the key as people are told it, in Docker's form of unlock keys.
func (k Key) String() string { return unlockPrefix + base64.RawStdEncoding.EncodeToString(k[:]) }

// ParseKey reads an unlock key. InvalidArgument when it is none.
func ParseKey(s string) (Key, error) {
	var k Key
	text, ok := strings.CutPrefix(strings.TrimSpace(s), unlockPrefix)
	raw, err := base64.RawStdEncoding.DecodeString(text)
	if !ok || err != nil || len(raw) != len(k) {
		return k, fmt.Errorf("an unlock key begins with %s and %d characters follow: %w", unlockPrefix, base64.RawStdEncoding.EncodedLen(len(k)), errdefs.ErrInvalidArgument)
	}
	copy(k[:], raw)
	return k, nil
}

// id names a key without telling it.
func (k Key) id() [idSize]byte {
	sum := sha256.Sum256(append([]byte("escale data key "), k[:]...))
	return [idSize]byte(sum[:])
}

// idSize is the length of a key's name.
const idSize = 8

// version is the first byte of what is sealed.
const version = 1

// Ring is some data keys. The first seals; what any of them has sealed is opened. It
// never changes.
type Ring struct {
	keys  []Key
	boxes map[[idSize]byte]cipher.AEAD
}

// NewRing makes a ring of keys, of which there must be one at least: the newest first.
func NewRing(keys ...Key) (*Ring, error) {
	if len(keys) == 0 {
		return nil, fmt.Errorf("a data key is needed: %w", errdefs.ErrInvalidArgument)
	}
	r := &Ring{keys: append([]Key(nil), keys...), boxes: map[[idSize]byte]cipher.AEAD{}}
	for _, k := range keys {
		box, err := chacha20poly1305.NewX(k[:])
		if err != nil {
			return nil, err // cannot be: the size is right
		}
		r.boxes[k.id()] = box
	}
	return r, nil
}

// With is the ring with one more key, which seals from then on.
func (r *Ring) With(k Key) (*Ring, error) { return NewRing(append([]Key{k}, r.keys...)...) }

// Keys are those of the ring, the one that seals first.
func (r *Ring) Keys() []Key { return append([]Key(nil), r.keys...) }

// Seal seals a value under its name: under another it cannot be opened.
func (r *Ring) Seal(name string, plain []byte) []byte {
	id := r.keys[0].id()
	box := r.boxes[id]
	out := make([]byte, 1+idSize+box.NonceSize(), 1+idSize+box.NonceSize()+len(plain)+box.Overhead())
	out[0] = version
	copy(out[1:], id[:])
	_, _ = rand.Read(out[1+idSize:])
	return box.Seal(out, out[1+idSize:], plain, []byte(name))
}

// Open opens what was sealed under a name. FailedPrecondition when it was sealed with a
// key that is not in the ring, or is no sealed value of this version; DataLoss when it
// was changed.
func (r *Ring) Open(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+idSize+chacha20poly1305.NonceSizeX || sealed[0] != version {
		return nil, fmt.Errorf("%s: not sealed, or by a later version of Escale: %w", name, errdefs.ErrFailedPrecondition)
	}
	box, ok := r.boxes[[idSize]byte(sealed[1:])]
	if !ok {
		return nil, fmt.Errorf("%s: sealed with a data key that is not here: %w", name, errdefs.ErrFailedPrecondition)
	}
	rest := sealed[1+idSize:]
	plain, err := box.Open(nil, rest[:box.NonceSize()], rest[box.NonceSize():], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("%s: sealed, and changed since: %w", name, errdefs.ErrDataLoss)
	}
	return plain, nil
}

// Newest tells whether a value was sealed with the key that seals now.
func (r *Ring) Newest(sealed []byte) bool {
	id := r.keys[0].id()
	return len(sealed) > idSize && sealed[0] == version && bytes.Equal(sealed[1:1+idSize], id[:])
}
