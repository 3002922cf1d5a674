// Package nft writes whole nftables tables and the elements of their maps, each
// change as one transaction, over netlink. A table is described by values that
// also print themselves in the syntax of nft(8), so that what is sent to the
// kernel can be read, compared and tested.
package nft

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Family is the family of a table: which packets its chains see.
type Family uint8

// The families.
const (
	Inet   Family = iota // IPv4 and IPv6
	IPv4                 // "ip"
	IPv6                 // "ip6"
	Bridge               // frames that cross a bridge
)

var families = []struct {
	word   string
	number nftables.TableFamily
}{
	Inet: {"inet", nftables.TableFamilyINet}, IPv4: {"ip", nftables.TableFamilyIPv4},
	IPv6: {"ip6", nftables.TableFamilyIPv6}, Bridge: {"bridge", nftables.TableFamilyBridge},
}

// String is the family as nft(8) calls it.
func (f Family) String() string { return families[f].word }

// Ref names a table.
type Ref struct {
	Family Family
	Name   string
}

func (r Ref) table() *nftables.Table {
	return &nftables.Table{Family: families[r.Family].number, Name: r.Name}
}

// Table is an nftables table: all of it, as it should be.
type Table struct {
	Family Family
	Name   string
	// Kept begins the names of chains and sets that are somebody else's: they are
	// made if they are missing, and never changed or removed. Empty: there are none.
	Kept   string
	Maps   []Map
	Chains []Chain
}

// Ref is the table's name.
func (t Table) Ref() Ref { return Ref{t.Family, t.Name} }

func (t Table) keeps(name string) bool { return t.Kept != "" && strings.HasPrefix(name, t.Kept) }

// Map is a named map from a key to a value, each a row of fields; without Value
// it is a set.
type Map struct {
	Name  string
	Key   []Type
	Value []Type
	Fixed []Element // what it holds by its definition, beside what is given from case to case
}

func (m Map) verdicts() bool { return len(m.Value) == 1 && m.Value[0] == Verdict }

func (m Map) word() string {
	if m.Value == nil {
		return "set"
	}
	return "map"
}

// Chain is a chain of a table. Base is nil for one that is only jumped to.
type Chain struct {
	Name  string
	Base  *Base
	Rules []Rule
}

// Base hooks a chain into the kernel's path of a packet; the policy is accept.
type Base struct {
	Type     string // filter, nat
	Hook     string // prerouting, input, forward, output, postrouting
	Priority int
}

// Rule is a list of statements, worked off from left to right.
type Rule []Stmt

// Stmt is one match or action of a rule.
type Stmt struct {
	text  string
	proto byte // the only NFPROTO_ to which the statement applies; 0: all
	exprs []expr.Any
	// anonymous is a map that only this statement uses; its look-up in exprs has
	// no name yet.
	anonymous *Map
}

func (r Rule) String() string {
	parts := make([]string, len(r))
	for i, s := range r {
		parts[i] = s.text
	}
	return strings.Join(parts, " ")
}

// typeNames joins the names of types as nft(8) does.
func typeNames(types []Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.data().Name
	}
	return strings.Join(names, " . ")
}

// String is the table as `nft list table` shows it, with the elements that it
// has by its definition only.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	gap := ""
	for _, m := range t.Maps {
		fmt.Fprintf(&b, "%s\t%s %s {\n\t\ttype %s", gap, m.word(), m.Name, typeNames(m.Key))
		if m.Value != nil {
			fmt.Fprintf(&b, " : %s", typeNames(m.Value))
		}
		b.WriteString("\n")
		if len(m.Fixed) > 0 {
			fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(m.list(), ",\n\t\t\t     "))
		}
		b.WriteString("\t}\n")
		gap = "\n"
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "%s\tchain %s {\n", gap, c.Name)
		gap = "\n"
		if c.Base != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %s; policy accept;\n", c.Base.Type, c.Base.Hook, c.Base.priority(t.Family))
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// list is the fixed elements as text, in the order of nft(8), to which a key is
// a number whose last byte weighs most.
func (m Map) list() []string {
	sorted := slices.SortedFunc(slices.Values(m.Fixed), func(a, b Element) int {
		for i := len(a.Key) - 1; i >= 0; i-- {
			if c := cmp.Compare(a.Key[i], b.Key[i]); c != 0 {
				return c
			}
		}
		return 0
	})
	out := make([]string, len(sorted))
	for i, e := range sorted {
		out[i] = row(e.Key, m.Key)
		if m.Value != nil {
			out[i] += " : " + row(e.Value, m.Value)
		}
	}
	return out
}

// priority is the priority in the words of nft(8), which knows names for some.
func (b *Base) priority(f Family) string {
	switch {
	case f == Bridge && b.Priority == -300:
		return "dstnat"
	case f == Bridge:
		return fmt.Sprint(b.Priority)
	case b.Priority == -300:
		return "raw"
	case b.Priority == -100 && b.Hook == "prerouting":
		return "dstnat"
	case b.Priority == 0:
		return "filter"
	case b.Priority == 100 && b.Hook == "postrouting":
		return "srcnat"
	default:
		return fmt.Sprint(b.Priority)
	}
}
