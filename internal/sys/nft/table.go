// Package nft writes whole nftables tables and the elements of their maps, each
// change as one transaction, over netlink. A table is described by values that
// also print themselves in the syntax of nft(8), so that what is sent to the
// kernel can be read, compared and tested.
//
// Tables are of the family ip.
package nft

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Table is an nftables table: all of it, as it should be.
type Table struct {
	Name   string
	Maps   []Map
	Chains []Chain
}

// Map is a named map from a key to a value, each a row of fields.
type Map struct {
	Name  string
	Key   []Type
	Value []Type
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
	exprs []expr.Any
}

// Type is the type of one field of a map's key or value.
type Type int

// The types of fields.
const (
	Addr  Type = iota // IPv4 address
	Proto             // protocol of the transport layer
	Port              // port of the transport layer
)

func (t Type) data() nftables.SetDatatype {
	switch t {
	case Addr:
		return nftables.TypeIPAddr
	case Proto:
		return nftables.TypeInetProto
	default:
		return nftables.TypeInetService
	}
}

// Element is one entry of a map: its fields one after the other, each filled up
// with zeros to four bytes (see Bytes).
type Element struct {
	Key   string
	Value string
}

// Bytes makes the key or the value of an Element. A field is a netip.Addr
// (IPv4), a uint8 (a protocol) or a uint16 (a port).
func Bytes(fields ...any) string {
	var b []byte
	for _, f := range fields {
		switch f := f.(type) {
		case netip.Addr:
			a := f.As4()
			b = append(b, a[:]...)
		case uint8:
			b = append(b, f, 0, 0, 0)
		case uint16:
			b = append(b, byte(f>>8), byte(f), 0, 0)
		default:
			panic(fmt.Sprintf("nft: no field of type %T", f))
		}
	}
	return string(b)
}

// Fields is the reverse of Bytes; ok is false when s has not the shape of types.
func Fields(s string, types ...Type) (fields []any, ok bool) {
	if len(s) != 4*len(types) {
		return nil, false
	}
	for i, t := range types {
		b := s[4*i : 4*i+4]
		switch t {
		case Addr:
			fields = append(fields, netip.AddrFrom4([4]byte([]byte(b))))
		case Proto:
			fields = append(fields, b[0])
		case Port:
			fields = append(fields, uint16(b[0])<<8|uint16(b[1]))
		}
	}
	return fields, true
}

func (r Rule) String() string {
	parts := make([]string, len(r))
	for i, s := range r {
		parts[i] = s.text
	}
	return strings.Join(parts, " ")
}

// Exprs is the rule as the kernel gets it.
func (r Rule) Exprs() []expr.Any {
	var all []expr.Any
	for _, s := range r {
		all = append(all, s.exprs...)
	}
	return all
}

// typeNames joins the names of types as nft(8) does.
func typeNames(types []Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.data().Name
	}
	return strings.Join(names, " . ")
}

// String is the table as `nft list table` shows it, without elements.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table ip %s {\n", t.Name)
	gap := ""
	for _, m := range t.Maps {
		fmt.Fprintf(&b, "%s\tmap %s {\n\t\ttype %s : %s\n\t}\n", gap, m.Name, typeNames(m.Key), typeNames(m.Value))
		gap = "\n"
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "%s\tchain %s {\n", gap, c.Name)
		gap = "\n"
		if c.Base != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %s; policy accept;\n", c.Base.Type, c.Base.Hook, c.Base.priority())
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// priority is the priority in the words of nft(8), which knows names for some.
func (b *Base) priority() string {
	switch {
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
