package dns

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the table in a container's namespace. Docker's is called
// "docker-dns"; who looks at it is told whose it is.
const tableName = "escale-dns"

// redirect leads what is sent to port 53 of Address to the ports, in the
// namespace of the calling thread. A table that is there already is replaced.
func redirect(udp, tcp uint16) error {
	err := write(udp, tcp, false)
	if errors.Is(err, unix.EEXIST) {
		err = write(udp, tcp, true)
	}
	if err != nil {
		return fmt.Errorf("nftables table %q: %w", tableName, err)
	}
	return nil
}

// write makes the table in one transaction.
func write(udp, tcp uint16, replace bool) error {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	if replace {
		c.AddTable(t)
		c.DelTable(t)
	}
	c.CreateTable(t)
	policy := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityNATDest, Policy: &policy,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: rule(unix.IPPROTO_UDP, udp)})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: rule(unix.IPPROTO_TCP, tcp)})
	err = c.Flush()
	if replace || err != nil {
		// When something was deleted the kernel holds up the close until no packet
		// can see it, which takes 10 ms and more.
		go c.CloseLasting()
		return err
	}
	return c.CloseLasting()
}

// rule is "ip daddr 127.0.0.11 PROTO dport 53 dnat to 127.0.0.11:PORT".
func rule(proto byte, port uint16) []expr.Any {
	const reg = unix.NFT_REG_1
	address := Address.AsSlice()
	load := func(base expr.PayloadBase, offset, n uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: n}
	}
	is := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, 16, 4), is(address),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, is([]byte{proto}),
		load(expr.PayloadBaseTransportHeader, 2, 2), is(binaryutil.BigEndian.PutUint16(53)),
		&expr.Immediate{Register: reg, Data: address},
		&expr.Immediate{Register: unix.NFT_REG_2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: unix.NFT_REG_2, Specified: true},
	}
}
