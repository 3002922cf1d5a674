package store

import (
	"fmt"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/cluster"
	"github.com/hashicorp/go-memdb"
)

// schema is a table a kind, with its indexes.
func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, k := range cluster.Kinds() {
		indexes := map[string]*memdb.IndexSchema{}
		indexes["id"] = &memdb.IndexSchema{Name: "id", Unique: true, Indexer: byID{}}
		for name, keys := range indexers {
			indexes[name] = &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: indexer{keys: keys}}
		}
		s.Tables[string(k)] = &memdb.TableSchema{Name: string(k), Indexes: indexes}
	}
	s.Tables[loads] = loadSchema()
	return s
}

// indexers are the ways to pick objects. That a name is one object's is checked with
// the commit as a whole.
var indexers = map[string]func(cluster.Object) []string{
	"name":  func(o cluster.Object) []string { return []string{o.Base().Name} },
	"owner": func(o cluster.Object) []string { return []string{o.Base().Owner} },
	"label": labels,
	"app": func(o cluster.Object) []string {
		if t, ok := o.(*cluster.Task); ok {
			return []string{t.App}
		}
		return nil
	},
	queue: func(o cluster.Object) []string {
		if t, ok := o.(*cluster.Task); ok && t.Waits() {
			return []string{fmt.Sprintf("%020d", t.CreatedAt.UnixNano()) + t.ID}
		}
		return nil
	},
	"needs": func(o cluster.Object) []string {
		t, ok := o.(*cluster.Task)
		if !ok || !t.Needy() {
			return nil
		}
		var out []string
		for _, n := range t.Spec.Needs {
			out = append(out, n.Service)
		}
		return out
	},
	"node": func(o cluster.Object) []string {
		if t, ok := o.(*cluster.Task); ok {
			return []string{t.Node}
		}
		return nil
	},
	"address": addresses,
	"on":      on,
	"ingress": func(o cluster.Object) []string {
		if n, ok := o.(*cluster.Network); ok && n.Ingress() {
			return []string{"ingress"}
		}
		return nil
	},
}

// addresses are those on overlay networks that nobody else may have, each after the id of
// its network. A task that has ended has none any more.
func addresses(o cluster.Object) (out []string) {
	switch o := o.(type) {
	case *cluster.Task:
		if !o.Status.State.Ended() {
			for _, a := range o.Addresses {
				out = append(out, place(a.Network, a.Addr.Addr()))
			}
		}
	case *cluster.Service:
		for _, a := range o.Status.VIPs {
			out = append(out, place(a.Network, a.Addr.Addr()))
		}
	case *cluster.Network:
		for _, who := range o.Status.Attached {
			for _, a := range who.Addrs {
				out = append(out, place(o.ID, a.Addr()))
			}
		}
	}
	return out
}

func place(network string, a netip.Addr) string { return network + "\x01" + a.String() }

// on are the overlay networks on which an object has addresses.
func on(o cluster.Object) (out []string) {
	switch o := o.(type) {
	case *cluster.Task:
		for _, a := range o.Addresses {
			out = append(out, a.Network)
		}
	case *cluster.Service:
		for _, a := range o.Status.VIPs {
			out = append(out, a.Network)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// queue is the index of the tasks that have still to be given their nodes, in the order in
// which they were made.
const queue = "queue"

// labels are what an object is found by: its labels' names, and with their values.
func labels(o cluster.Object) []string {
	var out []string
	for name, value := range o.Base().Labels {
		out = append(out, name, name+"\x01"+value)
	}
	return out
}

// byString takes one string for a key.
type byString struct{}

// byID finds records by their id, or its beginning.
type byID struct{ byString }

// indexer finds records by strings; "" is none.
type indexer struct {
	byString
	keys func(cluster.Object) []string
}

var (
	_ memdb.SingleIndexer = byID{}
	_ memdb.PrefixIndexer = byID{}
	_ memdb.MultiIndexer  = indexer{}
)

// FromObject implements memdb.SingleIndexer.
func (byID) FromObject(raw any) (bool, []byte, error) {
	r, ok := raw.(*record)
	if !ok {
		return false, nil, fmt.Errorf("%T is no record", raw)
	}
	return true, key(r.object.Base().ID), nil
}

// FromObject implements memdb.MultiIndexer.
func (i indexer) FromObject(raw any) (bool, [][]byte, error) {
	r, ok := raw.(*record)
	if !ok {
		return false, nil, fmt.Errorf("%T is no record", raw)
	}
	var out [][]byte
	for _, k := range i.keys(r.object) {
		if k != "" {
			out = append(out, key(k))
		}
	}
	return len(out) > 0, out, nil
}

// FromArgs implements memdb.Indexer.
func (byString) FromArgs(args ...any) ([]byte, error) {
	s, err := one(args)
	return key(s), err
}

// PrefixFromArgs implements memdb.PrefixIndexer.
func (byString) PrefixFromArgs(args ...any) ([]byte, error) {
	s, err := one(args)
	return []byte(s), err
}

func one(args []any) (string, error) {
	if len(args) == 1 {
		if s, ok := args[0].(string); ok {
			return s, nil
		}
	}
	return "", fmt.Errorf("one string wanted, not %v", args)
}

// key ends with a zero so that no key is the beginning of another.
func key(s string) []byte { return append([]byte(s), 0) }
