package firewall

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"escale.dev/escale/internal/network/firewall/firewalld"
	"escale.dev/escale/internal/sys/nft"
)

// Firewall keeps an instance's table as it should be. Its methods may be called
// from several goroutines; each change is one transaction of the kernel and
// blocks for a fraction of a millisecond.
type Firewall struct {
	instance string
	prefix   string // begins the names of containers' links
	strict   bool   // rules of others are left alone
	log      *slog.Logger
	conn     nft.Conn
	zone     *firewalld.Zone
	suspect  atomic.Bool // somebody else may have changed our table

	mu       sync.Mutex
	opened   bool // the kernel's table is ours to change by the difference
	synced   bool // what an earlier engine left was compared
	networks []Network
	shared   groups
	mesh     Mesh
	sealed   []Sealed
	elements state
	table    nft.Table       // as it was written last
	warned   map[string]bool // foreign chains that were told of
	beside   bool            // firewalld runs
	links    links           // the addresses of containers
	hosts    []netip.Addr    // and of the host on its bridges
	honest   bool            // the table of frames is ours to change by the difference
	// frameless says that the kernel has no tables of frames.
	frameless bool
}

// Config says how a firewall is to be.
type Config struct {
	Instance string
	// Links begins the names of containers' links on the host; empty: addresses are not
	// held to links.
	Links string
	// Strict leaves the chains of other firewalls alone: what may pass is for their
	// owner to say.
	Strict bool
	Logger *slog.Logger
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

// zoneName is what firewalld calls an instance's zone, at most 17 characters.
func zoneName(instance string) string {
	switch name := "esc-" + instance; {
	case instance == "escale":
		return instance
	case len(name) <= 17:
		return name
	default:
		sum := sha256.Sum256([]byte(instance))
		return "esc-" + hex.EncodeToString(sum[:6])
	}
}

// New makes a Firewall; nothing is touched before Open.
func New(c Config) *Firewall {
	return &Firewall{
		instance: c.Instance, prefix: c.Links, strict: c.Strict, log: c.Logger, frameless: c.Links == "",
		elements: state{}, shared: groups{}, warned: map[string]bool{}, links: links{},
		zone: firewalld.NewZone(zoneName(c.Instance)),
	}
}

// Open makes the table for these networks, or changes it when the set of
// networks does. What an earlier engine left in the kernel is kept without a gap
// until Sync says what of it is still wanted. Idempotent.
func (f *Firewall) Open(networks []Network) error {
	if err := f.open(networks); err != nil {
		return err
	}
	f.askFirewalld(context.Background()) // detached: it has its own bound of time
	return nil
}

func (f *Firewall) open(networks []Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.opened {
		if err := f.takeOver(); err != nil {
			return err
		}
	}
	f.networks = slices.Clone(networks)
	if err := f.write(f.wanted(), nil, nil); err != nil {
		return err
	}
	return errors.Join(f.hostsAre(hosts(networks)), f.letThrough())
}

// former is the table of engines before this one knew IPv6.
func (f *Firewall) former() nft.Table {
	return nft.Table{Family: nft.IPv4, Name: TableName(f.instance), Maps: []nft.Map{published4.hostPorts, published4.ports}}
}

// takeOver reads which ports an earlier engine left published.
func (f *Firewall) takeOver() error {
	f.elements = state{}
	for _, t := range []nft.Table{f.former(), Rules(f.instance, nil)} {
		left, err := f.conn.Read(t)
		if err != nil {
			return err
		}
		for _, p := range []publication{published4, published6} {
			for _, m := range []nft.Map{p.hostPorts, p.ports, p.open} {
				for _, e := range left[m.Name] {
					f.elements.put(m.Name, e)
				}
			}
		}
	}
	return nil
}

// wanted is the table as it is to be.
func (f *Firewall) wanted() nft.Table {
	return rules(f.instance, f.networks, f.shared, f.mesh, f.sealed)
}

// write brings the kernel's table to next, and deletes and adds elements, which
// f.elements has done already. When the kernel's table is not what it should be
// (somebody flushed it), it is written anew.
func (f *Firewall) write(next nft.Table, del, ins nft.Elements) error {
	var err error
	if f.opened {
		if err = f.conn.Change(f.table, next, del, ins); err == nil {
			f.table = next
			return nil
		}
		f.log.Warn("nftables table differs from what was written: writing it anew", "table", TableName(f.instance), "error", err)
	}
	if again := f.conn.Set(next, f.elements.elements(), f.synced, f.former().Ref()); again != nil {
		return errors.Join(err, again)
	}
	f.table, f.opened = next, true
	return nil
}

// Add publishes ports. On an error none of them is published.
func (f *Firewall) Add(ports ...Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ins, shared := nft.Elements{}, f.shared
	for _, p := range ports {
		name, e := p.place(f.networks)
		_, alone := f.elements[name][e.Key]
		if _, together := shared[p.spot()]; alone || together && p.Group == "" {
			return fmt.Errorf("published port %s: already in the table", p.Host)
		}
		if p.Group != "" && name != publicationFor(p.To.Addr()).open.Name {
			shared = shared.with(p)
		} else {
			ins[name] = append(ins[name], e)
		}
		if name, e, ok := p.open(f.networks); ok && !slices.Contains(ins[name], e) {
			if _, there := f.elements[name][e.Key]; !there {
				ins[name] = append(ins[name], e)
			}
		}
	}
	return f.change(nil, ins, shared)
}

// Remove takes published ports back; those that are not there are no error.
func (f *Firewall) Remove(ports ...Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	del, shared := nft.Elements{}, f.shared
	for _, p := range ports {
		name, e := p.place(f.networks)
		if v, ok := f.elements[name][e.Key]; ok && v == e.Value {
			del[name] = append(del[name], e)
		}
		if name, e, ok := p.open(f.networks); ok && !slices.Contains(del[name], e) {
			if _, there := f.elements[name][e.Key]; there {
				del[name] = append(del[name], e)
			}
		}
		if p.Group != "" {
			shared = shared.without(p)
		}
	}
	return f.change(del, nil, shared)
}

// Sync makes the published ports exactly these, by the difference to what the
// kernel really holds, and takes away what an earlier engine left of networks
// that are no more; the same for the addresses of containers, by their link.
func (f *Firewall) Sync(ports []Port, addrs map[string][]netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.elements, f.shared = state{}, groups{}
	f.links = maps.Clone(addrs)
	if f.links == nil {
		f.links = links{}
	}
	if !f.opened && len(ports) == 0 { // no networks at all
		return f.conn.Delete(f.tables()...)
	}
	for _, p := range ports {
		name, e := p.place(f.networks)
		if p.Group != "" && name != publicationFor(p.To.Addr()).open.Name {
			f.shared = f.shared.with(p)
		} else {
			f.elements.put(name, e)
		}
		if name, e, ok := p.open(f.networks); ok {
			f.elements.put(name, e)
		}
	}
	f.synced = true
	f.honest = false
	return errors.Join(f.anew(), f.frames(nil, nil))
}

// tables are all that this instance may have.
func (f *Firewall) tables() []nft.Ref {
	out := []nft.Ref{Rules(f.instance, nil).Ref(), f.former().Ref()}
	if !f.frameless {
		out = append(out, Honesty(f.instance, f.prefix).Ref())
	}
	return out
}

// anew writes the table by the difference to what the kernel holds.
func (f *Firewall) anew() error {
	f.opened = false
	return f.write(f.wanted(), nil, nil)
}

// change deletes and adds elements and sets the groups, here and in the kernel;
// both stay as they were on an error.
func (f *Firewall) change(del, ins nft.Elements, shared groups) error {
	undo := f.apply(del, ins)
	old, next := f.shared, f.table
	if f.shared = shared; !f.opened || !maps.EqualFunc(old, shared, slices.Equal) {
		next = f.wanted()
	}
	if err := f.write(next, del, ins); err != nil {
		undo()
		f.shared = old
		return err
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

// Ports is how many ports are published, a group counting as one.
func (f *Firewall) Ports() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.shared)
	for _, m := range f.elements {
		n += len(m)
	}
	return n
}

// Check compares the table and the rules in foreign chains with what they should
// be and puts right what differs.
func (f *Firewall) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opened {
		ok, err := f.conn.Exists(f.table.Ref())
		if err != nil {
			return err
		}
		if !ok {
			f.log.Warn("nftables table was removed by somebody: making it anew", "table", TableName(f.instance))
		}
		f.honest = false
		if err := errors.Join(f.anew(), f.frames(nil, nil)); err != nil {
			return err
		}
	}
	return f.letThrough()
}

// CheckForeign puts the rules in foreign chains right.
func (f *Firewall) CheckForeign() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.letThrough()
}

// Delete removes the table and the rules in foreign chains. Idempotent.
func (f *Firewall) Delete() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.beside && !f.strict {
		if err := f.zone.Set(context.Background(), nil); err != nil { // detached: as above
			f.log.Warn("firewalld keeps bridges of networks that are no more", "error", err)
		}
	}
	f.opened, f.synced, f.honest = false, false, false
	f.networks, f.elements, f.shared, f.mesh, f.sealed, f.links, f.hosts = nil, state{}, groups{}, Mesh{}, nil, links{}, nil
	return errors.Join(f.letThrough(), f.conn.Delete(f.tables()...))
}

// Close closes the connection to the kernel. The rules stay.
func (f *Firewall) Close() error { return f.conn.Close() }
