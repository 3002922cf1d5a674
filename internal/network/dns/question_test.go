package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestLocal(t *testing.T) {
	for _, c := range []struct {
		name string
		typ  uint16
		opts []string
		want []string // of addresses; nil: forwarded
	}{
		{name: "web", typ: dns.TypeA, want: []string{"10.5.0.2", "10.5.0.3"}},
		{name: "WeB.", typ: dns.TypeA, want: []string{"10.5.0.2", "10.5.0.3"}},
		{name: "web.MyNet", typ: dns.TypeA, want: []string{"10.5.0.2"}},
		{name: "a_b.c-d", typ: dns.TypeA, want: []string{"10.5.0.5"}},
		{name: "web", typ: dns.TypeAAAA, want: []string{}},
		{name: "web", typ: dns.TypeTXT, want: []string{}},
		{name: "web", typ: dns.TypeMX, want: []string{}},
		{name: "web", typ: dns.TypeSRV, want: []string{}},
		{name: "_http._tcp.web", typ: dns.TypeSRV, want: []string{}},
		{name: "_http._tcp.other", typ: dns.TypeSRV},
		{name: "_http._tcp.web", typ: dns.TypeTXT},
		{name: "http.tcp.web", typ: dns.TypeSRV},
		{name: "both", typ: dns.TypeA, want: []string{"10.5.0.4"}},
		{name: "both", typ: dns.TypeAAAA, want: []string{"fd00::4"}},
		{name: "both", typ: dns.TypeANY, want: []string{"10.5.0.4", "fd00::4"}},
		{name: "gone", typ: dns.TypeA, want: []string{}},
		{name: "other", typ: dns.TypeA},
		{name: "other", typ: dns.TypeA, opts: []string{"edns0", "ndots:1"}, want: []string{}},
		{name: "other", typ: dns.TypeTXT, opts: []string{"ndots:1"}},
		{name: "other.example", typ: dns.TypeA, opts: []string{"ndots:1"}},
		{name: `we\.b`, typ: dns.TypeA},
		{name: ".", typ: dns.TypeNS},
	} {
		q := asked(t, ask(c.name, c.typ), false)
		b := q.local(newBook(), &Upstream{Options: c.opts})
		if (b == nil) != (c.want == nil) {
			t.Errorf("%s %s: forwarded %v", c.name, dns.TypeToString[c.typ], b == nil)
			continue
		}
		if b == nil {
			continue
		}
		m := unpacked(t, b)
		got := ips(m)
		slices.Sort(got)
		if !slices.Equal(got, c.want) || m.Rcode != dns.RcodeSuccess || !m.RecursionAvailable || !m.Response || m.Id != q.msg.Id || m.Truncated {
			t.Errorf("%s %s: %v", c.name, dns.TypeToString[c.typ], m)
		}
		for _, rr := range m.Answer {
			if rr.Header().Name != q.msg.Question[0].Name || rr.Header().Ttl != ttl {
				t.Errorf("%s: %v", c.name, rr)
			}
		}
	}
}

func TestOrderOfAnswers(t *testing.T) {
	first := map[string]int{}
	for range 200 {
		m := unpacked(t, asked(t, ask("web", dns.TypeA), false).local(newBook(), &Upstream{}))
		first[ips(m)[0]]++
	}
	if len(first) != 2 || first["10.5.0.2"] < 50 || first["10.5.0.3"] < 50 {
		t.Errorf("first in the answer: %v", first)
	}
}

