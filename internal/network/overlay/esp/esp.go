// Package esp has the kernel encrypt what networks send from host to host: ESP in transport
// mode (RFC 4303) with AES-GCM (RFC 4106), by states and policies of XFRM
// (Documentation/networking/xfrm). Each network sends its packets from a UDP port of its own,
// by which the policies tell them from those of others; the port they go to is that of all.
// A packet of such a network that comes in unencrypted, or by another network's key, or from a
// host that is not of the network, is dropped by the kernel.
package esp

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Overhead is how many bytes ESP adds to a UDP packet at most, its own filling up to four
// bytes apart: header, initialization vector, two bytes of the trailer, check value.
const Overhead = 8 + 8 + 2 + 16

// The ports from which networks send.
const (
	firstPort = 49152
	ports     = 16384
)

// Port is the UDP port from which a network sends: two networks with the same one cannot be
// on one host.
func Port(vni uint32) uint16 { return uint16(firstPort + vni%ports) }

// Key is one of a network's. The zero Key is none.
type Key struct {
	ID     uint64
	Secret []byte
}

func (k Key) none() bool { return k.ID == 0 || len(k.Secret) == 0 }

// Keys are those of a network: what is sent is encrypted by the current one, and what comes
// may be by any, so that hosts need not change them in the same instant.
type Keys struct{ Previous, Current, Next Key }

// Known tells whether there are any.
func (k Keys) Known() bool { return !k.Current.none() }

func (k Keys) all() []Key {
	return slices.DeleteFunc([]Key{k.Previous, k.Current, k.Next}, Key.none)
}

// Network is what of one is to be encrypted.
type Network struct {
	ID    string
	VNI   uint32
	To    uint16 // UDP port, of all hosts
	Local netip.Addr
	Peers []netip.Addr // hosts; none of them is Local
	Keys  Keys
}

// Kernel is what the kernel has of states and policies. Its methods block for a fraction of
// a millisecond; Del is no error for what is not there.
type Kernel interface {
	States() ([]netlink.XfrmState, error)
	Policies() ([]netlink.XfrmPolicy, error)
	AddState(*netlink.XfrmState) error
	DelState(*netlink.XfrmState) error
	SetPolicy(*netlink.XfrmPolicy) error
	DelPolicy(*netlink.XfrmPolicy) error
}

// Cipher keeps an instance's states and policies. It is used by one goroutine at a time.
type Cipher struct {
	k     Kernel
	owner uint32 // the upper half of each number by which policies find their states
}

// New makes a Cipher of an instance; nothing is touched before Set. Without a kernel it is
// the real one, of the namespace of the calling threads.
func New(instance string, k Kernel) *Cipher {
	if k == nil {
		k = real{}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(instance)) // never fails
	return &Cipher{k: k, owner: (h.Sum32()>>17 | 1<<14) << 16}
}

// reqid is the number that states and policies of a network bear: it says whose they are.
func (c *Cipher) reqid(vni uint32) int { return int(c.owner | uint32(Port(vni))) }

// mine tells whether a number is one of this instance's, and the port of its network.
func (c *Cipher) mine(reqid int) (port uint16, ok bool) {
	return uint16(reqid), uint32(reqid)&^0xffff == c.owner
}

// Set makes states and policies of a network what they are to be, by the difference: what is
// new comes first, so that nothing is lost while keys are exchanged. ErrNone when the
// kernel has no ESP.
func (c *Cipher) Set(n Network) error {
	states, policies, err := c.wanted(n)
	if err != nil {
		return err
	}
	return c.apply(n.VNI, states, policies)
}

// Remove removes all of a network. Idempotent.
func (c *Cipher) Remove(vni uint32) error { return c.apply(vni, nil, nil) }

