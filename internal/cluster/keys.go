package cluster

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// NetworkKeys are the keys by which nodes encrypt a network. What is sent goes by the current
// one, what comes may be by any: a node that is one exchange behind or ahead is understood.
type NetworkKeys struct {
	Since    time.Time // that Current is the current one
	Previous NetworkKey
	Current  NetworkKey
	Next     NetworkKey
}

// NetworkKey is one of them; the zero one is none.
type NetworkKey struct {
	ID     uint64 // counted from 1
	Secret []byte `json:",omitempty"` // NetworkKeySize bytes
}

// NetworkKeySize is how long the secret of a key is, in bytes.
const NetworkKeySize = 32

// KeysOf is the name of the secret with the keys of a network. No user's is called so.
func KeysOf(network string) string { return "network/" + network }

// ReadNetworkKeys reads what the secret of a network holds; InvalidArgument.
func ReadNetworkKeys(data []byte) (k NetworkKeys, err error) {
	if err := json.Unmarshal(data, &k); err != nil {
		return k, fmt.Errorf("keys of a network: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for what, one := range map[string]NetworkKey{"previous": k.Previous, "current": k.Current, "next": k.Next} {
		if none := one.ID == 0; none && (what == "current" || len(one.Secret) > 0) || !none && len(one.Secret) != NetworkKeySize {
			return NetworkKeys{}, fmt.Errorf("keys of a network: the %s one is none: %w", what, errdefs.ErrInvalidArgument)
		}
	}
	return k, nil
}

// Bytes is what the secret of a network holds.
func (k NetworkKeys) Bytes() []byte {
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // there is nothing in it that JSON has not
	}
	return b
}

// IsInternal tells whether an object is for nodes, and none of a user's: no task gets it.
func IsInternal(o Object) bool {
	s, ok := o.(*Secret)
	return ok && s != nil && s.Internal()
}

// Internal tells whether a secret is for nodes, and none of a user's.
func (s *Secret) Internal() bool { return s.Spec.Network != "" }