func TestReverse(t *testing.T) {
	for name, want := range map[string]string{
		"2.0.5.10.in-addr.arpa": "web.mynet.",
		"2.0.5.10.IN-ADDR.ARPA": "web.mynet.",
		"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa": "both.mynet.",
		"9.0.5.10.in-addr.arpa": "", "0.5.10.in-addr.arpa": "", "02.0.5.10.in-addr.arpa": "", "2.0.5.266.in-addr.arpa": "",
		"2.0.5.10.in-addr.arpa.example": "", "in-addr.arpa": "", "ip6.arpa": "",
		"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.g.ip6.arpa":   "",
		"4-0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa": "",
	} {
		b := asked(t, ask(name, dns.TypePTR), false).local(newBook(), &Upstream{})
		got := ""
		if b != nil {
			got = unpacked(t, b).Answer[0].(*dns.PTR).Ptr
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, s := range []string{"10.5.0.2", "fd12:3456:789a:bcde:f012:3456:789a:bcde", "::1"} {
		a := netip.MustParseAddr(s)
		name, err := dns.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := reversed(strings.TrimSuffix(name, ".")); !ok || got != a {
			t.Errorf("%s: %v %v", name, got, ok)
		}
	}
}

func TestLongAnswers(t *testing.T) {
	names := newBook()
	for i := range 300 {
		names.addrs["many"] = append(names.addrs["many"], netip.AddrFrom4([4]byte{10, 5, byte(i / 250), byte(i%250 + 1)}))
	}
	for _, c := range []struct {
		size     int // of EDNS; 0: none
		tcp      bool
		min, max int // of addresses in the answer
	}{{0, false, 20, 31}, {100, false, 20, 31}, {1232, false, 60, 77}, {65535, false, 300, 300}, {0, true, 300, 300}} {
		m := ask("many", dns.TypeA)
		if c.size > 0 {
			m.SetEdns0(uint16(c.size), true)
		}
		b := asked(t, m, c.tcp).local(names, &Upstream{})
		r := unpacked(t, b)
		if n := len(r.Answer); n < c.min || n > c.max || r.Truncated != (n < 300) {
			t.Errorf("%+v: %d addresses, cut off %v, %d bytes", c, n, r.Truncated, len(b))
		}
		if (r.IsEdns0() != nil) != (c.size > 0) || c.size > 0 && !r.IsEdns0().Do() {
			t.Errorf("%+v: EDNS %v", c, r.IsEdns0())
		}
		if limit := max(512, c.size); !c.tcp && len(b) > limit {
			t.Errorf("%+v: %d bytes", c, len(b))
		}
	}
}

func TestRefused(t *testing.T) {
	good := packed(t, ask("web", dns.TypeA))
	change := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	badvers := ask("web", dns.TypeA).SetEdns0(1232, false)
	badvers.IsEdns0().SetVersion(1)
	two := ask("web", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	for _, c := range []struct {
		what  string
		raw   []byte
		rcode int // -1: no answer at all
	}{
		{"empty", nil, -1},
		{"less than a header", good[:11], -1},
		{"an answer", change(func(b []byte) { b[2] |= 0x80 }), -1},
		{"a header", good[:12], dns.RcodeFormatError},
		{"cut off", good[:len(good)-1], dns.RcodeFormatError},
		{"no question", change(func(b []byte) { b[5] = 0 }), dns.RcodeFormatError},
		{"two questions", packed(t, two), dns.RcodeFormatError},
		{"a pointer", change(func(b []byte) { b[12] = 0xc0 }), dns.RcodeFormatError},
		{"an update", change(func(b []byte) { b[2] |= 5 << 3 }), dns.RcodeNotImplemented},
		{"a transfer", packed(t, ask("web", dns.TypeAXFR)), dns.RcodeNotImplemented},
		{"EDNS to come", packed(t, badvers), dns.RcodeBadVers},
	} {
		q, reply := parse(c.raw, false)
		if q != nil {
			t.Errorf("%s: taken", c.what)
			continue
		}
		if reply == nil {
			if c.rcode != -1 {
				t.Errorf("%s: no answer", c.what)
			}
			continue
		}
		m := unpacked(t, reply)
		rcode := m.Rcode
		if m.Id != uint16(c.raw[0])<<8|uint16(c.raw[1]) || !m.Response || rcode != c.rcode || m.Opcode != int(c.raw[2]>>3)&15 {
			t.Errorf("%s: %v", c.what, m)
		}
	}
}

func TestClasses(t *testing.T) {
	m := ask("web", dns.TypeTXT)
	m.Question[0].Qclass = dns.ClassCHAOS
	if b := asked(t, m, false).local(newBook(), &Upstream{}); b != nil {
		t.Errorf("class CH: %v", unpacked(t, b))
	}
}

// FuzzQuestion gives any bytes to what stands behind the sockets: it answers or
// does not, and what it answers is well formed, fits, and has the question's number.
func FuzzQuestion(f *testing.F) {
	for _, m := range []*dns.Msg{ask("web", dns.TypeA), ask("both", dns.TypeANY), ask("2.0.5.10.in-addr.arpa", dns.TypePTR), ask("x.example", dns.TypeSRV).SetEdns0(4096, true)} {
		f.Add(packed(f, m), false)
	}
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), true)
	names := newBook()
	for i := range 500 {
		names.addrs["web"] = append(names.addrs["web"], netip.AddrFrom4([4]byte{10, 6, byte(i / 250), byte(i%250 + 1)}))
	}
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		raw = raw[:min(len(raw), 65535)]
		b := newBox(t, names, Upstream{})
		q, reply := parse(raw, tcp)
		limit := 512
		if q != nil {
			limit = q.size
			if q.end <= headerLen || q.end > len(raw) {
				t.Fatalf("the question ends at %d", q.end)
			}
			if reply = q.local(names, b.up.Load()); reply == nil {
				reply = b.forward(q) // nobody to ask
			}
		}
		if reply == nil {
			return
		}
		if len(reply) > max(limit, 512) && len(reply) > len(raw) {
			t.Fatalf("%d bytes, %d can be taken", len(reply), limit)
		}
		m := unpacked(t, reply)
		if !m.Response || m.Id != uint16(raw[0])<<8|uint16(raw[1]) {
			t.Fatalf("%v", m)
		}
	})
}

// FuzzReply gives any bytes as what an upstream server sends.
func FuzzReply(f *testing.F) {
	q := ask("x.example", dns.TypeA)
	m := new(dns.Msg).SetReply(q)
	for i := range 60 {
		m.Answer = append(m.Answer, &dns.A{Hdr: header("x.example.", dns.TypeA), A: net.IPv4(10, 0, 0, byte(i))})
	}
	f.Add(packed(f, m))
	f.Add(packed(f, new(dns.Msg).SetRcode(q, dns.RcodeNameError)))
	raw := packed(f, q)
	f.Fuzz(func(t *testing.T, reply []byte) {
		if len(reply) > 1 {
			reply[0], reply[1] = raw[0], raw[1]
		}
		end, _ := questionEnd(raw)
		if !answers(reply, raw[:end]) {
			return
		}
		got := fit(reply, asked(t, q, false))
		if len(got) > 512 || len(got) < headerLen || got[0] != raw[0] || got[1] != raw[1] {
			t.Fatalf("%x", got)
		}
		if len(got) != len(reply) && got[2]&0x02 == 0 {
			t.Fatalf("cut off and does not say so: %x", got)
		}
	})
}

func BenchmarkLocal(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("names=%d", n), func(b *testing.B) {
			names := newBook()
			for i := range n {
				names.addrs[fmt.Sprint("c", i)] = addrs("10.5.0.9")
			}
			raw := packed(b, ask("web", dns.TypeA))
			up := &Upstream{}
			b.ReportAllocs()
			for b.Loop() {
				q, _ := parse(raw, false)
				if q.local(names, up) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}
