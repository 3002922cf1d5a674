package ca

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Sealer seals values under a name, and opens them.
type Sealer interface {
	Seal(name string, plain []byte) []byte
	Open(name string, sealed []byte) ([]byte, error)
}

// keyName is the name under which the key of a node is sealed.
const keyName = "node key"

// errLocked is said of an identity whose key nobody has unlocked.
var errLocked = fmt.Errorf("identity of the node: its key is locked: %w", errdefs.ErrFailedPrecondition)

// locked tells whether the key is not here: the node is known by it, and can prove nothing.
func (id *Identity) locked() bool { return id.cert.PrivateKey == nil }

// sealed is the identity as it is to be kept.
func (id *Identity) sealed(by Sealer) kept {
	out := id.kept
	if by != nil {
		out.Format, out.Key, out.Sealed = FormatSealed, "", by.Seal(keyName, []byte(out.Key))
	}
	return out
}

// Locked tells whether the key of the node is sealed, and was not unlocked: connections cannot
// be made.
func (k *Keeper) Locked() bool { return k.Identity().locked() }

// Unlock opens the key of an identity that is locked; else it does nothing. Kinds are those of
// the Sealer; DataLoss when what it opens is not the key.
func (k *Keeper) Unlock(by Sealer) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.id.locked() {
		return nil
	}
	is := k.id.kept
	key, err := by.Open(keyName, is.Sealed)
	if err != nil {
		return fmt.Errorf("identity of the node: %w", err)
	}
	id, err := newIdentity(key, []byte(is.Chain), []byte(is.Roots))
	if err != nil {
		return fmt.Errorf("identity of the node: %w: %w", err, errdefs.ErrDataLoss)
	}
	k.seal = by
	k.exchange(id)
	return nil
}

// Lock has the key kept sealed from now on, durably; by nil: as it is. The node goes on with
// it: it is locked for who opens the file. FailedPrecondition when it is locked already.
func (k *Keeper) Lock(by Sealer) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id.locked() {
		return errLocked
	}
	if (by == nil) == (k.seal == nil) {
		k.seal = by // what it seals next, it seals so
		return nil
	}
	was := k.seal
	k.seal = by
	if err := k.write(k.id); err != nil {
		k.seal = was
		return err
	}
	return nil
}
