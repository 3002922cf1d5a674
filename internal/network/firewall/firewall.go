package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"escale.dev/escale/internal/sys/nft"
)

// Firewall keeps an instance's table as it should be. Its methods may be called
// from several goroutines; each change is one transaction of the kernel and
// blocks for a fraction of a millisecond.
type Firewall struct {
	instance string
	log      *slog.Logger
	conn     nft.Conn

	mu       sync.Mutex
	networks []Network
	elements state
	warned   map[string]bool // foreign chains that were told of
}

// state holds the elements by map and key.
type state map[string]map[string]string

func (s state) elements() nft.Elements {
	out := nft.Elements{}
	for name, m := range s {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out[name] = append(out[name], nft.Element{Key: k, Value: m[k]})
		}
	}
	return out
}

func (s state) put(mapName string, e nft.Element) {
	if s[mapName] == nil {
		s[mapName] = map[string]string{}
	}
	s[mapName][e.Key] = e.Value
}

// New makes a Firewall; nothing is touched before Open.
func New(instance string, log *slog.Logger) *Firewall {
	return &Firewall{instance: instance, log: log, elements: state{}, warned: map[string]bool{}}
}

// Open makes the table for these networks, or renews it: the published ports
// that an earlier engine left in the kernel are kept without a gap until Sync
// says which of them are still wanted. Idempotent.
func (f *Firewall) Open(networks []Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	left, err := f.conn.Read(Rules(f.instance, nil))
	if err != nil {
		return err
	}
	f.networks, f.elements = slices.Clone(networks), state{}
	for name, elements := range left {
		for _, e := range elements {
			f.elements.put(name, e)
		}
	}
	if err := f.replace(); err != nil {
		return err
	}
	return f.letThrough()
}

func (f *Firewall) table() nft.Table { return Rules(f.instance, f.networks) }

func (f *Firewall) replace() error { return f.conn.Replace(f.table(), f.elements.elements()) }

// Add publishes ports. On an error none of them is published.
func (f *Firewall) Add(ports ...Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ins := nft.Elements{}
	for _, p := range ports {
		name, e := p.place()
		if _, taken := f.elements[name][e.Key]; taken {
			return fmt.Errorf("published port %s: already in the table", p.Host)
		}
		ins[name] = append(ins[name], e)
	}
	return f.change(nil, ins)
}

// Remove takes published ports back; those that are not there are no error.
func (f *Firewall) Remove(ports ...Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	del := nft.Elements{}
	for _, p := range ports {
		name, e := p.place()
		if v, ok := f.elements[name][e.Key]; ok && v == e.Value {
			del[name] = append(del[name], e)
		}
	}
	return f.change(del, nil)
}

// Sync makes the published ports exactly these, by the difference to what the
// kernel really holds.
func (f *Firewall) Sync(ports []Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := state{}
	for _, p := range ports {
		want.put(p.place())
	}
	left, err := f.conn.Read(f.table())
	if err != nil {
		return err
	}
	f.elements = state{}
	del, ins := nft.Elements{}, want.elements()
	for name, elements := range left {
		for _, e := range elements {
			f.elements.put(name, e)
			if v, ok := want[name][e.Key]; ok && v == e.Value {
				ins[name] = slices.DeleteFunc(ins[name], func(i nft.Element) bool { return i.Key == e.Key })
			} else {
				del[name] = append(del[name], e)
			}
		}
	}
	return f.change(del, ins)
}

// change deletes and adds elements, here and in the kernel. When the kernel's
// table is not what it should be (somebody flushed it), it is written anew.
func (f *Firewall) change(del, ins nft.Elements) error {
	undo := f.apply(del, ins)
	err := f.conn.Change(f.table(), del, ins)
	if err == nil {
		return nil
	}
	f.log.Warn("nftables table differs from what was written: writing it anew", "table", TableName(f.instance), "error", err)
	if again := f.replace(); again != nil {
		undo()
		return errors.Join(err, again)
	}
	return nil
}

// apply changes the copy here and returns what takes that back.
func (f *Firewall) apply(del, ins nft.Elements) (undo func()) {
	for name, elements := range del {
		for _, e := range elements {
			delete(f.elements[name], e.Key)
		}
	}
	for name, elements := range ins {
		for _, e := range elements {
			f.elements.put(name, e)
		}
	}
	return func() {
		for name, elements := range ins {
			for _, e := range elements {
				delete(f.elements[name], e.Key)
			}
		}
		for name, elements := range del {
			for _, e := range elements {
				f.elements.put(name, e)
			}
		}
	}
}

// Ports is how many ports are published.
func (f *Firewall) Ports() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.elements[ports.Name]) + len(f.elements[hostPorts.Name])
}

// Check looks whether the table and the rules in foreign chains are still there
// and makes them anew if not.
func (f *Firewall) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ok, err := f.conn.Exists(TableName(f.instance))
	if err != nil {
		return err
	}
	if !ok {
		f.log.Warn("nftables table was removed by somebody: making it anew", "table", TableName(f.instance))
		if err := f.replace(); err != nil {
			return err
		}
	}
	return f.letThrough()
}

// Delete removes the table and the rules in foreign chains. Idempotent.
func (f *Firewall) Delete() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.networks, f.elements = nil, state{}
	return errors.Join(f.letThrough(), f.conn.Delete(TableName(f.instance)))
}

// Close closes the connection to the kernel. The rules stay.
func (f *Firewall) Close() error { return f.conn.Close() }
