package seal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

// Format is the version of the file of data keys (docs/formats.md).
const Format = 1

// file is what is in the file of data keys: them, or them sealed with an unlock key.
type file struct {
	Format int
	Keys   [][]byte `json:",omitempty"` // the newest first
	Locked []byte   `json:",omitempty"` // JSON of Keys, sealed
}

// fileName is the name under which the keys are sealed.
const fileName = "data keys"

// Save writes the ring's keys to a file that only its owner reads, in one step, durably;
// sealed with unlock, if there is one.
func Save(path string, r *Ring, unlock *Key) error {
	f := file{Format: Format}
	for _, k := range r.keys {
		f.Keys = append(f.Keys, k[:])
	}
	if unlock != nil {
		plain, err := json.Marshal(f.Keys)
		if err != nil {
			return err
		}
		lock, err := NewRing(*unlock)
		if err != nil {
			return err
		}
		f.Keys, f.Locked = nil, lock.Seal(fileName, plain)
	}
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, append(raw, 0x0a), 0o600, atomicfile.Options{Sync: true}); err != nil {
		return fmt.Errorf("data keys: %w", err)
	}
	return nil
}

// Load reads what Save wrote. Kinds: NotFound; FailedPrecondition when it is locked and
// no unlock key is given, or of a later format; PermissionDenied for a wrong unlock key;
// DataLoss when it is damaged.
func Load(path string, unlock *Key) (*Ring, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("data keys %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("data keys: %w", err)
	}
	r, err := parse(raw, unlock)
	if err != nil {
		return nil, fmt.Errorf("data keys %s: %w", path, err)
	}
	return r, nil
}

// Locked tells whether the keys of a file are sealed with an unlock key.
func Locked(path string) (bool, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("data keys: %w", err)
	}
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return false, fmt.Errorf("data keys %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return len(f.Locked) > 0, nil
}

// parse reads the text of a file of data keys.
func parse(raw []byte, unlock *Key) (*Ring, error) {
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	if f.Format != Format {
		return nil, fmt.Errorf("the format is %d, this version of Escale knows %d: %w", f.Format, Format, errdefs.ErrFailedPrecondition)
	}
	if len(f.Locked) > 0 {
		if unlock == nil {
			return nil, fmt.Errorf("locked: %w", errdefs.ErrFailedPrecondition)
		}
		lock, err := NewRing(*unlock)
		if err != nil {
			return nil, err
		}
		plain, err := lock.Open(fileName, f.Locked)
		if err != nil {
			return nil, fmt.Errorf("the unlock key is not the right one: %w", errdefs.ErrPermissionDenied)
		}
		if err := json.Unmarshal(plain, &f.Keys); err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
		}
	}
	var keys []Key
	for _, b := range f.Keys {
		if len(b) != len(Key{}) {
			return nil, fmt.Errorf("a key of %d bytes: %w", len(b), errdefs.ErrDataLoss)
		}
		keys = append(keys, Key(b))
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key: %w", errdefs.ErrDataLoss)
	}
	return NewRing(keys...)
}
