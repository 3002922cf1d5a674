package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Keys of linux/netfilter/nf_tables.h that the library has no names for.
const (
	metaSecpath = 25 // NFT_META_SECPATH
	rtXfrm      = 4  // NFT_RT_XFRM
)

func udp(word string, offset uint32, op expr.CmpOp, port uint16) Stmt {
	s := Protocol(unix.IPPROTO_UDP)
	return Stmt{text: fmt.Sprintf("udp %s %s%d", word, not(op), port), exprs: append(s.exprs,
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		compare(op, binary.BigEndian.AppendUint16(nil, port)))}
}

// ToUDP matches datagrams to a port.
func ToUDP(port uint16) Stmt { return udp("dport", 2, expr.CmpOpEq, port) }

// NotFromUDP matches datagrams from any other port.
func NotFromUDP(port uint16) Stmt { return udp("sport", 0, expr.CmpOpNeq, port) }

// OfVNI matches datagrams, of which it is known that they are of VXLAN, of the network with
// this number: RFC 7348, 5.
func OfVNI(vni uint32) Stmt {
	return Stmt{text: fmt.Sprintf("@th,96,24 0x%x", vni), exprs: []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 3},
		compare(expr.CmpOpEq, []byte{byte(vni >> 16), byte(vni >> 8), byte(vni)}),
	}}
}

// CameClear matches packets that came in without IPsec.
func CameClear() Stmt {
	return Stmt{text: "meta ipsec missing", exprs: []expr.Any{
		&expr.Meta{Key: metaSecpath, Register: reg1}, compare(expr.CmpOpEq, []byte{0}),
	}}
}

// GoesClear matches packets that are to go out without IPsec.
func GoesClear() Stmt {
	return Stmt{text: "rt ipsec missing", exprs: []expr.Any{
		&expr.Rt{Key: rtXfrm, Register: reg1}, compare(expr.CmpOpEq, []byte{0}),
	}}
}
