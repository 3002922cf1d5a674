package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

var bigEndian = binary.BigEndian

// chunk is how many elements go in one message: its list is an attribute, and
// the length of an attribute has 16 bits.
const chunk = 400

// batch gathers the changes of one table for one transaction.
type batch struct {
	c    *nftables.Conn
	t    Table
	kt   *nftables.Table
	next uint32 // id of the next set that the transaction names; counts within it
	err  error  // the first; nothing is sent then
}

func newBatch(c *nftables.Conn, t Table) *batch {
	return &batch{c: c, t: t, kt: t.Ref().table(), next: 1 << 16}
}

func concat(types []Type) nftables.SetDatatype {
	datas := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		datas[i] = t.data()
	}
	if len(datas) == 1 {
		return datas[0]
	}
	return nftables.MustConcatSetType(datas...) // at most five fields, fixed in the source
}

// set is the map as the library knows it.
func (m Map) set(kt *nftables.Table, id uint32) *nftables.Set {
	s := &nftables.Set{
		ID: id, Table: kt, Name: m.Name, IsMap: m.Value != nil, Concatenation: len(m.Key) > 1, KeyType: concat(m.Key),
	}
	if m.Key[0] == Mark || m.Key[0] == Link {
		s.KeyByteOrder = binaryutil.NativeEndian // so that nft(8) reads it so
	}
	if m.Value != nil {
		s.DataType = concat(m.Value)
	}
	return s
}

func (b *batch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

// flush sends the transaction.
func (b *batch) flush() error {
	if b.err != nil {
		return b.err
	}
	return b.c.Flush()
}

func (b *batch) addMap(m Map) { b.note(b.c.AddSet(m.set(b.kt, b.id(m.Name)), nil)) }

func (b *batch) delMap(name string) { b.c.DelSet(&nftables.Set{Table: b.kt, Name: name}) }

// id is the number of a map of the table in this transaction.
func (b *batch) id(name string) uint32 {
	return uint32(slices.IndexFunc(b.t.Maps, func(m Map) bool { return m.Name == name }) + 1)
}

// put and take add and delete elements.
func (b *batch) put(m Map, elements []Element) {
	set := m.set(b.kt, b.id(m.Name))
	for part := range slices.Chunk(elements, chunk) {
		b.note(b.c.SetAddElements(set, convert(m, part, true)))
	}
}

func (b *batch) take(m Map, elements []Element) {
	set := m.set(b.kt, b.id(m.Name))
	for part := range slices.Chunk(elements, chunk) {
		b.note(b.c.SetDeleteElements(set, convert(m, part, false)))
	}
}

func convert(m Map, elements []Element, values bool) []nftables.SetElement {
	out := make([]nftables.SetElement, len(elements))
	for i, e := range elements {
		out[i].Key = []byte(e.Key)
		switch {
		case !values || m.Value == nil:
		case m.verdicts():
			word, chain, _ := strings.Cut(e.Value, " ")
			out[i].VerdictData = &expr.Verdict{Kind: verdictWords[word], Chain: chain}
		default:
			out[i].Val = []byte(e.Value)
		}
	}
	return out
}

func (b *batch) addChain(ch Chain) {
	c := &nftables.Chain{Table: b.kt, Name: ch.Name}
	if ch.Base != nil {
		policy := nftables.ChainPolicyAccept
		c.Type, c.Hooknum, c.Policy = nftables.ChainType(ch.Base.Type), hooks[ch.Base.Hook], &policy
		c.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(ch.Base.Priority))
	}
	b.c.AddChain(c)
}

var hooks = map[string]*nftables.ChainHook{
	"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
	"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
}

// sameHook tells whether a chain hooks where base says.
func sameHook(ch *nftables.Chain, base *Base) bool {
	if base == nil || ch.Hooknum == nil || ch.Priority == nil {
		return base == nil && ch.Hooknum == nil
	}
	return string(ch.Type) == base.Type && *ch.Hooknum == *hooks[base.Hook] && int(*ch.Priority) == base.Priority
}

// empty takes all rules out of a chain.
func (b *batch) empty(name string) { b.c.FlushChain(&nftables.Chain{Table: b.kt, Name: name}) }

