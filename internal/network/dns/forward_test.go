package dns

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// forwarded asks upstream for a name.
func forwarded(t *testing.T, b *box, m *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	r := unpacked(t, b.forward(asked(t, m, tcp)))
	if r.Id != m.Id || !slices.Equal(r.Question, m.Question) {
		t.Errorf("answer to another question: %v", r)
	}
	return r
}

func TestForward(t *testing.T) {
	u := serve(t, "127.0.0.1:0", func(q *dns.Msg, tcp bool) *dns.Msg {
		switch q.Question[0].Name {
		case "none.example.":
			return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		case "long.example.":
			m := new(dns.Msg).SetReply(q)
			for i := range 100 {
				m.Answer = append(m.Answer, &dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.IPv4(10, 0, 0, byte(i))})
			}
			if !tcp {
				m.Truncate(512)
			}
			return m
		}
		return gives("192.0.2.1")(q, tcp)
	})
	b := newBox(t, newBook(), from(u))
	for _, tcp := range []bool{false, true} {
		if r := forwarded(t, b, ask("x.Example", dns.TypeA), tcp); !slices.Equal(ips(r), []string{"192.0.2.1"}) {
			t.Errorf("%v", r)
		}
		if r := forwarded(t, b, ask("none.example", dns.TypeA), tcp); r.Rcode != dns.RcodeNameError {
			t.Errorf("%v", r)
		}
	}
	if r := forwarded(t, b, ask("long.example", dns.TypeA), true); len(r.Answer) != 100 || r.Truncated {
		t.Errorf("by TCP: %d addresses, cut off %v", len(r.Answer), r.Truncated)
	}
	if r := forwarded(t, b, ask("long.example", dns.TypeA), false); len(r.Answer) == 0 || len(r.Answer) > 31 || !r.Truncated {
		t.Errorf("by UDP: %d addresses, cut off %v", len(r.Answer), r.Truncated)
	}
	// The client takes more than the server sends by UDP.
	if r := forwarded(t, b, ask("long.example", dns.TypeA).SetEdns0(4096, false), false); len(r.Answer) != 100 || r.Truncated {
		t.Errorf("by UDP with EDNS: %d addresses, cut off %v", len(r.Answer), r.Truncated)
	}
	if r := forwarded(t, b, ask("long.example", dns.TypeA).SetEdns0(1232, false), false); len(r.Answer) < 40 || len(r.Answer) > 77 || !r.Truncated {
		t.Errorf("by UDP with little EDNS: %d addresses, cut off %v", len(r.Answer), r.Truncated)
	}
}

func TestUpstreamsInOrder(t *testing.T) {
	refuses := func(rcode int) func(q *dns.Msg, tcp bool) *dns.Msg {
		return func(q *dns.Msg, tcp bool) *dns.Msg { return new(dns.Msg).SetRcode(q, rcode) }
	}
	one, two := serve(t, "127.0.0.1:0", gives("192.0.2.1")), serve(t, "127.0.0.1:0", gives("192.0.2.2"))
	bad, worse := serve(t, "127.0.0.1:0", refuses(dns.RcodeServerFailure)), serve(t, "127.0.0.1:0", refuses(dns.RcodeRefused))
	nobody := &upstream{addr: netip.MustParseAddrPort("127.0.0.1:1")}
	for _, c := range []struct {
		what string
		up   Upstream
		want string // empty: SERVFAIL
	}{
		{"the first", from(one, two), "192.0.2.1"},
		{"the first fails", from(bad, two), "192.0.2.2"},
		{"two fail", from(bad, worse, one), "192.0.2.1"},
		{"nobody there", from(nobody, two), "192.0.2.2"},
		{"all fail", from(bad, worse, nobody), ""},
		{"the fourth", from(bad, worse, nobody, one), ""},
		{"none", Upstream{}, ""},
		{"ourselves", Upstream{Servers: []Server{{netip.AddrPortFrom(Address, 53), true}}}, ""},
	} {
		for _, tcp := range []bool{false, true} {
			r := forwarded(t, newBox(t, newBook(), c.up), ask("x.example", dns.TypeA), tcp)
			if c.want == "" && r.Rcode != dns.RcodeServerFailure || c.want != "" && !slices.Equal(ips(r), []string{c.want}) {
				t.Errorf("%s: %v", c.what, r)
			}
		}
	}
	inside := newBook()
	inside.closed = true
	if r := forwarded(t, newBox(t, inside, from(one)), ask("x.example", dns.TypeA), false); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("from an internal network: %v", r)
	}
}

