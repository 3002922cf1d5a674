package overlay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network/overlay"
	"escale.dev/escale/internal/network/overlay/esp"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What containers say to each other, and what a stranger says to them.
const (
	secret   = "for the two of us only. "
	injected = "from a stranger"
)

// key is one of the network's.
func key(n uint64) esp.Key { return esp.Key{ID: n, Secret: bytes.Repeat([]byte{byte(n)}, 32)} }

// A network that is to be encrypted is refused where the kernel does not encrypt, and nothing
// is made.
func TestSealedIsRefused(t *testing.T) {
	d := newAlone()
	if d.Encrypts() == nil {
		t.Skip("this kernel encrypts: TestSealedAcrossHosts shows it")
	}
	of := spec()
	of.Options["encrypted"] = "true"
	if err := d.Check(of); !errors.Is(err, esp.ErrNone) || !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "ESP") {
		t.Errorf("check: %v", err)
	}
	if _, err := d.Create(context.Background(), of); !errors.Is(err, esp.ErrNone) {
		t.Errorf("create: %v", err)
	}
}

// Nothing of what containers of an encrypted network say is seen between hosts, keys are
// exchanged while they talk and nothing is lost, what comes in clear is dropped, and all of it
// goes with the network, after a kill, too.
func TestSealedAcrossHosts(t *testing.T) {
	if err := newAlone().Encrypts(); err != nil {
		t.Skip(err)
	}
	hs := hosts(t, 3, 2)
	a, b, stranger := hs[0], hs[1], hs[2]
	wire := listen(t)
	for i, h := range hs {
		h.must(order{Do: "join", Box: 11 + i})
	}
	first := esp.Keys{Current: key(1), Next: key(2)}
	second := esp.Keys{Previous: key(1), Current: key(2), Next: key(3)}
	third := esp.Keys{Previous: key(2), Current: key(3), Next: key(4)}
	a.must(order{Do: "peers", Peers: at(b, 12)})
	if got := a.must(order{Do: "entries"}); got != "" {
		t.Errorf("without keys there is a way to other hosts:\n%s", got)
	}
	a.must(order{Do: "keys", Peers: at(b, 12), Keys: first})
	b.must(order{Do: "keys", Peers: at(a, 11), Keys: first})
	a.reach(11, 12, true)
	b.reach(12, 11, true)
	if got := a.must(order{Do: "mtu", Box: 11}); got != "1416" {
		t.Errorf("the MTU inside is %s, of 1500 outside", got)
	}
	for _, size := range []int{1388, 1389} { // with headers of IPv4 and UDP 1416, and one more
		_, err := a.try(order{Do: "call", Box: 11, Addr: "udp 10.90.0.12:80", Size: size})
		if whole := size == 1388; (err == nil) != whole {
			t.Errorf("a datagram of %d bytes that must not be taken apart: %v", size, err)
		}
	}

	a.must(order{Do: "flow", Box: 11, Addr: "10.90.0.12:80"})
	for i, k := range []esp.Keys{second, third} {
		hs[i%2].must(order{Do: "keys", Peers: other(hs, i%2), Keys: k}) // now one is first, now the other
		time.Sleep(300 * time.Millisecond)
		hs[1-i%2].must(order{Do: "keys", Peers: other(hs, 1-i%2), Keys: k})
		time.Sleep(300 * time.Millisecond)
	}
	got := a.must(order{Do: "flown"})
	t.Logf("while keys were exchanged twice: %s", got)
	if sent, back, _ := strings.Cut(got, " "); sent != back || sent == "0" {
		t.Errorf("datagrams sent and answered: %s", got)
	}

	// A stranger says in clear what it could say if it were on the network.
	for _, from := range []int{0, int(esp.Port(4099))} {
		stranger.must(order{Do: "inject", Box: 11, Addr: a.addr, Size: from})
	}
	a.reach(11, 12, true)
	if n := a.must(order{Do: "heard"}); n != "0" {
		t.Errorf("%s datagrams of a stranger were heard", n)
	}
	// Somebody takes from the kernel what it encrypts by: it is there again, and nothing went
	// clear meanwhile.
	a.must(order{Do: "flow", Box: 11, Addr: "10.90.0.12:80"})
	a.must(order{Do: "flush"})
	a.reach(11, 12, true)
	b.must(order{Do: "flush"})
	b.reach(12, 11, true)
	a.must(order{Do: "flown"})
	seen := wire.close()
	t.Logf("on the wire: %+v", seen)
	if seen.esp == 0 || seen.clear > 0 || seen.secret > 0 || seen.stranger == 0 {
		t.Errorf("on the wire: %+v, want nothing but ESP and what the stranger says", seen)
	}

	// The engine is killed: what goes across goes on, and its successor knows what is whose.
	a.must(order{Do: "successor"})
	a.reach(11, 12, true)
	a.must(order{Do: "keys", Peers: at(b, 12), Keys: third})
	a.reach(11, 12, true)
	for _, h := range hs[:2] {
		if got := h.must(order{Do: "xfrm"}); got != "4 4" {
			t.Errorf("%s has states and policies: %s, want 3 in and 1 out, of 1 peer", h.addr, got)
		}
		h.must(order{Do: "peers"})
		if got := h.must(order{Do: "xfrm"}); got != "0 0" {
			t.Errorf("%s without peers has states and policies: %s", h.addr, got)
		}
	}
	a.must(order{Do: "keys", Peers: at(b, 12), Keys: third})
	a.must(order{Do: "leave", Box: 11})
	a.must(order{Do: "forgetful"})
	if got := a.must(order{Do: "xfrm"}); got != "0 0" {
		t.Errorf("of a network that an engine that was killed had, there are %s", got)
	}
}

