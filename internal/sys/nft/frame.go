package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Claim is where a frame on a bridge says whose address its sender has.
type Claim int

// The claims. A neighbour advertisement is IPv6's answer of ARP.
const (
	IPv4Source Claim = iota
	ARPSender
	IPv6Source
	Advertised
)

// claims are the look-ups of each claim: what the frame has to be, and where the
// address stands. The text is as nft(8) prints it.
var claims = map[Claim]struct {
	kind, text string
	is         []expr.Any
	load       expr.Payload
}{
	IPv4Source: {text: "ip saddr", is: ethertype(0x0800),
		load: expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}},
	ARPSender: {text: "arp saddr ip", is: []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2}, compare(expr.CmpOpEq, []byte{0x08, 0x06})},
		load: expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4}},
	IPv6Source: {text: "ip6 saddr", is: ethertype(0x86dd),
		load: expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}},
	Advertised: {kind: "icmpv6 type nd-neighbor-advert ", text: "@th,64,128", is: append(append(ethertype(0x86dd),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, compare(expr.CmpOpEq, []byte{unix.IPPROTO_ICMPV6})),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, compare(expr.CmpOpEq, []byte{136})),
		load: expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: 16}},
}

func ethertype(n uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg1}, compare(expr.CmpOpEq, []byte{byte(n >> 8), byte(n)})}
}

// Claims matches frames whose sender claims an address of the set.
func Claims(c Claim, set Map) Stmt {
	at := claims[c]
	load := at.load
	load.DestRegister = reg1
	return Stmt{text: fmt.Sprintf("%s%s @%s", at.kind, at.text, set.Name),
		exprs: append(append([]expr.Any(nil), at.is...), &load, &expr.Lookup{SourceRegister: reg1, SetName: set.Name})}
}

// NotOwned matches frames, which Claims has matched, that came in by a link that
// does not have the address in the set, whose key is a Link and an address.
func NotOwned(c Claim, set Map) Stmt {
	at := claims[c]
	load := at.load
	load.DestRegister = reg32a + 4
	return Stmt{text: fmt.Sprintf("iifname . %s != @%s", at.text, set.Name), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, &load,
		&expr.Lookup{SourceRegister: reg1, SetName: set.Name, Invert: true},
	}}
}

// IIfLike matches packets that came in by a link whose name begins with prefix.
func IIfLike(prefix string) Stmt {
	return Stmt{text: fmt.Sprintf("iifname %q", strings.TrimRight(prefix, "*")+"*"),
		exprs: []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, compare(expr.CmpOpEq, []byte(prefix))}}
}