// A first server that is dead costs the first question a moment, and then nobody.
func TestDeadServerIsRemembered(t *testing.T) {
	dead, alive := serve(t, "127.0.0.1:0", silent), serve(t, "127.0.0.1:0", gives("192.0.2.2"))
	b := newBox(t, newBook(), from(dead, alive))
	b.r.hedge, b.r.timeout = 50*time.Millisecond, patience
	for range 3 {
		if r := forwarded(t, b, ask("x.example", dns.TypeA), false); !slices.Equal(ips(r), []string{"192.0.2.2"}) {
			t.Fatalf("%v", r)
		}
		b.r.hedge = patience // on a busy machine the other may take its time
	}
	if n := dead.asked.Load(); n != 1 {
		t.Errorf("the dead server was asked %d times", n)
	}
	// When its rest is over it is asked again, and the next at once.
	key := sight(b, Server{Addr: dead.addr})
	b.r.health.mu.Lock()
	b.r.health.failed[key] = time.Now().Add(-rest)
	b.r.health.mu.Unlock()
	if r := forwarded(t, b, ask("x.example", dns.TypeA), false); !slices.Equal(ips(r), []string{"192.0.2.2"}) {
		t.Fatalf("%v", r)
	}
	awaits(t, "the dead server was not asked again", func() bool { return dead.asked.Load() == 2 })
}

func TestServerThatCameBack(t *testing.T) {
	one, two := serve(t, "127.0.0.1:0", gives("192.0.2.1")), serve(t, "127.0.0.1:0", gives("192.0.2.2"))
	b := newBox(t, newBook(), from(one, two))
	b.r.health.tell(b, Server{Addr: one.addr}, errors.New("was away"))
	if r := forwarded(t, b, ask("x.example", dns.TypeA), false); !slices.Equal(ips(r), []string{"192.0.2.2"}) {
		t.Fatalf("%v", r)
	}
	b.r.health.tell(b, Server{Addr: one.addr}, nil)
	if r := forwarded(t, b, ask("x.example", dns.TypeA), false); !slices.Equal(ips(r), []string{"192.0.2.1"}) {
		t.Fatalf("%v", r)
	}
}

// Answers with another number, name or type are not taken, and do not keep the
// right one from being taken.
func TestForgedAnswers(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				return
			}
			send := func(change func(m *dns.Msg), ip string) {
				m := gives(ip)(q, false)
				m.Question = slices.Clone(m.Question)
				change(m)
				b, _ := m.Pack()
				_, _ = pc.WriteTo(b, from)
			}
			send(func(m *dns.Msg) { m.Id++ }, "6.6.6.1")
			send(func(m *dns.Msg) { m.Question[0].Name = "y.example." }, "6.6.6.2")
			send(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }, "6.6.6.3")
			send(func(m *dns.Msg) { m.Question = nil }, "6.6.6.4")
			send(func(m *dns.Msg) { m.Response = false }, "6.6.6.5")
			_, _ = pc.WriteTo([]byte("nonsense"), from)
			send(func(*dns.Msg) {}, "192.0.2.7")
		}
	}()
	b := newBox(t, newBook(), from(&upstream{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}))
	m := ask("x.example", dns.TypeA)
	if r := forwarded(t, b, m, false); !slices.Equal(ips(r), []string{"192.0.2.7"}) {
		t.Errorf("%v", r)
	}
}

