package nft

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: reg1 is 16 bytes long, and the four-byte registers of
// linux/netfilter/nf_tables.h overlay it and those after it, which is how rows of
// fields are built.
const (
	reg1   = unix.NFT_REG_1
	reg32a = 8 // NFT_REG32_00, the first four bytes of reg1
)

// ifname is a link's name as the kernel compares it, 16 bytes.
func ifname(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

// protocol is a protocol of the transport layer as nft(8) calls it.
func protocol(number uint8) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	default:
		return fmt.Sprint(number)
	}
}

func compare(op expr.CmpOp, data []byte) *expr.Cmp {
	return &expr.Cmp{Op: op, Register: reg1, Data: data}
}

func not(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

func iface(key expr.MetaKey, word, name string, op expr.CmpOp) Stmt {
	return Stmt{
		text:  fmt.Sprintf("%s %s%q", word, not(op), name),
		exprs: []expr.Any{&expr.Meta{Key: key, Register: reg1}, compare(op, ifname(name))},
	}
}

// IIf matches packets that came in by the link called name.
func IIf(name string) Stmt { return iface(expr.MetaKeyIIFNAME, "iifname", name, expr.CmpOpEq) }

// NotIIf matches packets that came in by another link.
func NotIIf(name string) Stmt { return iface(expr.MetaKeyIIFNAME, "iifname", name, expr.CmpOpNeq) }

// OIf matches packets that go out by the link called name.
func OIf(name string) Stmt { return iface(expr.MetaKeyOIFNAME, "oifname", name, expr.CmpOpEq) }

// NotOIf matches packets that go out by another link.
func NotOIf(name string) Stmt { return iface(expr.MetaKeyOIFNAME, "oifname", name, expr.CmpOpNeq) }

// IIfIn and IIfNotIn match packets by whether the link by which they came in is
// in the set, whose key is a Link.
func IIfIn(set Map) Stmt { return linkIn(set, false) }

// IIfNotIn is the contrary of IIfIn.
func IIfNotIn(set Map) Stmt { return linkIn(set, true) }

func linkIn(set Map, invert bool) Stmt {
	word := ""
	if invert {
		word = "!= "
	}
	return Stmt{text: fmt.Sprintf("iifname %s@%s", word, set.Name), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Lookup{SourceRegister: reg1, SetName: set.Name, Invert: invert},
	}}
}

// IIfVerdict and OIfVerdict do what map m, from a Link to a Verdict, says of the
// link by which the packet came in, or goes out.
func IIfVerdict(m Map) Stmt { return linkVerdict(expr.MetaKeyIIFNAME, "iifname", m) }

// OIfVerdict is IIfVerdict for the link by which the packet goes out.
func OIfVerdict(m Map) Stmt { return linkVerdict(expr.MetaKeyOIFNAME, "oifname", m) }

func linkVerdict(key expr.MetaKey, word string, m Map) Stmt {
	return Stmt{text: fmt.Sprintf("%s vmap @%s", word, m.Name), exprs: []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Lookup{SourceRegister: reg1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: m.Name},
	}}
}

// header says where the addresses are in the header of a family.
type header struct {
	word         string
	proto        byte
	size         uint32 // of an address, in bytes
	saddr, daddr uint32 // offsets
}

var (
	header4 = header{"ip", unix.NFPROTO_IPV4, 4, 12, 16}
	header6 = header{"ip6", unix.NFPROTO_IPV6, 16, 8, 24}
)

func headerOf(a netip.Addr) header {
	if a.Is4() {
		return header4
	}
	return header6
}

func address(source bool, p netip.Prefix, op expr.CmpOp) Stmt {
	p = p.Masked()
	h := headerOf(p.Addr())
	a := p.Addr().AsSlice()
	word, offset := "daddr", h.daddr
	if source {
		word, offset = "saddr", h.saddr
	}
	text, n := p.String(), uint32((p.Bits()+7)/8)
	if p.IsSingleIP() {
		text = p.Addr().String()
	}
	// nft(8) compares whole bytes where the prefix ends on one.
	load := &expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}
	exprs := []expr.Any{load}
	if p.Bits()%8 != 0 {
		load.Len, n = h.size, h.size
		mask := make([]byte, h.size)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		exprs = append(exprs, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: h.size, Mask: mask, Xor: make([]byte, h.size)})
	}
	return Stmt{text: fmt.Sprintf("%s %s %s%s", h.word, word, not(op), text), proto: h.proto, exprs: append(exprs, compare(op, a[:n]))}
}