// Sweep removes what is left of networks that are not among these.
func (c *Cipher) Sweep(vnis []uint32) error {
	known := map[uint16]bool{}
	for _, v := range vnis {
		known[Port(v)] = true
	}
	return c.trim(func(reqid int) bool {
		port, ok := c.mine(reqid)
		return ok && !known[port]
	}, nil, nil)
}

func (c *Cipher) apply(vni uint32, states map[stateKey]netlink.XfrmState, policies map[policyKey]netlink.XfrmPolicy) error {
	if len(states) > 0 || len(policies) > 0 {
		if err := c.add(states, policies); err != nil {
			return err
		}
	}
	reqid := c.reqid(vni)
	return c.trim(func(r int) bool { return r == reqid }, states, policies)
}

// add makes what is not there. What is another program's is not taken.
func (c *Cipher) add(states map[stateKey]netlink.XfrmState, policies map[policyKey]netlink.XfrmPolicy) error {
	have, err := c.k.States()
	if err != nil {
		return fmt.Errorf("XFRM states: %w", err)
	}
	there := map[stateKey]int{}
	for i := range have {
		there[keyOfState(&have[i])] = have[i].Reqid
	}
	for key, s := range states {
		if reqid, ok := there[key]; ok && reqid == s.Reqid {
			continue
		}
		if err := c.k.AddState(&s); err != nil {
			return fmt.Errorf("XFRM state from %s to %s: %w", s.Src, s.Dst, explain(err))
		}
	}
	list, err := c.k.Policies()
	if err != nil {
		return fmt.Errorf("XFRM policies: %w", err)
	}
	is := map[policyKey]netlink.XfrmPolicy{}
	for i := range list {
		is[keyOfPolicy(&list[i])] = list[i]
	}
	for key, p := range policies {
		old, ok := is[key]
		if ok && (len(old.Tmpls) != 1 || old.Tmpls[0].Reqid != p.Tmpls[0].Reqid) {
			return fmt.Errorf("XFRM policy from %s to %s, UDP port %d: another program or engine of this host has one: %w", p.Src, p.Dst, p.SrcPort, errdefs.ErrConflict)
		}
		if ok && old.Tmpls[0].Spi == p.Tmpls[0].Spi && old.Action == p.Action && old.Priority == p.Priority {
			continue
		}
		if err := c.k.SetPolicy(&p); err != nil {
			return fmt.Errorf("XFRM policy from %s to %s: %w", p.Src, p.Dst, explain(err))
		}
	}
	return nil
}

// trim removes of what concerns it what is not wanted: policies first, as without one nothing
// uses a state.
func (c *Cipher) trim(concerns func(reqid int) bool, states map[stateKey]netlink.XfrmState, policies map[policyKey]netlink.XfrmPolicy) error {
	list, err := c.k.Policies()
	if Absent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("XFRM policies: %w", err)
	}
	var errs []error
	for i := range list {
		p := &list[i]
		if _, wanted := policies[keyOfPolicy(p)]; !wanted && len(p.Tmpls) == 1 && concerns(p.Tmpls[0].Reqid) {
			errs = append(errs, c.k.DelPolicy(p))
		}
	}
	have, err := c.k.States()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("XFRM states: %w", err))...)
	}
	for i := range have {
		s := &have[i]
		if _, wanted := states[keyOfState(s)]; !wanted && concerns(s.Reqid) {
			errs = append(errs, c.k.DelState(s))
		}
	}
	return errors.Join(errs...)
}

type stateKey struct {
	src, dst netip.Addr
	spi      uint32
}

func keyOfState(s *netlink.XfrmState) stateKey {
	return stateKey{addr(s.Src), addr(s.Dst), uint32(s.Spi)}
}

type policyKey struct {
	src, dst         netip.Prefix
	srcPort, dstPort int
	dir              netlink.Dir
}

func keyOfPolicy(p *netlink.XfrmPolicy) policyKey {
	return policyKey{prefix(p.Src), prefix(p.Dst), p.SrcPort, p.DstPort, p.Dir}
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), bits)
}

