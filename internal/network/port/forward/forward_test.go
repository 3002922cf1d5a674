package forward

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// hold takes [::]:p as a started container does.
func hold(t *testing.T, proto string, p uint16) (Port, *os.File) {
	t.Helper()
	netnstest.Root(t)
	s := port.Spec{Container: network.MustParsePort("80/" + proto), Host: netip.IPv6Unspecified(), First: p, Last: p}
	m, files, err := port.NewAllocator().Hold([]port.Spec{s}, port.To{V4: netip.MustParseAddr("127.0.0.2"), Forwarded: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files[0].Close() })
	return Port{Proto: m[0].Number(), Host: m[0].Host, To: m[0].To}, files[0]
}

func newForwarder(t *testing.T) *Forwarder {
	f := New(slog.New(slog.DiscardHandler))
	t.Cleanup(f.Close)
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// echo is a container: it says its name, then what it hears, until the client
// has said all.
func echo(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, addr)
				_, _ = io.Copy(c, c)
				fmt.Fprint(c, "end")
			}()
		}
	}()
	return l
}

func dial(t *testing.T, p uint16) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp6", fmt.Sprintf("[::1]:%d", p), 5*time.Second)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c.(*net.TCPConn)
}

func TestTCP(t *testing.T) {
	p, held := hold(t, "tcp", 7001)
	echo(t, "127.0.0.2:80")
	f := newForwarder(t)
	must(t, f.Add(p, held))
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c := dial(t, 7001)
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite() // the other direction goes on
			}()
			got, err := io.ReadAll(c)
			if want := "127.0.0.2:80\n" + string(data) + "end"; err != nil || string(got) != want {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
			}
		})
	}
	wg.Wait()
	f.Remove(p)
	if f.Len() != 0 {
		t.Errorf("%d sockets are served", f.Len())
	}
	if c, err := net.DialTimeout("tcp6", "[::1]:7001", time.Second); err == nil {
		c.Close()
		t.Error("taken back, the port takes connections")
	}
	held.Close()
	p, held = hold(t, "tcp", 7001) // what was forwarded does not keep the port
	must(t, f.Add(p, held))
	if line, err := bufio.NewReader(dial(t, 7001)).ReadString('\n'); err != nil {
		t.Errorf("held again: %q, %v", line, err)
	}
}

// A container that does not listen refuses as if it were reached directly, and
// one that goes ends what is under way.
func TestTCPRefusesAndEnds(t *testing.T) {
	p, held := hold(t, "tcp", 7002)
	f := newForwarder(t)
	must(t, f.Add(p, held))
	if c, err := net.DialTimeout("tcp6", "[::1]:7002", 5*time.Second); err == nil {
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("nobody listens: %v, want a reset", err)
		}
	}
	echo(t, "127.0.0.2:80")
	c := dial(t, 7002)
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	f.Remove(p)
	if _, err := in.ReadByte(); err == nil {
		t.Error("the connection outlives its port")
	}
	f.Remove(p)
}

// Connections wait while there is no engine, and the next one takes them.
func TestNextEngine(t *testing.T) {
	p, held := hold(t, "tcp", 7003)
	echo(t, "127.0.0.2:80")
	first := newForwarder(t)
	must(t, first.Add(p, held))
	first.Close()
	must(t, first.Add(p, held))
	if first.Len() != 0 {
		t.Error("a closed forwarder took a port")
	}
	c := dial(t, 7003) // accepted by the kernel
	second := newForwarder(t)
	must(t, second.Add(p, held))
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "127.0.0.2:80\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestRotation(t *testing.T) {
	p, held := hold(t, "tcp", 7004)
	q := p
	q.To = netip.MustParseAddrPort("127.0.0.3:80")
	echo(t, p.To.String())
	echo(t, q.To.String())
	f := newForwarder(t)
	must(t, f.Add(p, held))
	must(t, f.Add(q, nil))
	must(t, f.Add(q, nil))
	ask := func() string { // "" when the connection is refused
		c, err := net.DialTimeout("tcp6", "[::1]:7004", 5*time.Second)
		if err != nil {
			return ""
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		line, _ := bufio.NewReader(c).ReadString('\n')
		return strings.TrimSpace(line)
	}
	if a, b, c := ask(), ask(), ask(); a == b || a != c {
		t.Errorf("connections went to %s, %s, %s", a, b, c)
	}
	open := bufio.NewReader(dial(t, 7004))
	line, err := open.ReadString('\n')
	must(t, err)
	in := p
	if strings.HasPrefix(line, p.To.String()) {
		in = q
		f.Rest(p)
	} else {
		f.Rest(q)
	}
	for range 3 {
		if got := ask(); got != in.To.String() {
			t.Errorf("a connection went to %s, which is out", got)
		}
	}
	f.Rest(in)
	if got := ask(); got != "" {
		t.Errorf("nobody is in, and %s answered", got)
	}
	f.Remove(in)
	if f.Len() != 1 {
		t.Errorf("%d sockets, want 1", f.Len())
	}
	must(t, f.Add(p, nil))
	must(t, f.Add(q, nil))
	if got := ask(); got == "" {
		t.Error("back in rotation nobody answers")
	}
}

// udpEcho answers with its name, who asks, and what it heard.
func udpEcho(t *testing.T, addr string) {
	t.Helper()
	c, err := net.ListenPacket("udp4", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, largest)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(fmt.Sprintf("%s %s %s", addr, from, buf[:n])), from)
		}
	}()
}

