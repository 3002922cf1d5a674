package store

import (
	"bytes"
	"encoding/json"
	"fmt"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

// decode makes an object of what was written. InvalidArgument when it is none.
func decode(k cluster.Kind, raw json.RawMessage) (cluster.Object, error) {
	o := k.New()
	if o == nil {
		return nil, fmt.Errorf("%q is no kind of object: %w", k, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", k, err, errdefs.ErrInvalidArgument)
	}
	if o.Base().ID == "" {
		return nil, fmt.Errorf("%s without an id: %w", k, errdefs.ErrInvalidArgument)
	}
	return o, nil
}

// keepUnknown adds to what is written now the fields that were there before and that
// this version does not know: a newer one has written them.
func keepUnknown(now json.RawMessage, before *record) (json.RawMessage, error) {
	known, err := json.Marshal(before.object)
	if err != nil || bytes.Equal(known, before.raw) {
		return now, err // nothing that is not known
	}
	var was, knew, is any
	for _, d := range []struct {
		raw json.RawMessage
		to  *any
	}{{before.raw, &was}, {known, &knew}, {now, &is}} {
		dec := json.NewDecoder(bytes.NewReader(d.raw))
		dec.UseNumber()
		if err := dec.Decode(d.to); err != nil {
			return nil, err
		}
	}
	return json.Marshal(overlay(is, was, knew))
}

// overlay gives is the fields that was has and knew has not. In lists, which have
// no names, nothing is looked for.
func overlay(is, was, knew any) any {
	m, ok1 := is.(map[string]any)
	old, ok2 := was.(map[string]any)
	k, ok3 := knew.(map[string]any)
	if !ok1 || !ok2 || !ok3 {
		return is
	}
	for name, value := range old {
		seen, known := k[name]
		now, there := m[name]
		switch {
		case !known && !there:
			m[name] = value
		case known && there:
			m[name] = overlay(now, value, seen)
		}
	}
	return m
}