// A stranger is heard where nothing is encrypted: the test above could fail.
func TestStrangerIsHeard(t *testing.T) {
	hs := hosts(t, 2, 0)
	a, stranger := hs[0], hs[1]
	a.must(order{Do: "join", Box: 11})
	a.must(order{Do: "peers", Peers: at(stranger, 12)})
	stranger.must(order{Do: "inject", Box: 11, Addr: a.addr})
	for range 100 {
		if a.must(order{Do: "heard"}) == "1" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("what comes in clear is not heard")
}

// other are the containers of the other of two hosts.
func other(hs []*host, i int) []overlay.Peer { return at(hs[1-i], 12-i) }

// flow begins to send a datagram every few milliseconds, until "flown" is asked.
func (s *site) flow(o order) error {
	s.stopFlow, s.flown = make(chan struct{}), make(chan string, 1)
	return s.boxes[o.Box].Do(func() error {
		c, err := net.Dial("udp", o.Addr)
		if err != nil {
			return err
		}
		go func() {
			sent, back := 0, make(chan int, 1)
			go func() {
				n, b := 0, make([]byte, 100)
				for {
					if _, err := c.Read(b); err != nil {
						back <- n
						return
					}
					n++
				}
			}()
			for tick := time.NewTicker(5 * time.Millisecond); ; {
				select {
				case <-s.stopFlow:
					tick.Stop()
					time.Sleep(time.Second) // the last answers
					c.Close()
					s.flown <- fmt.Sprint(sent, " ", <-back)
					return
				case <-tick.C:
					if _, err := c.Write([]byte(secret)); err == nil {
						sent++
					}
				}
			}
		}()
		return nil
	})
}

// inject sends a host a frame for one of its containers in clear, from a port; 0: any.
func inject(o order) error {
	c, err := net.DialUDP("udp", &net.UDPAddr{Port: o.Size}, &net.UDPAddr{IP: net.ParseIP(o.Addr), Port: 4789})
	if err != nil {
		return err
	}
	defer c.Close()
	frame := []byte{8, 0, 0, 0, 0, 16, 3, 0} // VXLAN: the network's number is 4099
	frame = append(frame, 0x02, 0x42, 10, 90, 0, byte(o.Box), 0x02, 0x42, 10, 90, 0, 99, 8, 0)
	ip := []byte{0x45, 0, 0, byte(28 + len(injected)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 90, 0, 99, 10, 90, 0, byte(o.Box)}
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	frame = append(frame, ip...)
	frame = append(frame, 4, 0, 0, 80, 0, byte(8+len(injected)), 0, 0)
	_, err = c.Write(append(frame, injected...))
	return err
}

// xfrm counts the states and policies of the host.
func xfrm() (string, error) {
	states, err := netlink.XfrmStateList(netlink.FAMILY_V4)
	if err != nil {
		return "", err
	}
	policies, err := netlink.XfrmPolicyList(netlink.FAMILY_V4)
	return fmt.Sprint(len(states), " ", len(policies)), err
}

// capture is what is seen on the wire between hosts.
type capture struct {
	stop chan struct{}
	done chan sight
}

// sight counts packets.
type sight struct{ esp, clear, secret, stranger int }

// listen listens on the links of the hosts.
func listen(t *testing.T) *capture {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	c := &capture{stop: make(chan struct{}), done: make(chan sight, 1)}
	go func() {
		defer unix.Close(fd)
		var s sight
		b := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err == nil {
				s.see(b[:n])
				continue
			}
			select {
			case <-c.stop: // and nothing has come for a while
				c.done <- s
				return
			default:
			}
		}
	}()
	return c
}

// close tells what was seen.
func (c *capture) close() sight {
	close(c.stop)
	return <-c.done
}

func (s *sight) see(frame []byte) {
	if len(frame) < 14+20 || frame[12] != 8 || frame[13] != 0 {
		return
	}
	clear := frame[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(frame[36:]) == 4789
	switch {
	case bytes.Contains(frame, []byte(injected)):
		s.stranger++
	case clear:
		s.clear++
	case frame[23] == unix.IPPROTO_ESP:
		s.esp++
	}
	if bytes.Contains(frame, []byte(secret)) {
		s.secret++
	}
}
