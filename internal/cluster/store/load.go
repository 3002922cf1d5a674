package store

import (
	"maps"
	"slices"

	"escale.dev/escale/internal/cluster"
	"github.com/hashicorp/go-memdb"
)

// NodeLoad is what the tasks of one node make of it that have their place there and have
// not ended. It is kept with the tasks, so that nobody has to count a hundred thousand
// of them to place one.
type NodeLoad struct {
	Node     string // id
	Tasks    int
	Services map[string]int // tasks, by service
	Reserved cluster.Resources
	Ports    []cluster.Port // that tasks have on the node alone
}

// loads is the table of them, by node.
const loads = "load"

func loadSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: loads, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Node"}},
	}}
}

// NodeLoad is that of a node, shared as objects are.
func (v View) NodeLoad(node string) NodeLoad {
	l, err := loadOf(v.txn, node)
	if err != nil {
		panic(err) // the schema is ours
	}
	return l
}

func loadOf(txn *memdb.Txn, node string) (NodeLoad, error) {
	r, err := txn.First(loads, "id", node)
	if r == nil || err != nil {
		return NodeLoad{Node: node}, err
	}
	return *r.(*NodeLoad), nil
}

// counts tells whether a task is part of its node's load.
func counts(o cluster.Object) (*cluster.Task, bool) {
	t, ok := o.(*cluster.Task)
	return t, ok && t != nil && t.Node != "" && !t.Waits() && !t.Status.State.Ended()
}

// weigh brings the loads of nodes up to date after one object was exchanged for another.
func weigh(txn *memdb.Txn, before, after cluster.Object) error {
	was, wasIn := counts(before)
	is, isIn := counts(after)
	if wasIn == isIn && (!isIn || was.Node == is.Node && was.Owner == is.Owner && was.Spec.Reserved.Equal(is.Spec.Reserved) && slices.Equal(was.Ports, is.Ports)) {
		return nil
	}
	for _, c := range []struct {
		t    *cluster.Task
		in   bool
		sign int
	}{{was, wasIn, -1}, {is, isIn, 1}} {
		if !c.in {
			continue
		}
		l, err := loadOf(txn, c.t.Node)
		if err != nil {
			return err
		}
		l = l.plus(c.t, c.sign)
		if l.Tasks == 0 {
			err = txn.Delete(loads, &l)
		} else {
			err = txn.Insert(loads, &l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// plus is the load with a task more (1) or less (-1).
func (l NodeLoad) plus(t *cluster.Task, sign int) NodeLoad {
	l.Tasks += sign
	l.Services = maps.Clone(l.Services)
	if l.Services == nil {
		l.Services = map[string]int{}
	}
	if l.Services[t.Owner] += sign; l.Services[t.Owner] == 0 {
		delete(l.Services, t.Owner)
	}
	l.Reserved = l.Reserved.Plus(t.Spec.Reserved, int64(sign))
	if len(t.Ports) > 0 {
		l.Ports = slices.Clone(l.Ports)
	}
	for _, p := range t.Ports {
		if i := slices.Index(l.Ports, p); sign < 0 && i >= 0 {
			l.Ports = slices.Delete(l.Ports, i, i+1)
		} else if sign > 0 {
			l.Ports = append(l.Ports, p)
		}
	}
	return l
}
