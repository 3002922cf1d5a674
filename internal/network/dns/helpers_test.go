package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/netns"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// book is Names by hand.
type book struct {
	mu     sync.Mutex
	addrs  map[string][]netip.Addr
	names  map[netip.Addr]string
	closed bool // no way to the outside
}

func (b *book) Addrs(name string) ([]netip.Addr, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[name]
	return a, ok
}

func (b *book) Name(a netip.Addr) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.names[a]
	return n, ok
}

func (b *book) External() bool { return !b.closed }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// newBook knows "web", with two addresses, "both", with one of each family, and "gone", with none.
func newBook() *book {
	return &book{
		addrs: map[string][]netip.Addr{
			"web": addrs("10.5.0.2", "10.5.0.3"), "web.mynet": addrs("10.5.0.2"),
			"both": addrs("10.5.0.4", "fd00::4"), "gone": nil, "a_b.c-d": addrs("10.5.0.5"),
		},
		names: map[netip.Addr]string{
			netip.MustParseAddr("10.5.0.2"): "web.mynet", netip.MustParseAddr("fd00::4"): "both.mynet",
		},
	}
}

// ask makes a question.
func ask(name string, typ uint16) *dns.Msg { return new(dns.Msg).SetQuestion(dns.Fqdn(name), typ) }

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpacked(t testing.TB, b []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

// newBox is a container without sockets, for what needs none.
func newBox(t testing.TB, names Names, up Upstream) *box {
	r := New(nil)
	b := &box{r: r, names: names, udp: -1, tcp: -1}
	b.up.Store(&up)
	b.ctx, b.cancel = t.Context(), func() {}
	return b
}

// asked is a parsed question.
func asked(t testing.TB, m *dns.Msg, tcp bool) *question {
	t.Helper()
	q, reply := parse(packed(t, m), tcp)
	if q == nil {
		t.Fatalf("refused: %x", reply)
	}
	return q
}

// upstream is a name server at an address of this host, by UDP and TCP.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int32
}

// serve starts an upstream server; handle gives the answer, nil for none.
func serve(t testing.TB, at string, handle func(q *dns.Msg, tcp bool) *dns.Msg) *upstream {
	t.Helper()
	var pc net.PacketConn
	var l net.Listener
	var err error
	for range 20 { // the port of one may be taken for the other
		if pc, err = net.ListenPacket("udp", at); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
	for _, s := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		tcp := s.Listener != nil
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			u.asked.Add(1)
			if m := handle(q, tcp); m != nil {
				_ = w.WriteMsg(m) // who asked may have gone
			}
		})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

// gives answers every question with this address.
func gives(ip string) func(q *dns.Msg, tcp bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(ip)})
		return m
	}
}

func silent(*dns.Msg, bool) *dns.Msg { return nil }

func from(us ...*upstream) Upstream {
	var up Upstream
	for _, u := range us {
		up.Servers = append(up.Servers, Server{Addr: u.addr})
	}
	return up
}

// namespace is a network namespace with the loopback link up.
func namespace(t testing.TB) *netns.Handle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := ns.Do(loopbackUp); err != nil {
		t.Fatal(err)
	}
	return ns
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// served is a container that is served: its namespace and the caller's files.
type served struct {
	t     testing.TB
	ns    *netns.Handle
	files []*os.File
}

func start(t testing.TB, r *Resolver, names Names, up Upstream) *served {
	t.Helper()
	s := &served{t: t, ns: namespace(t)}
	var err error
	if s.files, err = r.Listen(s.ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.letGo)
	if err := r.Serve("c", s.files, names, up); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *served) letGo() {
	for _, f := range s.files {
		f.Close()
	}
}

// exchange asks as a program in the container does.
func exchange(ns *netns.Handle, m *dns.Msg, network string, timeout time.Duration) (reply *dns.Msg, err error) {
	err = ns.Do(func() error {
		c := dns.Client{Net: network, Timeout: timeout}
		reply, _, err = c.Exchange(m, Address.String()+":53")
		return err
	})
	return reply, err
}

// must asks and wants an answer.
func (s *served) must(m *dns.Msg, network string) *dns.Msg {
	s.t.Helper()
	reply, err := exchange(s.ns, m, network, patience)
	if err != nil {
		s.t.Fatalf("%s by %s: %v", m.Question[0].Name, network, err)
	}
	return reply
}

// ips are the addresses in an answer.
func ips(m *dns.Msg) (list []string) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			list = append(list, rr.A.String())
		case *dns.AAAA:
			list = append(list, rr.AAAA.String())
		}
	}
	return list
}

// awaits waits until a condition holds, which others are at work on.
func awaits(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

var errWrong = errors.New("a wrong answer")

func wrong(m *dns.Msg) error { return fmt.Errorf("%w: %v", errWrong, m) }
