package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func resolver(t testing.TB) *Resolver {
	r := New(nil)
	t.Cleanup(func() { r.Close() })
	return r
}

func TestServe(t *testing.T) {
	r := resolver(t)
	s := start(t, r, newBook(), from(serve(t, "127.0.0.1:0", gives("192.0.2.1"))))
	for _, network := range []string{"udp", "tcp"} {
		got := ips(s.must(ask("WEB", dns.TypeA), network))
		slices.Sort(got)
		if !slices.Equal(got, []string{"10.5.0.2", "10.5.0.3"}) {
			t.Errorf("%s: %v", network, got)
		}
		// The host's server, on the host's loopback, which the container does not see.
		if got := ips(s.must(ask("x.example", dns.TypeA), network)); !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("%s: forwarded: %v", network, got)
		}
	}
	r.Update("c", from(serve(t, "127.0.0.1:0", gives("192.0.2.2"))))
	if got := ips(s.must(ask("x.example", dns.TypeA), "udp")); !slices.Equal(got, []string{"192.0.2.2"}) {
		t.Errorf("after Update: %v", got)
	}
}

// What a container listens on at port 53 is its own, of every address.
func TestPort53IsTheContainers(t *testing.T) {
	s := start(t, resolver(t), newBook(), Upstream{})
	for _, at := range []string{"0.0.0.0:53", "127.0.0.1:53", "127.0.0.11:53"} {
		var pc net.PacketConn
		var l net.Listener
		err := s.ns.Do(func() (err error) {
			if pc, err = net.ListenPacket("udp4", at); err != nil {
				return err
			}
			l, err = net.Listen("tcp4", at)
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		for _, network := range []string{"udp", "tcp"} {
			if got := ips(s.must(ask("both", dns.TypeA), network)); !slices.Equal(got, []string{"10.5.0.4"}) {
				t.Errorf("beside %s: %s: %v", at, network, got)
			}
		}
		if at != "127.0.0.11:53" { // and it is reached at its own addresses
			_ = pc.SetReadDeadline(time.Now().Add(patience))
			if err := s.ns.Do(func() error {
				c, err := net.Dial("udp4", "127.0.0.1:53")
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("mine"))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 10)
			if n, _, err := pc.ReadFrom(buf); err != nil || string(buf[:n]) != "mine" {
				t.Errorf("%s: %q, %v", at, buf[:n], err)
			}
		}
		pc.Close()
		l.Close()
	}
}

// Servers of --dns are asked from the container's namespace.
func TestServersInTheContainer(t *testing.T) {
	r := resolver(t)
	s := start(t, r, newBook(), Upstream{})
	var pc net.PacketConn
	if err := s.ns.Do(func() (err error) { pc, err = net.ListenPacket("udp4", "127.0.0.1:5300"); return err }); err != nil {
		t.Fatal(err)
	}
	inside := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(gives("192.0.2.3")(q, false)) })}
	started := make(chan struct{})
	inside.NotifyStartedFunc = func() { close(started) }
	go inside.ActivateAndServe()
	<-started
	defer inside.Shutdown()
	r.Update("c", Upstream{Servers: []Server{{netip.MustParseAddrPort("127.0.0.1:5300"), true}}})
	if got := ips(s.must(ask("x.example", dns.TypeA), "udp")); !slices.Equal(got, []string{"192.0.2.3"}) {
		t.Errorf("%v", got)
	}
}