// The number under which a question goes on is not the client's.
func TestNumbersAreOurs(t *testing.T) {
	var mu sync.Mutex
	seen := map[uint16]bool{}
	u := serve(t, "127.0.0.1:0", func(q *dns.Msg, tcp bool) *dns.Msg {
		mu.Lock()
		seen[q.Id] = true
		mu.Unlock()
		return gives("192.0.2.1")(q, tcp)
	})
	b := newBox(t, newBook(), from(u))
	m := ask("x.example", dns.TypeA)
	for range 20 {
		forwarded(t, b, m, false)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) < 15 {
		t.Errorf("%d numbers for 20 questions", len(seen))
	}
}

// A client that goes on asking while nobody upstream answers is refused in the end, and
// what the networks know is answered all the same.
func TestManyQuestions(t *testing.T) {
	u := serve(t, "127.0.0.1:0", silent)
	b := newBox(t, newBook(), from(u))
	b.r.hedge, b.r.timeout = patience, patience
	for range maxAsking {
		if !b.admit() {
			t.Fatal("refused early")
		}
	}
	r := unpacked(t, b.answer(packed(t, ask("x.example", dns.TypeA))))
	if r.Rcode != dns.RcodeRefused {
		t.Errorf("%v", r)
	}
	if r := unpacked(t, b.answer(packed(t, ask("web", dns.TypeA)))); len(r.Answer) != 2 {
		t.Errorf("%v", r)
	}
	other := newBox(t, newBook(), from(u))
	other.r = b.r
	if !other.admit() {
		t.Error("another container is refused, too")
	}
}

func TestFit(t *testing.T) {
	q := asked(t, ask("x.example", dns.TypeA), false)
	junk := append(slices.Clone(q.raw), bytes.Repeat([]byte{0xff}, 600)...)
	junk[2] |= 0x80
	junk[7] = 9 // records that are none
	r := unpacked(t, fit(junk, q))
	if !r.Truncated || len(r.Answer) != 0 || len(r.Question) != 1 {
		t.Errorf("%v", r)
	}
}

// A name below a search domain is the outside's if that knows it, else what is before
// the domain may be a name on the networks. An outside that is dead slows it down once.
func TestSearchDomains(t *testing.T) {
	u := serve(t, "127.0.0.1:0", func(q *dns.Msg, tcp bool) *dns.Msg {
		if q.Question[0].Name == "both.corp.example." {
			return gives("192.0.2.9")(q, tcp)
		}
		return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	})
	up := from(u)
	up.Search = []string{"lab", "Corp.Example."}
	b := newBox(t, newBook(), up)
	for _, c := range []struct {
		name  string
		want  int // addresses
		rcode int
	}{{"web.corp.example", 2, 0}, {"WEB.LAB", 2, 0}, {"web.mynet.lab", 1, 0}, {"both.corp.example", 1, 0}, {"web.other.example", 0, dns.RcodeNameError}, {"none.corp.example", 0, dns.RcodeNameError}} {
		m := unpacked(t, b.answer(packed(t, ask(c.name, dns.TypeA))))
		if len(m.Answer) != c.want || m.Rcode != c.rcode || c.name == "both.corp.example" && ips(m)[0] != "192.0.2.9" {
			t.Errorf("%s: %v", c.name, m)
		}
	}
	dead := serve(t, "127.0.0.1:0", silent)
	up.Servers = from(dead).Servers
	b = newBox(t, newBook(), up)
	b.r.timeout = 50 * time.Millisecond
	for range 5 {
		if m := unpacked(t, b.answer(packed(t, ask("web.lab", dns.TypeA)))); len(m.Answer) != 2 {
			t.Errorf("%v", m)
		}
	}
	if n := dead.asked.Load(); n != 1 {
		t.Errorf("a dead server was asked %d times", n)
	}
}