// From matches packets whose source address is in p, which has at least one bit.
func From(p netip.Prefix) Stmt { return address(true, p, expr.CmpOpEq) }

// NotFrom matches packets of p's family whose source address is not in p.
func NotFrom(p netip.Prefix) Stmt { return address(true, p, expr.CmpOpNeq) }

// To matches packets whose destination address is in p.
func To(p netip.Prefix) Stmt { return address(false, p, expr.CmpOpEq) }

// NotTo matches packets of p's family whose destination address is not in p.
func NotTo(p netip.Prefix) Stmt { return address(false, p, expr.CmpOpNeq) }

// Only4 and Only6 match the packets of one family.
func Only4() Stmt { return only("ipv4", unix.NFPROTO_IPV4) }

// Only6 is Only4 for IPv6.
func Only6() Stmt { return only("ipv6", unix.NFPROTO_IPV6) }

func only(word string, proto byte) Stmt { return Stmt{text: "meta nfproto " + word, proto: proto} }

// Protocol matches packets of a protocol of the transport layer.
func Protocol(number uint8) Stmt {
	return Stmt{text: "meta l4proto " + protocol(number), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, compare(expr.CmpOpEq, []byte{number}),
	}}
}

// ToLocal matches packets whose destination is an address of this host.
func ToLocal() Stmt {
	return Stmt{text: "fib daddr type local", exprs: []expr.Any{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}}
}

func ct(key expr.CtKey, text string, bits uint32) Stmt {
	return Stmt{text: text, exprs: []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}}
}

// Established matches packets of connections that were let through before, and
// those related to them.
func Established() Stmt {
	return ct(expr.CtKeySTATE, "ct state established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// Translated matches packets of connections whose destination was changed:
// IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
func Translated() Stmt { return ct(expr.CtKeySTATUS, "ct status dnat", 1<<5) }

func verdict(kind expr.VerdictKind, text, chain string) Stmt {
	return Stmt{text: text, exprs: []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

// Accept lets the packet go on to the next chain of the hook.
func Accept() Stmt { return verdict(expr.VerdictAccept, "accept", "") }

// Drop drops the packet.
func Drop() Stmt { return verdict(expr.VerdictDrop, "drop", "") }

// Return goes on after the jump to this chain.
func Return() Stmt { return verdict(expr.VerdictReturn, "return", "") }

// Jump goes to another chain of the table and comes back at its end.
func Jump(chain string) Stmt { return verdict(expr.VerdictJump, "jump "+chain, chain) }

// Masquerade gives the packet the address of the link by which it leaves.
func Masquerade() Stmt { return Stmt{text: "masquerade", exprs: []expr.Any{&expr.Masq{}}} }

// Source gives the packet the source address a.
func Source(a netip.Addr) Stmt {
	h := headerOf(a)
	return Stmt{text: fmt.Sprintf("snat %s to %s", h.word, a), proto: h.proto, exprs: []expr.Any{
		&expr.Immediate{Register: reg1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(h.proto), RegAddrMin: reg1},
	}}
}

// key loads the fields of a packet that make the key of m: destination address,
// protocol and port of the transport layer.
func key(m Map) (text string, exprs []expr.Any) {
	words := make([]string, len(m.Key))
	reg := uint32(reg32a)
	for i, t := range m.Key {
		switch t {
		case Addr4, Addr6:
			h := header4
			if t == Addr6 {
				h = header6
			}
			words[i] = h.word + " daddr"
			exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: h.daddr, Len: h.size})
		case Proto:
			words[i] = "meta l4proto"
			exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg})
		case Port:
			words[i] = "th dport"
			exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
		default:
			panic(fmt.Sprintf("nft: no field of a packet for the key of %q", m.Name))
		}
		reg += uint32(t.size() / 4)
	}
	return strings.Join(words, " . "), exprs
}