// The order of policies: the kernel takes the one with the smallest number.
const (
	rankPeer = 0x45530001
	rankRest = 0x45530002
)

// wanted are the states and policies of a network.
func (c *Cipher) wanted(n Network) (map[stateKey]netlink.XfrmState, map[policyKey]netlink.XfrmPolicy, error) {
	if !n.Keys.Known() {
		return nil, nil, fmt.Errorf("its keys are not known: %w", errdefs.ErrFailedPrecondition)
	}
	states, policies := map[stateKey]netlink.XfrmState{}, map[policyKey]netlink.XfrmPolicy{}
	state := func(from, to netip.Addr, k Key) (uint32, error) {
		spi, secret, err := derive(k, n.ID, from, to)
		if err != nil {
			return 0, err
		}
		s := netlink.XfrmState{
			Src: from.AsSlice(), Dst: to.AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Spi: int(spi), Reqid: c.reqid(n.VNI),
			Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: secret, ICVLen: 128},
		}
		states[keyOfState(&s)] = s
		return spi, nil
	}
	policy := func(dir netlink.Dir, from, to netip.Prefix, spi uint32, rank int) {
		p := netlink.XfrmPolicy{
			Src: ipNet(from), Dst: ipNet(to), Proto: unix.IPPROTO_UDP, SrcPort: int(Port(n.VNI)), DstPort: int(n.To), Dir: dir, Priority: rank,
			Tmpls: []netlink.XfrmPolicyTmpl{{
				Src: from.Addr().AsSlice(), Dst: to.Addr().AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Spi: int(spi), Reqid: c.reqid(n.VNI),
			}},
		}
		if rank == rankRest {
			p.Action = netlink.XFRM_POLICY_BLOCK
		}
		policies[keyOfPolicy(&p)] = p
	}
	local := single(n.Local)
	for _, peer := range n.Peers {
		for _, k := range n.Keys.all() {
			if _, err := state(peer, n.Local, k); err != nil {
				return nil, nil, err
			}
		}
		spi, err := state(n.Local, peer, n.Keys.Current)
		if err != nil {
			return nil, nil, err
		}
		policy(netlink.XFRM_DIR_OUT, local, single(peer), spi, rankPeer)
		policy(netlink.XFRM_DIR_IN, single(peer), local, 0, rankPeer)
	}
	anywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if n.Local.Is6() {
		anywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	policy(netlink.XFRM_DIR_IN, anywhere, local, 0, rankRest)
	policy(netlink.XFRM_DIR_OUT, local, anywhere, 0, rankRest)
	return states, policies, nil
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// derive makes of a network's key those of one direction between two hosts, which nobody else
// sends with: no value that initializes the cipher is used twice. The first 36 bytes are the
// key and the salt of RFC 4106, the others the index by which the receiver finds it.
func derive(k Key, network string, from, to netip.Addr) (spi uint32, secret []byte, err error) {
	info := fmt.Sprintf("escale esp 1 %d %s %s %s", k.ID, network, from, to)
	raw, err := hkdf.Key(sha256.New, k.Secret, nil, info, 40)
	if err != nil {
		return 0, nil, fmt.Errorf("key of a network: %w", err)
	}
	spi = binary.BigEndian.Uint32(raw[36:])
	if spi < 256 { // reserved: RFC 4303, 2.1
		spi += 256
	}
	return spi, raw[:36], nil
}

// Absent tells whether an error says that the kernel has no XFRM.
func Absent(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT)
}

// explain says in words that the kernel lacks what is needed.
func explain(err error) error {
	if Absent(err) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w (%w)", ErrNone, err)
	}
	return err
}

// ErrNone says that the kernel does not encrypt: NotImplemented.
var ErrNone = errdefs.ErrNotImplemented.WithMessage("this kernel has no ESP with AES-GCM (CONFIG_XFRM_USER, CONFIG_INET_ESP, CONFIG_CRYPTO_GCM)")
