package store

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
	"github.com/hashicorp/go-memdb"
)

// View is what a store held at one revision. Its objects are shared and must not be
// changed.
type View struct {
	txn      *memdb.Txn
	revision uint64
}

// Revision is that of the last commit in it.
func (v View) Revision() uint64 { return v.revision }

// Find gives the object of an id. NotFound when there is none.
func Find[T cluster.Object](v View, id string) (T, error) {
	return find[T](v, "id", id)
}

// Named gives the object of a name. NotFound when there is none.
func Named[T cluster.Object](v View, name string) (T, error) {
	return find[T](v, "name", name)
}

func find[T cluster.Object](v View, index, key string) (T, error) {
	var none T
	r, err := first(v.txn, none.Kind(), index, key)
	if err == nil && r == nil {
		err = fmt.Errorf("%s %s not found: %w", none.Kind(), key, errdefs.ErrNotFound)
	}
	if err != nil {
		return none, err
	}
	return r.object.(T), nil
}

// Resolve gives the object that people mean by an id, a name, or a beginning of an
// id that only it has. NotFound; InvalidArgument when several begin so.
func Resolve[T cluster.Object](v View, ref string) (T, error) {
	var none T
	if o, err := Find[T](v, ref); err == nil {
		return o, nil
	}
	for _, index := range []string{"name", "id_prefix"} {
		found := v.records(none.Kind(), index, ref)
		switch {
		case ref == "" || len(found) == 0:
		case len(found) == 1:
			return found[0].object.(T), nil
		default:
			return none, fmt.Errorf("%s %s is ambiguous (%d matches found): %w", none.Kind(), ref, len(found), errdefs.ErrInvalidArgument)
		}
	}
	return none, fmt.Errorf("%s %s not found: %w", none.Kind(), ref, errdefs.ErrNotFound)
}

// Referred gives the secret or config that a task's reference means: by its id, else by its name
// among those of the app that the task is of ("" is none), else by its name. NotFound when
// there is none.
func Referred[T cluster.Object](v View, r cluster.FileRef, app string) (T, error) {
	o, err := referred[T](v, r, app)
	if err == nil && cluster.IsInternal(o) {
		var none T
		return none, fmt.Errorf("%s %q: %w", none.Kind(), cmp.Or(r.Name, r.ID), errdefs.ErrNotFound)
	}
	return o, err
}

func referred[T cluster.Object](v View, r cluster.FileRef, app string) (T, error) {
	if r.ID != "" {
		return Find[T](v, r.ID)
	}
	if app != "" {
		if o, err := Named[T](v, cluster.Full(app, r.Name)); err == nil {
			return o, nil
		}
	}
	return Named[T](v, r.Name)
}

// By narrows a List.
type By struct{ index, key string }

// Owner picks what goes with an object.
func Owner(id string) By { return By{"owner", id} }

// Label picks what has a label.
func Label(name string) By { return By{"label", name} }

// LabelIs picks what has a label of that value.
func LabelIs(name, value string) By { return By{"label", name + "\x01" + value} }

// OfApp picks the tasks of an app, also those whose service has gone.
func OfApp(id string) By { return By{"app", id} }

// On picks the tasks and services that have addresses on an overlay network.
func On(network string) By { return By{"on", network} }

// OfIngress picks the network of published ports.
func OfIngress() By { return By{"ingress", "ingress"} }

// Taken tells whether somebody has an address on an overlay network.
func (v View) Taken(network string, a netip.Addr) bool {
	for _, k := range []cluster.Kind{cluster.KindTask, cluster.KindService, cluster.KindNetwork} {
		if r, err := first(v.txn, k, "address", place(network, a)); err != nil || r != nil {
			return true
		}
	}
	return false
}

// OnNode picks the tasks of a node.
func OnNode(id string) By { return By{"node", id} }

// Needing picks the tasks that wait for a service, by its name.
func Needing(service string) By { return By{"needs", service} }

// List gives the objects of a kind, by id: all of them, or what all of by pick.
func List[T cluster.Object](v View, by ...By) []T {
	var none T
	var list []*record
	switch {
	case len(by) == 0:
		list = v.records(none.Kind(), "id")
	default:
		list = v.records(none.Kind(), by[0].index, by[0].key)
	}
	out := make([]T, 0, len(list))
next:
	for _, r := range list {
		for _, b := range by[min(1, len(by)):] {
			if !b.picks(r.object) {
				continue next
			}
		}
		out = append(out, r.object.(T))
	}
	return out
}

// picks tells of one object what an index tells of many.
func (b By) picks(o cluster.Object) bool {
	i, ok := indexers[b.index]
	if !ok {
		return false
	}
	for _, k := range i(o) {
		if k == b.key {
			return true
		}
	}
	return false
}

// Waiting are the tasks that have still to be given their nodes, those first that were
// made first. Who takes a few pays for a few.
func (v View) Waiting() iter.Seq[*cluster.Task] {
	return func(yield func(*cluster.Task) bool) {
		it, err := v.txn.Get(string(cluster.KindTask), queue+"_prefix", "")
		if err != nil {
			panic(err) // the schema is ours
		}
		for r := it.Next(); r != nil && yield(r.(*record).object.(*cluster.Task)); r = it.Next() {
		}
	}
}

// records are those of an index and key, in order.
func (v View) records(k cluster.Kind, index string, key ...any) []*record {
	it, err := v.txn.Get(string(k), index, key...)
	if err != nil {
		panic(err) // the schema is ours, and who calls names what is in it
	}
	var out []*record
	for r := it.Next(); r != nil; r = it.Next() {
		out = append(out, r.(*record))
	}
	return out
}

func first(txn *memdb.Txn, k cluster.Kind, index, key string) (*record, error) {
	r, err := txn.First(string(k), index, key)
	if r == nil || err != nil {
		return nil, err
	}
	return r.(*record), nil
}
