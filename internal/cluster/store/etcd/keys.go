package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// keys are those of the store (docs/formats.md): below PREFIX/s/ are the head, the turn
// and PREFIX/s/o/KIND/ID of each object; below PREFIX/e/ what the election is about.
type keys struct {
	prefix string
	seal   func() *seal.Ring // nil: none
}

func (k keys) all() string     { return k.prefix + "/s/" }
func (k keys) head() string    { return k.prefix + "/s/head" }
func (k keys) turn() string    { return k.prefix + "/s/turn" }
func (k keys) objects() string { return k.prefix + "/s/o/" }
func (k keys) leader() string  { return k.prefix + "/e/leader" }
func (k keys) term() string    { return k.prefix + "/e/term" }
func (k keys) shrink() string  { return k.prefix + "/e/shrink" }

// ring is what seals now, nil for nothing.
func (k keys) ring() *seal.Ring {
	if k.seal == nil {
		return nil
	}
	return k.seal()
}

// object is the key of an object.
func (k keys) object(name string) string { return k.objects() + name }

// name is how the head calls an object.
func name(w store.Write) string { return string(w.Kind) + "/" + w.ID }

// value is what is written for an object.
func (k keys) value(w store.Write) string {
	if r := k.ring(); r != nil {
		return string(r.Seal(name(w), w.Raw))
	}
	return string(w.Raw)
}

// read gives the object of a key. What a later version calls a kind is none here: ok is
// false.
func (k keys) read(kv *mvccpb.KeyValue) (w store.Write, ok bool, err error) {
	n, ok := strings.CutPrefix(string(kv.Key), k.objects())
	if !ok {
		return w, false, nil
	}
	if w, ok = named(n); !ok {
		return w, false, nil
	}
	w.Raw = kv.Value
	if r := k.ring(); r != nil {
		if w.Raw, err = r.Open(n, kv.Value); err != nil {
			return w, false, err
		}
	}
	return w, true, nil
}

// named reads how the head calls an object.
func named(n string) (store.Write, bool) {
	kind, id, ok := strings.Cut(n, "/")
	w := store.Write{Kind: cluster.Kind(kind), ID: id}
	return w, ok && w.Kind.New() != nil
}

// head tells of all commits the last ones, which were written with it. Formats that
// outlive versions: docs/formats.md.
type head struct {
	Format   int
	Revision uint64 // of the last commit
	Batch    string `json:",omitempty"` // one of a kind: its writer knows it again
	Commits  []done `json:",omitempty"` // in order
	// Carrying is whose objects are being carried over: until it is over there is no
	// store. Carried is whose were.
	Carrying string `json:",omitempty"`
	Carried  string `json:",omitempty"`
}

// done is one commit: the objects it wrote, in order, with a minus before those it removed.
type done struct {
	Revision uint64
	Writes   []string
}

// removed stands before the name of an object that is not there any more.
const removed = "-"

// parseHead reads a head. DataLoss; FailedPrecondition when it is of a later format.
func parseHead(raw []byte) (head, error) {
	var h head
	if err := json.Unmarshal(raw, &h); err != nil {
		return h, fmt.Errorf("the head is damaged: %w: %w", err, errdefs.ErrDataLoss)
	}
	if h.Format != store.Format {
		return h, fmt.Errorf("its format is %d, this version of Escale knows %d; downgrading is not possible: %w", h.Format, store.Format, errdefs.ErrFailedPrecondition)
	}
	return h, nil
}

// kindOf gives an error of etcd's the kind that it has in the contract, and words.
func kindOf(err error) error {
	switch {
	case err == nil || errdefs.IsDataLoss(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) || errdefs.IsUnavailable(err):
		return err
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("it is full: its database has reached its quota: %w", errdefs.ErrUnavailable)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps), status.Code(err) == codes.ResourceExhausted:
		return fmt.Errorf("too much at once: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}
