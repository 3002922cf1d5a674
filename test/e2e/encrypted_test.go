package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"escale.dev/escale/test/internal/harness"
)

// encrypts tells whether the kernel has what IPsec needs here.
func encrypts() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the namespace goes with the thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- netlink.XfrmStateAdd(&netlink.XfrmState{
			Src: net.IPv4(192, 0, 2, 1), Dst: net.IPv4(192, 0, 2, 2), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Spi: 1000,
			Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 36), ICVLen: 128},
		})
	}()
	return <-done
}

const whispered = "for-the-two-of-us-only"

// Tasks on an encrypted network reach each other on two nodes, and who listens between these
// sees nothing of it. Where the kernel does not encrypt there is no such network.
func TestEncryptedNetwork(t *testing.T) {
	c := newManyHosts(t, 2)
	kernel := encrypts()
	out, err := c.command("docker", "-H", c.nodes[0].Socket, "network", "create", "--driver", "overlay", "--opt", "encrypted", "sealed")
	if kernel != nil {
		if err == nil || !strings.Contains(out, "network sealed cannot be encrypted here") || !strings.Contains(out, "no ESP") {
			t.Errorf("the kernel does not encrypt (%v), and the network is made: %v %s", kernel, err, out)
		}
		if list := c.on(0, "network", "ls", "--quiet", "--filter", "name=sealed"); list != "" {
			t.Errorf("it is there: %s", list)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	c.on(0, "service", "create", "--detach", "--no-resolve-image", "--name", "talk", "--mode", "global", "--network", "sealed", "mesh",
		"sh", "-c", "mkdir /www && echo "+whispered+" > /www/name && exec httpd -f -p 80 -h /www")
	task := func(node int) string {
		var id string
		c.till("a task on "+c.nodes[node].Name, time.Minute, func() error {
			if id = c.on(node, "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=talk"); id == "" {
				return errors.New("none")
			}
			return nil
		})
		return id
	}
	one, two := task(0), task(1)
	pid := c.on(0, "inspect", "--format", "{{.State.Pid}}", one)
	address := c.on(1, "inspect", "--format", `{{(index .NetworkSettings.Networks "sealed").IPAddress}}`, two)
	heard, stop := make(chan sight), make(chan struct{})
	go func() {
		var s sight
		if err := c.within(c.nodes[0], func() (err error) { s, err = overhear(c.nodes[0].Address, stop); return err }); err != nil {
			t.Error(err)
		}
		heard <- s
	}()
	for range 3 {
		c.till("one hears the other", 30*time.Second, func() error {
			return harness.Within("/proc/"+pid+"/ns/net", func() error {
				got, err := ask(address + ":80")
				if err == nil && got != whispered {
					err = fmt.Errorf("%q", got)
				}
				return err
			})
		})
	}
	close(stop)
	s := <-heard
	t.Logf("between the nodes: %+v", s)
	if s.esp == 0 || s.vxlan > 0 || s.whispered > 0 {
		t.Errorf("between the nodes: %+v, want ESP and nothing in clear", s)
	}
	if list := c.on(0, "secret", "ls", "--quiet"); list != "" {
		t.Errorf("users see the network's keys: %s", list)
	}
	c.on(0, "service", "rm", "talk")
	c.till("the network goes", time.Minute, func() error {
		_, err := c.command("docker", "-H", c.nodes[0].Socket, "network", "rm", "sealed")
		return err
	})
	for _, n := range c.nodes {
		c.till("nothing is left on "+n.Name, 30*time.Second, func() error {
			return c.within(n, func() error {
				states, err := netlink.XfrmStateList(netlink.FAMILY_V4)
				if err != nil {
					return err
				}
				policies, err := netlink.XfrmPolicyList(netlink.FAMILY_V4)
				if err == nil && len(states)+len(policies) > 0 {
					err = fmt.Errorf("%d states and %d policies", len(states), len(policies))
				}
				return err
			})
		})
	}
}

// sight counts packets.
type sight struct{ esp, vxlan, whispered int }

// overhear listens at the link of the calling thread's namespace that has an address.
func overhear(address string, stop <-chan struct{}) (s sight, err error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return s, err
	}
	index := 0
	for _, a := range list {
		if a.IP.String() == address {
			index = a.LinkIndex
		}
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return s, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return s, err
	}
	b := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			select {
			case <-stop: // and nothing has come for a while
				return s, nil
			default:
				continue
			}
		}
		select {
		case <-stop: // nodes always have something to say to each other
			return s, nil
		default:
		}
		frame := b[:n]
		if bytes.Contains(frame, []byte(whispered)) {
			s.whispered++
		}
		switch {
		case n < 38 || frame[12] != 8 || frame[13] != 0:
		case frame[23] == unix.IPPROTO_ESP:
			s.esp++
		case frame[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(frame[36:]) == 4789:
			s.vxlan++
		}
	}
}
