package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
)

// Type is the type of one field of a map's key or value.
type Type int

// The types of fields.
const (
	Addr4   Type = iota // IPv4 address
	Addr6               // IPv6 address
	Proto               // protocol of the transport layer
	Port                // port of the transport layer
	Link                // name of a link
	Mark                // a number of 32 bits
	Verdict             // what is done with the packet, "jump CHAIN"; of values only, and alone
)

func (t Type) data() nftables.SetDatatype {
	switch t {
	case Addr4:
		return nftables.TypeIPAddr
	case Addr6:
		return nftables.TypeIP6Addr
	case Proto:
		return nftables.TypeInetProto
	case Port:
		return nftables.TypeInetService
	case Link:
		return nftables.TypeIFName
	case Mark:
		return nftables.TypeMark
	default:
		return nftables.TypeVerdict
	}
}

// size is how many bytes a field takes: whole registers of four bytes.
func (t Type) size() int {
	switch t {
	case Addr6, Link:
		return 16
	default:
		return 4
	}
}

// Element is one entry of a map: its fields one after the other, each filled up
// with zeros to whole four bytes (see Bytes). A verdict is its text.
type Element struct {
	Key   string
	Value string
}

// Bytes makes the key or the value of an Element. A field is a netip.Addr, a
// uint8 (a protocol), a uint16 (a port), a string (the name of a link) or a
// uint32 (a mark).
func Bytes(fields ...any) string {
	var b []byte
	for _, f := range fields {
		switch f := f.(type) {
		case netip.Addr:
			b = append(b, f.AsSlice()...)
		case uint8:
			b = append(b, f, 0, 0, 0)
		case uint16:
			b = append(b, byte(f>>8), byte(f), 0, 0)
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, f)
		case string:
			b = append(b, ifname(f)...)
		default:
			panic(fmt.Sprintf("nft: no field of type %T", f))
		}
	}
	return string(b)
}

// Fields is the reverse of Bytes; ok is false when s has not the shape of types.
func Fields(s string, types ...Type) (fields []any, ok bool) {
	for _, t := range types {
		if len(s) < t.size() {
			return nil, false
		}
		b := []byte(s[:t.size()])
		s = s[t.size():]
		switch t {
		case Addr4:
			fields = append(fields, netip.AddrFrom4([4]byte(b)))
		case Addr6:
			fields = append(fields, netip.AddrFrom16([16]byte(b)))
		case Proto:
			fields = append(fields, b[0])
		case Port:
			fields = append(fields, binary.BigEndian.Uint16(b))
		case Link:
			fields = append(fields, strings.TrimRight(string(b), "\x00"))
		case Mark:
			fields = append(fields, binary.NativeEndian.Uint32(b))
		default:
			return nil, false
		}
	}
	return fields, s == ""
}

// row is a key or a value as nft(8) prints it.
func row(s string, types []Type) string {
	if len(types) == 1 && types[0] == Verdict {
		return s
	}
	fields, ok := Fields(s, types...)
	if !ok {
		return fmt.Sprintf("%x", s)
	}
	words := make([]string, len(fields))
	for i, f := range fields {
		switch f := f.(type) {
		case string:
			words[i] = fmt.Sprintf("%q", f)
		case uint32:
			words[i] = fmt.Sprintf("0x%08x", f)
		case uint8:
			words[i] = protocol(f)
		default:
			words[i] = fmt.Sprint(f)
		}
	}
	return strings.Join(words, " . ")
}