// The engine is away: questions wait in the sockets that somebody else holds.
func TestQuestionsWaitForTheEngine(t *testing.T) {
	first := resolver(t)
	s := start(t, first, newBook(), Upstream{})
	first.Close()
	type result struct {
		m   *dns.Msg
		err error
	}
	results := make(chan result, 2)
	inside := make(chan struct{}, 2)
	for _, network := range []string{"udp", "tcp"} {
		go func() {
			var c dns.Client
			var conn *dns.Conn
			err := s.ns.Do(func() (err error) {
				c = dns.Client{Net: network, Timeout: patience}
				conn, err = c.Dial(Address.String() + ":53")
				if err == nil {
					err = conn.WriteMsg(ask("web", dns.TypeA))
				}
				return err
			})
			inside <- struct{}{}
			if err != nil {
				results <- result{nil, err}
				return
			}
			defer conn.Close()
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			m, err := conn.ReadMsg()
			results <- result{m, err}
		}()
	}
	<-inside
	<-inside
	own := Held(append([]*os.File{os.Stdin}, s.files...), s.ns)
	if len(own) != 2 {
		t.Fatalf("held: %v", own)
	}
	if err := resolver(t).Serve("c", own, newBook(), Upstream{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := <-results; got.err != nil || len(got.m.Answer) != 2 {
			t.Errorf("%v, %v", got.m, got.err)
		}
	}
}

// A monitor of before holds no sockets: they are made anew, beside those that somebody
// still holds.
func TestListenAgain(t *testing.T) {
	r := resolver(t)
	s := start(t, r, newBook(), Upstream{})
	old := s.files
	defer func() {
		for _, f := range old {
			f.Close()
		}
	}()
	var err error
	if s.files, err = r.Listen(s.ns); err != nil {
		t.Fatal(err)
	}
	if err := r.Serve("c", s.files, newBook(), Upstream{}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if m := s.must(ask("web", dns.TypeA), network); len(m.Answer) != 2 {
			t.Errorf("%s: %v", network, m)
		}
	}
}

func TestHeldOfOthers(t *testing.T) {
	r := resolver(t)
	a, b := start(t, r, newBook(), Upstream{}), start(t, r, newBook(), Upstream{})
	published, err := net.Listen("tcp4", "127.0.0.11:0")
	if err != nil {
		t.Fatal(err)
	}
	defer published.Close()
	f, err := published.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, files := range [][]*os.File{nil, {f}, {f, f}, a.files[:1], {a.files[0], a.files[0], f}, b.files} {
		if own := Held(files, a.ns); own != nil {
			t.Errorf("%v were taken for ours", own)
		}
	}
	if own := Held(slices.Concat([]*os.File{f}, b.files, a.files), a.ns); !slices.Equal(own, a.files) {
		t.Errorf("%v", own)
	}
	if err := r.Serve("d", []*os.File{f}, newBook(), Upstream{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Serve: %v", err)
	}
}

func TestForget(t *testing.T) {
	r := resolver(t)
	s := start(t, r, newBook(), from(serve(t, "127.0.0.1:0", silent)))
	var conn net.Conn
	if err := s.ns.Do(func() (err error) { conn, err = net.Dial("tcp4", Address.String()+":53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(framed(packed(t, ask("x.example", dns.TypeA)))); err != nil { // it waits upstream
		t.Fatal(err)
	}
	awaits(t, "the question did not arrive", func() bool { return r.asking.Load() == 1 })
	r.Forget("c")
	r.Forget("c")
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the connection: %v", err)
	}
	awaits(t, "a question is still asked", func() bool { return r.asking.Load() == 0 })
	if m, err := exchange(s.ns, ask("web", dns.TypeA), "udp", 100*time.Millisecond); err == nil {
		t.Errorf("answered: %v", m)
	}
	if err := r.Serve("c", s.files, newBook(), Upstream{}); err != nil {
		t.Fatal(err)
	}
	if m := s.must(ask("web", dns.TypeA), "udp"); len(m.Answer) != 2 {
		t.Errorf("%v", m)
	}
	r.Close()
	if err := r.Serve("c", s.files, newBook(), Upstream{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

// Garbage, silence and too many connections hold up nobody.
func TestHostileClients(t *testing.T) {
	r := resolver(t)
	r.idle = 200 * time.Millisecond
	s := start(t, r, newBook(), Upstream{})
	for i := range 2000 {
		b := make([]byte, rand.IntN(600))
		for j := range b {
			b[j] = byte(rand.Uint32())
		}
		if err := s.ns.Do(func() error {
			c, err := net.Dial("udp4", Address.String()+":53")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(b)
			return err
		}); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range maxConns + 20 {
		if err := s.ns.Do(func() error {
			c, err := net.Dial("tcp4", Address.String()+":53")
			if err == nil {
				conns = append(conns, c)
				_, _ = c.Write([]byte{0xff}) // half a length
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if m := s.must(ask("web", dns.TypeA), "udp"); len(m.Answer) != 2 {
		t.Errorf("%v", m)
	}
	for _, c := range conns { // all of them are ended
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a connection without a question is kept")
		}
	}
	if m := s.must(ask("web", dns.TypeA), "tcp"); len(m.Answer) != 2 {
		t.Errorf("%v", m)
	}
}

// Several questions on one connection.
func TestStream(t *testing.T) {
	s := start(t, resolver(t), newBook(), Upstream{})
	var c net.Conn
	if err := s.ns.Do(func() (err error) { c, err = net.Dial("tcp4", Address.String()+":53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var sent []byte
	for _, name := range []string{"web", "both", "gone"} {
		sent = append(sent, framed(packed(t, ask(name, dns.TypeA)))...)
	}
	for _, b := range sent { // byte by byte
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{2, 1, 0} {
		var size [2]byte
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, size[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		if m := unpacked(t, b); len(m.Answer) != want {
			t.Errorf("%v, want %d addresses", m, want)
		}
	}
}

// Names that come and go, containers that come and go, questions from all sides: no
// wrong answer, and nothing is left.
func TestChurn(t *testing.T) {
	r := resolver(t)
	names := newBook()
	s := start(t, r, names, Upstream{})
	before, goroutines := descriptors(t), runtime.NumGoroutine()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			names.mu.Lock()
			if i%2 == 0 {
				names.addrs["flips"] = addrs("10.5.0.77")
			} else {
				delete(names.addrs, "flips")
			}
			names.mu.Unlock()
			if i%100 == 0 { // another container
				ns := namespace(t)
				files, err := r.Listen(ns)
				if err != nil {
					t.Error(err)
					return
				}
				if err := r.Serve("other", files, names, Upstream{}); err != nil {
					t.Error(err)
				}
				for _, f := range files {
					f.Close()
				}
				if i%200 == 0 {
					r.Forget("other")
				}
				ns.Close()
			}
		}
	})
	for i := range 3000 {
		m := s.must(ask("flips", dns.TypeA), []string{"udp", "udp", "udp", "tcp"}[i%4])
		if got := ips(m); !(slices.Equal(got, []string{"10.5.0.77"}) || m.Rcode == dns.RcodeServerFailure && got == nil) {
			t.Fatal(wrong(m))
		}
		if m := s.must(ask("web", dns.TypeA), "udp"); len(m.Answer) != 2 {
			t.Fatal(wrong(m))
		}
	}
	close(stop)
	wg.Wait()
	r.Forget("other")
	awaits(t, "descriptors or goroutines are left", func() bool {
		return descriptors(t) <= before && runtime.NumGoroutine() <= goroutines+1
	})
}

// BenchmarkListen is what a start of a container pays.
func BenchmarkListen(b *testing.B) {
	r := resolver(b)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		ns := namespace(b)
		b.StartTimer()
		files, err := r.Listen(ns)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Serve("c", files, newBook(), Upstream{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		r.Forget("c")
		for _, f := range files {
			f.Close()
		}
		ns.Close()
		b.StartTimer()
	}
}

// BenchmarkAnswer is one question after the other over the socket, among containers.
func BenchmarkAnswer(b *testing.B) {
	for _, among := range []int{1, 100} {
		b.Run(fmt.Sprintf("among=%d", among), func(b *testing.B) {
			r := resolver(b)
			s := start(b, r, newBook(), from(serve(b, "127.0.0.1:0", silent)))
			for i := range among - 1 {
				ns := namespace(b)
				files, err := r.Listen(ns)
				if err != nil {
					b.Fatal(err)
				}
				if err := r.Serve(fmt.Sprint(i), files, newBook(), Upstream{}); err != nil {
					b.Fatal(err)
				}
				for _, f := range files {
					f.Close()
				}
			}
			var c net.Conn
			if err := s.ns.Do(func() (err error) { c, err = net.Dial("udp4", Address.String()+":53"); return err }); err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			for i := range 100 { // they wait for an upstream server that is dead
				if _, err := c.Write(packed(b, ask(fmt.Sprint("x", i, ".example"), dns.TypeA))); err != nil {
					b.Fatal(err)
				}
			}
			raw, buf := packed(b, ask("web", dns.TypeA)), make([]byte, 512)
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				if _, err := c.Write(raw); err != nil {
					b.Fatal(err)
				}
				for {
					if n, err := c.Read(buf); err != nil {
						b.Fatal(err)
					} else if n > 1 && buf[0] == raw[0] && buf[1] == raw[1] {
						break
					}
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "µs/median")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "µs/99%")
		})
	}
}

// BenchmarkMemory is what a served container costs.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		const n = 1000
		r := resolver(b)
		ns := namespace(b)
		names, up := newBook(), Upstream{}
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc + m.StackInuse
		}
		var files [][]*os.File
		for range n {
			f, err := r.Listen(ns)
			if err != nil {
				b.Fatal(err)
			}
			files = append(files, f)
		}
		before, goroutines := heap(), runtime.NumGoroutine()
		for i, f := range files {
			if err := r.Serve(fmt.Sprint(i), f, names, up); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((float64(heap())-float64(before))/n, "B/container")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "goroutines")
		r.Close()
		for _, fs := range files {
			for _, f := range fs {
				f.Close()
			}
		}
	}
}
