package backup

import (
	"crypto/rand"
	"fmt"

	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
	"golang.org/x/crypto/argon2"
)

// Secret is what opens a backup: one of the two.
type Secret struct {
	Passphrase string
	UnlockKey  string // of a cluster whose managers are locked, as people are told it
}

// Ways in which the key of a file is locked.
const (
	ByPassphrase = "passphrase"
	ByUnlockKey  = "unlock key"
)

// Lock is the key of a file, sealed with what a secret makes.
type Lock struct {
	By   string // ByPassphrase or ByUnlockKey
	Key  []byte // sealed
	Salt []byte `json:",omitempty"` // of a passphrase, and how it becomes a key: Argon2id (RFC 9106)
	// Time is the number of passes, Memory is in KiB.
	Time, Memory uint32 `json:",omitempty"`
	Threads      uint8  `json:",omitempty"`
}

// What a passphrase costs: the second recommendation of RFC 9106, 4; and what one of
// a file may cost at most.
const (
	passes, memory, threads          = 3, 64 << 10, 4
	maxPasses, maxMemory, maxThreads = 16, 1 << 20, 16
	saltSize                         = 16
)

// LeastPassphrase is how long a passphrase is at least, in bytes.
const LeastPassphrase = 8

// lockName is the name under which the key of a file is sealed.
const lockName = "backup key"

// lock seals the key of a file.
func (s Secret) lock(key fileKey) (l Lock, err error) {
	switch {
	case s.Passphrase != "":
		if len(s.Passphrase) < LeastPassphrase {
			return l, fmt.Errorf("a passphrase has %d characters at least: %w", LeastPassphrase, errdefs.ErrInvalidArgument)
		}
		l = Lock{By: ByPassphrase, Salt: make([]byte, saltSize), Time: passes, Memory: memory, Threads: threads}
		_, _ = rand.Read(l.Salt) // never fails: see crypto/rand
	case s.UnlockKey != "":
		l = Lock{By: ByUnlockKey}
	default:
		return l, fmt.Errorf("a passphrase is needed: %w", errdefs.ErrInvalidArgument)
	}
	ring, err := s.ring(l)
	if err != nil {
		return l, err
	}
	l.Key = ring.Seal(lockName, key[:])
	return l, nil
}

// ring is what the secret makes.
func (s Secret) ring(l Lock) (*seal.Ring, error) {
	if l.By == ByUnlockKey {
		k, err := seal.ParseKey(s.UnlockKey)
		if err != nil {
			return nil, err
		}
		return seal.NewRing(k)
	}
	return seal.NewRing(seal.Key(argon2.IDKey([]byte(s.Passphrase), l.Salt, l.Time, l.Memory, l.Threads, uint32(len(seal.Key{})))))
}

// open gives the key of a file. Kinds as those of Read.
func (s Secret) open(l Lock) (key fileKey, err error) {
	wrong := errdefs.ErrInvalidArgument
	switch {
	case l.By == ByPassphrase && (l.Time < 1 || l.Time > maxPasses || l.Memory < 8*uint32(l.Threads) || l.Memory > maxMemory || l.Threads < 1 || l.Threads > maxThreads || len(l.Salt) < 8):
		return key, fmt.Errorf("its lock is none: %w", wrong)
	case l.By == ByPassphrase && s.Passphrase == "":
		return key, fmt.Errorf("it is locked with a passphrase, which is needed: %w", errdefs.ErrPermissionDenied)
	case l.By == ByUnlockKey && s.UnlockKey == "":
		return key, fmt.Errorf("it is locked with the unlock key that its cluster had, which is needed: %w", errdefs.ErrPermissionDenied)
	case l.By != ByPassphrase && l.By != ByUnlockKey:
		return key, fmt.Errorf("it is locked with %q, which this version of Escale does not know: %w", l.By, errdefs.ErrFailedPrecondition)
	}
	ring, err := s.ring(l)
	if err != nil {
		return key, err
	}
	plain, err := ring.Open(lockName, l.Key)
	if err != nil || len(plain) != len(key) {
		return key, fmt.Errorf("the %s does not open it: %w", l.By, errdefs.ErrPermissionDenied)
	}
	return fileKey(plain), nil
}
