package store

import (
	"encoding/json"

	"escale.dev/escale/internal/cluster"
)

// Raw is an object, and what was written of it, with the fields that this version does
// not know; both nil when there is none. Nobody changes them.
func Raw(v View, k cluster.Kind, id string) (cluster.Object, json.RawMessage) {
	if k.New() == nil {
		return nil, nil
	}
	r, err := first(v.txn, k, "id", id)
	if err != nil || r == nil {
		return nil, nil
	}
	return r.object, r.raw
}