// askUDP sends from c and returns who answered, as whom it saw c, and the rest.
func askUDP(t *testing.T, c net.Conn, what string) []string {
	t.Helper()
	_, err := c.Write([]byte(what))
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, largest)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("asked %.20q: %v", what, err)
	}
	return strings.SplitN(string(buf[:n]), " ", 3)
}

func dialUDP(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestUDP(t *testing.T) {
	p, held := hold(t, "udp", 7005)
	udpEcho(t, "127.0.0.2:80")
	f := newForwarder(t)
	must(t, f.Add(p, held))
	// A connected socket hears answers from the address to which it spoke only.
	a, b := dialUDP(t, "[::1]:7005"), dialUDP(t, "[::1]:7005")
	x, y := askUDP(t, a, "x"), askUDP(t, b, "y")
	if x[2] != "x" || y[2] != "y" || x[1] == y[1] {
		t.Errorf("answers %q and %q", x, y)
	}
	if again := askUDP(t, a, strings.Repeat("long", 8000)); again[1] != x[1] || len(again[2]) != 32000 {
		t.Errorf("the flow is another: %.60q, was %q", again, x)
	}
	q := p
	q.To = netip.MustParseAddrPort("127.0.0.3:80")
	udpEcho(t, "127.0.0.3:80")
	must(t, f.Add(q, nil))
	f.Rest(p)
	if got := askUDP(t, a, "x"); got[0] != "127.0.0.3:80" {
		t.Errorf("the flow still goes to %s, which is out", got[0])
	}
	f.Remove(p)
	f.Remove(q)
	held.Close()
	hold(t, "udp", 7005)
}

func TestUDPFlowsEnd(t *testing.T) {
	p, held := hold(t, "udp", 7006)
	udpEcho(t, "127.0.0.2:80")
	stop, u, err := newUDP(held, newTargets(p.To), slog.New(slog.DiscardHandler), 2*time.Second)
	must(t, err)
	defer stop()
	flows := func() int {
		u.mu.Lock()
		defer u.mu.Unlock()
		return len(u.flows)
	}
	for i := range maxFlows + 10 {
		askUDP(t, dialUDP(t, "[::1]:7006"), fmt.Sprint(i))
		if n := flows(); n > maxFlows {
			t.Fatalf("%d flows at once", n)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); flows() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d flows are remembered", flows())
		}
	}
}

func FuzzArrived(f *testing.F) {
	f.Add(pktinfo(client{at: netip.MustParseAddr("fe80::1"), link: 3}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, oob []byte) {
		if a, ok := arrived(oob); ok && !a.IsValid() {
			t.Errorf("%x is from nowhere", oob)
		}
	})
}

func BenchmarkTCP(b *testing.B) {
	netnstest.Root(b)
	s := port.Spec{Container: network.MustParsePort("80/tcp"), Host: netip.IPv6Unspecified(), First: 7007, Last: 7007}
	m, files, err := port.NewAllocator().Hold([]port.Spec{s}, port.To{V4: netip.MustParseAddr("127.0.0.2"), Forwarded: true}, "")
	if err != nil {
		b.Fatal(err)
	}
	defer files[0].Close()
	l, err := net.Listen("tcp", "127.0.0.2:80")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	f := New(slog.New(slog.DiscardHandler))
	defer f.Close()
	if err := f.Add(Port{Proto: unix.IPPROTO_TCP, Host: m[0].Host, To: m[0].To}, files[0]); err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("tcp6", "[::1]:7007")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