func (b *batch) delChain(name string) { b.c.DelChain(&nftables.Chain{Table: b.kt, Name: name}) }

func (b *batch) fill(ch Chain) {
	for _, r := range ch.Rules {
		b.c.AddRule(&nftables.Rule{Table: b.kt, Chain: &nftables.Chain{Table: b.kt, Name: ch.Name}, Exprs: b.exprs(r)})
	}
}

// exprs is the rule as the kernel gets it. In a table of both families it says
// once of which one a packet has to be.
func (b *batch) exprs(r Rule) []expr.Any {
	var out []expr.Any
	known := b.t.Family != Inet
	for _, s := range r {
		if s.proto != 0 && !known {
			out = append(out, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, compare(expr.CmpOpEq, []byte{s.proto}))
			known = true
		}
		if s.anonymous == nil {
			out = append(out, s.exprs...)
			continue
		}
		b.next++
		set := s.anonymous.set(b.kt, b.next)
		set.Name, set.Anonymous, set.Constant = "__map%d", true, true
		first := s.anonymous.Fixed[:min(chunk, len(s.anonymous.Fixed))]
		if len(first) < len(s.anonymous.Fixed) {
			set.Size = uint32(len(s.anonymous.Fixed)) // or it has room for the first only
		}
		b.note(b.c.AddSet(set, convert(*s.anonymous, first, true)))
		rest := *set
		rest.Anonymous = false // or the library would refuse to add to it; the kernel goes by the number
		for part := range slices.Chunk(s.anonymous.Fixed[len(first):], chunk) {
			b.note(b.c.SetAddElements(&rest, convert(*s.anonymous, part, true)))
		}
		for _, e := range s.exprs {
			if l, ok := e.(*expr.Lookup); ok && l.SetName == "" {
				named := *l
				named.SetName, named.SetID = set.Name, set.ID
				e = &named
			}
			out = append(out, e)
		}
	}
	return out
}

// Exprs is a rule as the kernel gets it in a table of one family.
func (r Rule) Exprs() []expr.Any {
	var all []expr.Any
	for _, s := range r {
		all = append(all, s.exprs...)
	}
	return all
}

// Set makes the kernel's table t, in one transaction, whatever is there: no
// packet meets half of it. Of the elements only the difference is written, and
// what t keeps is left alone. Unless exact, elements, chains and maps that are
// there and not wanted stay. The tables instead are deleted by the same
// transaction, whether they are there or not.
func (c *Conn) Set(t Table, elements Elements, exact bool, instead ...Ref) error {
	err := c.Do(func(k *nftables.Conn) error {
		have, err := c.state(k, t)
		if err != nil {
			return err
		}
		b := newBatch(k, t)
		k.AddTable(b.kt)
		for _, r := range instead {
			remove(k, r)
		}
		b.set(have, elements, exact)
		return b.flush()
	})
	if err != nil {
		return fmt.Errorf("nftables table %q: %w", t.Name, err)
	}
	return nil
}

func (b *batch) set(have state, elements Elements, exact bool) {
	wanted := map[string]bool{}
	for _, ch := range b.t.Chains {
		wanted[ch.Name] = true
	}
	for _, m := range b.t.Maps {
		if h, ok := have.sets[m.Name]; ok && h != shapeOf(m.set(b.kt, 1)) {
			exact = true // rules that nobody wants may use it
		}
	}
	// Elements and rules go first, since they use what may go after them.
	for _, m := range b.t.Maps {
		if exact {
			b.take(m, missing(have.elements[m.Name], want(m, elements)))
		}
	}
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		if b.t.keeps(name) || !wanted[name] && !exact {
			continue
		}
		b.empty(name)
		if !wanted[name] {
			gone = append(gone, name)
		}
	}
	for _, name := range gone {
		b.delChain(name)
	}
	b.setMaps(have, exact)
	for _, ch := range b.t.Chains {
		old, ok := have.chains[ch.Name]
		if ok && !b.t.keeps(ch.Name) && !sameHook(old, ch.Base) {
			b.delChain(ch.Name)
			ok = false
		}
		if !ok {
			b.addChain(ch)
		}
	}
	for _, ch := range b.t.Chains {
		if !b.t.keeps(ch.Name) {
			b.fill(ch)
		}
	}
	for _, m := range b.t.Maps {
		b.put(m, missing(want(m, elements), have.elements[m.Name]))
	}
}

