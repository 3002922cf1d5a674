package dns

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// headerLen is the length of a message's header; RFC 1035, 4.1.1.
const headerLen = 12

// question is a message that asks one thing.
type question struct {
	raw  []byte // the message; shared with who gave it
	end  int    // of the question section in it
	msg  dns.Msg
	name string // in small letters, without the dot at its end
	tcp  bool
	size int // how long the answer may be, in bytes

	// fallback is the answer when nobody outside knows the name: it ends in one of
	// the search domains, and what is before that is a name on the networks.
	fallback []byte
}

// maxUDP is how long an answer by UDP may be at most, in bytes: what the loopback
// link takes in one packet.
const maxUDP = 65000

// parse reads a message. A reply without a question says what is wrong with it;
// neither means that it is not worth an answer.
func parse(raw []byte, tcp bool) (q *question, reply []byte) {
	if len(raw) < headerLen || raw[2]&0x80 != 0 {
		return nil, nil // nothing to answer to, or an answer itself
	}
	end, ok := questionEnd(raw)
	q = &question{raw: raw, end: end, tcp: tcp, size: dns.MinMsgSize}
	switch opcode := int(raw[2]>>3) & 15; {
	case opcode != dns.OpcodeQuery:
		return nil, refusal(raw, end, dns.RcodeNotImplemented)
	case !ok || q.msg.Unpack(raw) != nil || len(q.msg.Question) != 1:
		return nil, refusal(raw, end, dns.RcodeFormatError)
	}
	opt := q.msg.IsEdns0()
	if opt != nil {
		q.size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	if tcp {
		q.size = dns.MaxMsgSize
	}
	if opt != nil && opt.Version() != 0 {
		return nil, q.pack(q.reply(dns.RcodeBadVers))
	}
	if t := q.msg.Question[0].Qtype; t == dns.TypeAXFR || t == dns.TypeIXFR { // many messages long
		return nil, refusal(raw, end, dns.RcodeNotImplemented)
	}
	q.name = strings.ToLower(strings.TrimSuffix(q.msg.Question[0].Name, "."))
	return q, nil
}

// questionEnd tells where the question section of a message ends that has exactly
// one, spelled out as it must be there; else headerLen and false.
func questionEnd(raw []byte) (int, bool) {
	if len(raw) < headerLen || binary.BigEndian.Uint16(raw[4:]) != 1 {
		return headerLen, false
	}
	at := headerLen
	for at < len(raw) && raw[at] != 0 {
		if raw[at] > 63 {
			return headerLen, false
		}
		at += 1 + int(raw[at])
	}
	at += 1 + 4
	if at > len(raw) || at > headerLen+255+4 {
		return headerLen, false
	}
	return at, true
}

// refusal is an answer that says only what is wrong, with as much of the question
// as could be read.
func refusal(raw []byte, end, rcode int) []byte {
	b := append([]byte(nil), raw[:end]...)
	clear(b[4:headerLen])
	if end > headerLen {
		b[5] = 1
	}
	b[2] = b[2]&0x79 | 0x80 // the opcode and "recursion desired" stay
	b[3] = 0x80 | byte(rcode)
	return b
}

// reply is an answer without records.
func (q *question) reply(rcode int) *dns.Msg {
	m := new(dns.Msg).SetRcode(&q.msg, rcode)
	m.RecursionAvailable = true
	if opt := q.msg.IsEdns0(); opt != nil {
		m.SetEdns0(4096, opt.Do())
	}
	return m
}

// pack is an answer as it is sent, cut where it is too long.
func (q *question) pack(m *dns.Msg) []byte {
	m.Truncate(q.size)
	b, err := m.Pack()
	if err != nil {
		return refusal(q.raw, q.end, dns.RcodeServerFailure)
	}
	return b
}

// local answers what the networks know; nil means that it is to be forwarded.
func (q *question) local(names Names, up *Upstream) []byte {
	ask := q.msg.Question[0]
	if ask.Qclass != dns.ClassINET && ask.Qclass != dns.ClassANY {
		return nil
	}
	if ask.Qtype == dns.TypePTR {
		if a, ok := reversed(q.name); ok {
			if name, ok := names.Name(a); ok {
				m := q.reply(dns.RcodeSuccess)
				m.Answer = []dns.RR{&dns.PTR{Hdr: header(ask.Name, dns.TypePTR), Ptr: dns.Fqdn(name)}}
				return q.pack(m)
			}
		}
	}
	if b := q.named(names, q.name); b != nil {
		return b
	}
	// A service of a host that is ours is nobody else's to tell of, and there is none.
	if host, ok := serviceHost(q.name); ok && ask.Qtype == dns.TypeSRV {
		if b := q.named(names, host); b != nil {
			return b
		}
	}
	for _, domain := range up.Search {
		if name, ok := strings.CutSuffix(q.name, "."+strings.ToLower(strings.Trim(domain, "."))); ok && q.fallback == nil {
			q.fallback = q.named(names, name)
		}
	}
	// Who asks for other than whole names first has its resolver add the search
	// domains to what has no dot.
	if (ask.Qtype == dns.TypeA || ask.Qtype == dns.TypeAAAA) && !strings.Contains(q.name, ".") && up.hasNdots() {
		return q.pack(q.reply(dns.RcodeSuccess))
	}
	return nil
}

// serviceHost is the host in the name of a service, "_http._tcp.web"; RFC 2782.
func serviceHost(name string) (string, bool) {
	f := strings.SplitN(name, ".", 3)
	return f[len(f)-1], len(f) == 3 && strings.HasPrefix(f[0], "_") && strings.HasPrefix(f[1], "_")
}

// named answers with the addresses of a name on the networks; nil when it is none.
func (q *question) named(names Names, name string) []byte {
	addrs, known := names.Addrs(name)
	if !known {
		return nil
	}
	m := q.reply(dns.RcodeSuccess)
	m.Answer = records(q.msg.Question[0], addrs)
	return q.pack(m)
}

func (up *Upstream) hasNdots() bool {
	for _, o := range up.Options {
		if o == "ndots" || strings.HasPrefix(o, "ndots:") {
			return true
		}
	}
	return false
}

func header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

// records are the addresses of the family asked for, in no order. Other types have
// none: an answer without records says that the name is there.
func records(ask dns.Question, addrs []netip.Addr) []dns.RR {
	rrs := make([]dns.RR, 0, len(addrs))
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case a.Is4() && (ask.Qtype == dns.TypeA || ask.Qtype == dns.TypeANY):
			rrs = append(rrs, &dns.A{Hdr: header(ask.Name, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && (ask.Qtype == dns.TypeAAAA || ask.Qtype == dns.TypeANY):
			rrs = append(rrs, &dns.AAAA{Hdr: header(ask.Name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	shuffle(rrs)
	return rrs
}

// reversed reads the address in a name that asks for one's name: RFC 1035, 3.5,
// and RFC 3596, 2.5.
func reversed(name string) (a netip.Addr, ok bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return a, false
		}
		var b [4]byte
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil || len(l) > 1 && l[0] == '0' {
				return a, false
			}
			b[3-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return a, false
	}
	var b [16]byte
	for i := range 32 {
		n, err := strconv.ParseUint(rest[2*i:2*i+1], 16, 8)
		if err != nil || i < 31 && rest[2*i+1] != '.' {
			return a, false
		}
		at := 31 - i
		b[at/2] |= byte(n) << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}
