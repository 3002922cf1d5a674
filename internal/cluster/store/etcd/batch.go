package etcd

import (
	"encoding/json"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// batch is some commits that are written together, as one transaction of etcd's.
type batch struct {
	staged  *store.Staged
	members []member
	fence   *fence
	head    head
	ops     []clientv3.Op
	bytes   int
	lists   int // of the store when it was written
}

// member is one commit of a batch: decided, or refused.
type member struct {
	request
	answer
}

// stage decides on the commits that wait, as many as go together, and gives the others.
// Called with mu held.
func (s *Store) stage(waiting []request) (*batch, []request) {
	b := &batch{staged: s.state.Stage(), fence: waiting[0].fence, head: head{Format: store.Format, Batch: cluster.NewID(), Carried: s.at.from}}
	touched := map[string]bool{}
	var rest []request
	for i, r := range waiting {
		if i > 0 && (r.alone || waiting[0].alone || r.fence != b.fence || len(b.ops)+len(r.changes) > maxOps || b.bytes > maxBytes || r.touches(touched)) {
			rest = append(rest, r)
			continue
		}
		before, _ := b.staged.Writes()
		r.reset()
		at, err := b.staged.Add(r.changes)
		b.members = append(b.members, member{r, answer{at, err}})
		if err != nil {
			continue
		}
		all, _ := b.staged.Writes()
		d := done{Revision: at}
		for _, w := range all[len(before):] {
			d.Writes = append(d.Writes, s.put(b, w))
			touched[name(w)] = true
		}
		if len(d.Writes) > 0 {
			b.head.Commits = append(b.head.Commits, d)
		}
	}
	s.seal(b)
	return b, rest
}

// put adds the writing of one object, and gives the word that the head has for it.
func (s *Store) put(b *batch, w store.Write) string {
	n := name(w)
	if w.Raw == nil {
		b.ops = append(b.ops, clientv3.OpDelete(s.keys.object(n)))
		return removed + n
	}
	b.bytes += len(w.Raw)
	b.ops = append(b.ops, clientv3.OpPut(s.keys.object(n), s.keys.value(w)))
	return n
}

// seal ends a batch with its head: or, when there is nothing to write, with a question
// that compares all the same what was said to be unchanged.
func (s *Store) seal(b *batch) {
	if len(b.head.Commits) == 0 {
		b.ops = append(b.ops, clientv3.OpGet(s.keys.head(), clientv3.WithKeysOnly()))
		return
	}
	_, b.head.Revision = b.staged.Writes()
	raw, err := json.Marshal(b.head)
	if err != nil {
		panic(err) // the type has nothing that cannot be encoded
	}
	b.ops = append(b.ops, clientv3.OpPut(s.keys.head(), string(raw)))
}

// touches tells whether a request writes what was written: then it is for another
// transaction, in which a key is written once.
func (r request) touches(touched map[string]bool) bool {
	for _, c := range r.changes {
		if m := c.Object.Base(); c.Op != store.OpUnchanged && touched[string(c.Object.Kind())+"/"+m.ID] {
			return true
		}
	}
	return false
}

// empty tells whether all commits of a batch are refused.
func (b *batch) empty() bool {
	for _, m := range b.members {
		if m.err == nil {
			return false
		}
	}
	return true
}

// drop answers all commits of a batch: as was decided, or for all that were not refused
// with the error that came between.
func (b *batch) drop(err error) {
	for _, m := range b.members {
		switch {
		case m.err != nil:
			m.refuse(m.err)
		case err != nil:
			m.refuse(err)
		default:
			m.done <- m.answer
		}
	}
}