// setMaps makes the maps that are missing or of another type, and if exact takes
// away those that nobody wants.
func (b *batch) setMaps(have state, exact bool) {
	wanted := map[string]bool{}
	for _, m := range b.t.Maps {
		wanted[m.Name] = true
		h, ok := have.sets[m.Name]
		if ok && h == shapeOf(m.set(b.kt, 1)) {
			continue
		}
		if ok {
			b.delMap(m.Name)
		}
		b.addMap(m)
	}
	for _, name := range slices.Sorted(maps.Keys(have.sets)) {
		// Those without a name of their own go with the rules that use them.
		if exact && !wanted[name] && !b.t.keeps(name) && !strings.HasPrefix(name, "__") {
			b.delMap(name)
		}
	}
}

// want are all the elements that a map is to have.
func want(m Map, elements Elements) []Element { return slices.Concat(m.Fixed, elements[m.Name]) }

// missing are those of a that are not in b.
func missing(a, b []Element) []Element {
	in := make(map[Element]bool, len(b))
	for _, e := range b {
		in[e] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(e Element) bool { return in[e] })
}

// Change brings the table from what it was to what it is to be, and deletes and
// adds elements of its maps, in one transaction whose cost depends on the
// difference only. The two tables have the same name, and maps of one name have the
// same types. An error wraps ENOENT when something that is to change
// is not there, and EEXIST when a key to add holds another value; nothing was
// changed then.
func (c *Conn) Change(was, is Table, del, ins Elements) error {
	err := c.Do(func(k *nftables.Conn) error {
		b := newBatch(k, is)
		b.change(was)
		for _, m := range is.Maps {
			b.take(m, del[m.Name])
			b.put(m, ins[m.Name])
		}
		b.remove(was)
		return b.flush()
	})
	if err != nil {
		return fmt.Errorf("nftables table %q: %w", is.Name, err)
	}
	return nil
}

// change writes the chains that differ and the elements that are fixed.
func (b *batch) change(was Table) {
	if len(was.Chains) > 0 && len(was.Chains) == len(b.t.Chains) && &was.Chains[0] == &b.t.Chains[0] {
		return // the very same
	}
	old, maps := map[string]Chain{}, map[string]Map{}
	for _, ch := range was.Chains {
		old[ch.Name] = ch
	}
	for _, m := range was.Maps {
		maps[m.Name] = m
	}
	for _, m := range b.t.Maps {
		if _, ok := maps[m.Name]; !ok {
			b.addMap(m)
		}
	}
	var differ []Chain
	for _, ch := range b.t.Chains {
		o, ok := old[ch.Name]
		if ok && slices.EqualFunc(o.Rules, ch.Rules, func(a, b Rule) bool { return a.String() == b.String() }) {
			continue
		}
		differ = append(differ, ch)
		if !ok {
			b.addChain(ch)
		}
		if !b.t.keeps(ch.Name) {
			b.empty(ch.Name) // an earlier engine may have left one of this name
		}
	}
	for _, ch := range differ {
		if !b.t.keeps(ch.Name) {
			b.fill(ch)
		}
	}
	for _, m := range b.t.Maps {
		b.take(m, missing(maps[m.Name].Fixed, m.Fixed))
		b.put(m, missing(m.Fixed, maps[m.Name].Fixed))
	}
}

// remove takes away the chains and maps that are no more.
func (b *batch) remove(was Table) {
	is := map[string]bool{}
	for _, ch := range b.t.Chains {
		is[ch.Name] = true
	}
	for _, ch := range was.Chains {
		if !b.t.keeps(ch.Name) && !is[ch.Name] {
			b.delChain(ch.Name)
		}
	}
	for _, m := range was.Maps {
		if !slices.ContainsFunc(b.t.Maps, func(o Map) bool { return o.Name == m.Name }) {
			b.delMap(m.Name)
		}
	}
}