// ToOneOf matches packets whose destination is in the set.
func ToOneOf(set Map) Stmt {
	text, exprs := key(set)
	return Stmt{text: text + " @" + set.Name, proto: protoOf(set.Key), exprs: append(exprs,
		&expr.Lookup{SourceRegister: reg32a, SetName: set.Name})}
}

// ToVerdict does what map m says of the packet's destination.
func ToVerdict(m Map) Stmt {
	text, exprs := key(m)
	return Stmt{text: text + " vmap @" + m.Name, proto: protoOf(m.Key), exprs: append(exprs,
		&expr.Lookup{SourceRegister: reg32a, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: m.Name})}
}

// protoOf is the family that a row of fields belongs to.
func protoOf(types []Type) byte {
	switch types[0] {
	case Addr4:
		return unix.NFPROTO_IPV4
	case Addr6:
		return unix.NFPROTO_IPV6
	default:
		return 0
	}
}

// Translate sends the packet to the address and port that map m holds for it;
// the value of m is an address and a port. Packets not in m go on.
func Translate(m Map) Stmt {
	text, exprs := key(m)
	s := translation(m, expr.Lookup{SourceRegister: reg32a, SetName: m.Name})
	s.text, s.exprs = fmt.Sprintf("dnat %s to %s map @%s", s.text, text, m.Name), append(exprs, s.exprs...)
	return s
}

// translation looks up in m where the packet goes and sends it there; the text
// is the family only.
func translation(m Map, look expr.Lookup) Stmt {
	h := header4
	if m.Value[0] == Addr6 {
		h = header6
	}
	look.DestRegister, look.IsDestRegSet = reg1, true
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(h.proto), RegAddrMin: reg1, RegProtoMin: reg32a + h.size/4, Specified: true}
	return Stmt{text: h.word, proto: h.proto, exprs: []expr.Any{&look, nat}}
}

// SpreadTo sends each new connection to the next of these addresses, which are of one family
// and not none. Ports stay, and so do protocols that have none.
func SpreadTo(to []netip.Addr) Stmt {
	h := headerOf(to[0])
	m := Map{Key: []Type{Mark}, Value: []Type{Addr4}}
	if !to[0].Is4() {
		m.Value[0] = Addr6
	}
	words := make([]string, len(to))
	for i, a := range to {
		e := Element{Key: Bytes(uint32(i)), Value: Bytes(a)}
		m.Fixed = append(m.Fixed, e)
		words[i] = fmt.Sprintf("0x%x : %s", e.Key, row(e.Value, m.Value)) // as Spread has it
	}
	return Stmt{
		text: fmt.Sprintf("dnat %s to numgen inc mod %d map { %s }", h.word, len(to), strings.Join(words, ", ")), proto: h.proto, anonymous: &m,
		exprs: []expr.Any{
			&expr.Numgen{Register: reg1, Modulus: uint32(len(to)), Type: unix.NFT_NG_INCREMENTAL},
			&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(h.proto), RegAddrMin: reg1},
		},
	}
}

// Spread sends each new connection to the next of these places, which are of one
// family and not none.
func Spread(to []netip.AddrPort) Stmt {
	m := Map{Key: []Type{Mark}, Value: []Type{Addr4, Port}}
	if !to[0].Addr().Is4() {
		m.Value[0] = Addr6
	}
	words := make([]string, len(to))
	for i, t := range to {
		e := Element{Key: Bytes(uint32(i)), Value: Bytes(t.Addr(), t.Port())}
		m.Fixed = append(m.Fixed, e)
		// The library says of maps without a name that their keys begin with the
		// byte that weighs most, and so nft(8) prints them.
		words[i] = fmt.Sprintf("0x%x : %s", e.Key, row(e.Value, m.Value))
	}
	s := translation(m, expr.Lookup{SourceRegister: reg1})
	s.text = fmt.Sprintf("dnat %s to numgen inc mod %d map { %s }", s.text, len(to), strings.Join(words, ", "))
	s.exprs = append([]expr.Any{&expr.Numgen{Register: reg1, Modulus: uint32(len(to)), Type: unix.NFT_NG_INCREMENTAL}}, s.exprs...)
	s.anonymous = &m
	return s
}
