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
// linux/netfilter/nf_tables.h overlay it, which is how rows of fields are built.
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

func cmp(op expr.CmpOp, data []byte) *expr.Cmp {
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
		exprs: []expr.Any{&expr.Meta{Key: key, Register: reg1}, cmp(op, ifname(name))},
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

// Offsets in the IPv4 header.
const (
	saddr = 12
	daddr = 16
)

func address(offset uint32, word string, p netip.Prefix, op expr.CmpOp) Stmt {
	p = p.Masked()
	a := p.Addr().As4()
	text, n := p.String(), uint32((p.Bits()+7)/8)
	if p.Bits() == 32 {
		text = p.Addr().String()
	}
	// nft(8) compares whole bytes where the prefix ends on one.
	exprs := []expr.Any{&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}}
	if p.Bits()%8 != 0 {
		exprs[0].(*expr.Payload).Len, n = 4, 4
		mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
		exprs = append(exprs, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask, Xor: make([]byte, 4)})
	}
	return Stmt{text: fmt.Sprintf("ip %s %s%s", word, not(op), text), exprs: append(exprs, cmp(op, a[:n]))}
}

// From matches packets whose source address is in p (IPv4, at least one bit).
func From(p netip.Prefix) Stmt { return address(saddr, "saddr", p, expr.CmpOpEq) }

// NotFrom matches packets whose source address is not in p.
func NotFrom(p netip.Prefix) Stmt { return address(saddr, "saddr", p, expr.CmpOpNeq) }

// To matches packets whose destination address is in p.
func To(p netip.Prefix) Stmt { return address(daddr, "daddr", p, expr.CmpOpEq) }

// ToLocal matches packets whose destination is an address of this host.
func ToLocal() Stmt {
	return Stmt{text: "fib daddr type local", exprs: []expr.Any{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		cmp(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}}
}

func ct(key expr.CtKey, text string, bits uint32) Stmt {
	return Stmt{text: text, exprs: []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		cmp(expr.CmpOpNeq, make([]byte, 4)),
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

// Jump goes to another chain of the table and comes back at its end.
func Jump(chain string) Stmt { return verdict(expr.VerdictJump, "jump "+chain, chain) }

// Masquerade gives the packet the address of the link by which it leaves.
func Masquerade() Stmt { return Stmt{text: "masquerade", exprs: []expr.Any{&expr.Masq{}}} }

// Translate sends the packet to the address and port that map m holds for it;
// the value of m is an address and a port. Packets not in m go on.
func Translate(m Map) Stmt {
	words := make([]string, len(m.Key))
	var exprs []expr.Any
	for i, t := range m.Key {
		reg := uint32(reg32a + i)
		switch t {
		case Addr:
			words[i] = "ip daddr"
			exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: daddr, Len: 4})
		case Proto:
			words[i] = "meta l4proto"
			exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg})
		case Port:
			words[i] = "th dport"
			exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
		}
	}
	exprs = append(exprs,
		&expr.Lookup{SourceRegister: reg32a, DestRegister: reg1, IsDestRegSet: true, SetName: m.Name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: reg32a + 1, Specified: true},
	)
	return Stmt{text: fmt.Sprintf("dnat ip to %s map @%s", strings.Join(words, " . "), m.Name), exprs: exprs}
}
