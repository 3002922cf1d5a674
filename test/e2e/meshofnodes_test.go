package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// answerers imports test/answerer as an image on each node, beside a shell to check it with.
func (c *manyHosts) answerers() {
	c.Helper()
	b, err := os.ReadFile(builtProgram(c.T, "answerer"))
	if err != nil {
		c.Fatal(err)
	}
	base, err := harness.BusyboxTar()
	if err != nil {
		c.Skip(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	for r := tar.NewReader(bytes.NewReader(base)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(w, r)
		}
		if err != nil {
			c.Fatal(err)
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "answerer", Mode: 0o755, Size: int64(len(b)), ModTime: time.Unix(1700000000, 0)}); err != nil {
		c.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		c.Fatal(err)
	}
	if err := w.Close(); err != nil {
		c.Fatal(err)
	}
	for _, n := range c.nodes {
		api := harness.NewAPI(n.Socket)
		err := api.Import(c.Context(), "answerer", "latest", bytes.NewReader(image.Bytes()))
		api.Close()
		if err != nil {
			c.Fatal(err)
		}
	}
}

// asked is what one who was asked has said: who it is, and who was seen asking.
type asked struct{ who, from string }

func read(text string) (a asked, err error) {
	if _, err := fmt.Sscan(strings.TrimLeft(text, "."), &a.who, &a.from); err != nil {
		return a, fmt.Errorf("%q is no answer: %w", text, err)
	}
	return a, nil
}

// stream asks by TCP.
func stream(addr, question string, within time.Duration) (a asked, local string, err error) {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second) // by this very thread
	if err != nil {
		return a, "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := fmt.Fprintln(c, question); err != nil {
		return a, "", err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return a, "", err
	}
	a, err = read(string(b))
	return a, c.LocalAddr().(*net.TCPAddr).IP.String(), err
}

// datagram asks by UDP, on a socket that takes answers from where it has asked only.
func datagram(c net.Conn) (a asked, err error) {
	if _, err := c.Write([]byte("who")); err != nil {
		return a, err
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	b := make([]byte, 200)
	n, err := c.Read(b)
	if err != nil {
		return a, err
	}
	return read(string(b[:n]))
}

// till asks until an answer is good.
func (c *manyHosts) till(what string, within time.Duration, f func() error) time.Duration {
	c.Helper()
	begin := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > harness.Patience(within) {
			c.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tasks are the containers of a service by node, each named as it calls itself.
func (c *manyHosts) tasks(service string) (out [][]string) {
	c.Helper()
	for i := range c.nodes {
		var own []string
		for _, id := range strings.Fields(c.on(i, "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name="+service)) {
			own = append(own, c.on(i, "inspect", "--format", "{{.Config.Hostname}}", id))
		}
		out = append(out, own)
	}
	return out
}

// Datagrams are answered by tasks of other nodes as by the node's own, and go to another once
// theirs has ended; who asks is seen as it is where that can be; and an update cuts nobody short,
// whichever node they have asked.
func TestMeshOfNodes(t *testing.T) {
	c := newManyHosts(t, 3)
	c.answerers()
	c.on(0, "service", "create", "--detach", "--no-resolve-image", "--name", "far", "--replicas", "2", "--stop-grace-period", "30s",
		"--update-order", "start-first", "--health-cmd", "/answerer check", "--health-interval", "300ms", "--health-start-period", "30s", "--publish", "8080:80", "--publish", "5300:53/udp", "answerer", "/answerer")
	c.on(0, "service", "create", "--detach", "--no-resolve-image", "--name", "near", "--mode", "global",
		"--publish", "mode=host,target=80,published=8081", "--publish", "mode=host,target=53,published=5301,protocol=udp", "answerer", "/answerer")
	c.till("every node answers, by itself and with both tasks", time.Minute, func() error {
		for _, n := range c.nodes {
			if _, _, err := stream(n.Address+":8081", "who", 2*time.Second); err != nil {
				return err
			}
			heard := map[string]bool{}
			for range 4 { // one goes after the other
				a, _, err := stream(n.Address+":8080", "who", 2*time.Second)
				if err != nil {
					return err
				}
				heard[a.who] = true
			}
			if len(heard) != 2 {
				return fmt.Errorf("%s: %d tasks answer", n.Name, len(heard))
			}
		}
		return nil
	})
	var where [][]string
	c.till("both tasks", time.Minute, func() error {
		where = c.tasks("far")
		if n := len(where[0]) + len(where[1]) + len(where[2]); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	without := 0
	for i, own := range where {
		if len(own) == 0 {
			without = i
		}
	}
	c.datagrams(where, without)
	c.clients(without)
	c.updateUnderWay(without)
}

// datagrams: every node answers them, at all its addresses.
func (c *manyHosts) datagrams(where [][]string, without int) {
	for _, n := range c.nodes {
		heard := map[string]bool{}
		for range 8 {
			conn, err := net.Dial("udp", n.Address+":5300")
			if err != nil {
				c.Fatal(err)
			}
			first := asked{}
			c.till(n.Name+" answers a datagram", 10*time.Second, func() (err error) { first, err = datagram(conn); return err })
			heard[first.who] = true
			for range 3 {
				if again, err := datagram(conn); err != nil || again != first {
					c.Errorf("%s: one socket is answered by %v, then by %v, %v", n.Name, first, again, err)
				}
			}
			conn.Close()
		}
		if len(heard) != 2 {
			c.Errorf("%s: %v answer, want both tasks", n.Name, heard)
		}
		for _, addr := range []string{"127.0.0.1:5300", "[::1]:5300"} {
			err := c.within(n, func() error {
				conn, err := net.Dial("udp", addr)
				if err != nil {
					return err
				}
				defer conn.Close()
				for range 20 {
					if _, err = datagram(conn); err == nil {
						return nil
					}
				}
				return err
			})
			if err != nil {
				c.Errorf("%s asks itself at %s: %v", n.Name, addr, err)
			}
		}
	}
	// The task that answers a socket ends: the other answers it.
	conn, err := net.Dial("udp", c.nodes[without].Address+":5300")
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	first, err := datagram(conn)
	if err != nil {
		c.Fatal(err)
	}
	for i, own := range where {
		if len(own) > 0 && own[0] == first.who {
			c.on(i, "kill", first.who)
		}
	}
	took := c.till("another task answers", 20*time.Second, func() error {
		a, err := datagram(conn)
		if err == nil && a.who == first.who {
			err = fmt.Errorf("%s answers still", a.who)
		}
		return err
	})
	c.Logf("a task was killed: the next one answers the same socket after %s", took.Round(10*time.Millisecond))
}

// clients: who asks is seen by a task of the node that was asked, and always with mode=host.
func (c *manyHosts) clients(without int) {
	for i, n := range c.nodes {
		a, local, err := stream(n.Address+":8081", "who", 5*time.Second)
		if err != nil || a.from != local {
			c.Errorf("%s in host mode: %v sees %q, want %q: %v", n.Name, a.who, a.from, local, err)
		}
		conn, err := net.Dial("udp", n.Address+":5301")
		if err != nil {
			c.Fatal(err)
		}
		c.till(n.Name+" answers a datagram in host mode", 10*time.Second, func() (err error) { a, err = datagram(conn); return err })
		if a.from != local {
			c.Errorf("%s in host mode: %v sees datagrams of %q, want %q", n.Name, a.who, a.from, local)
		}
		conn.Close()
		if own := c.tasks("far")[i]; len(own) > 0 {
			c.till(n.Name+"'s own task answers", 20*time.Second, func() error {
				a, local, err := stream(n.Address+":8080", "who", 5*time.Second)
				if err == nil && a.who == own[0] && a.from != local {
					c.Errorf("%s: its own task sees %q, want %q", n.Name, a.from, local)
				}
				if err == nil && a.who != own[0] {
					err = fmt.Errorf("%s answers", a.who)
				}
				return err
			})
		}
	}
	a, local, err := stream(c.nodes[without].Address+":8080", "who", 5*time.Second)
	if err != nil || a.from == local {
		c.Errorf("a task of another node sees %q, %v; want the node that was asked", a.from, err)
	}
}

// updateUnderWay: while all tasks are exchanged, what has begun goes on to its end, and nothing
// that begins is refused.
func (c *manyHosts) updateUnderWay(without int) {
	slow := make(chan error, 1)
	go func() {
		_, _, err := stream(c.nodes[without].Address+":8080", "slow 24", 30*time.Second)
		slow <- err
	}()
	stop := make(chan struct{})
	var askers sync.WaitGroup
	var mu sync.Mutex
	sent, failed := 0, map[string]int{}
	for _, n := range c.nodes {
		askers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(25 * time.Millisecond):
				}
				_, _, err := stream(n.Address+":8080", "who", 5*time.Second)
				mu.Lock()
				if sent++; err != nil {
					failed[n.Name+": "+err.Error()]++
				}
				mu.Unlock()
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // the slow one is under way
	before := fmt.Sprint(c.tasks("far"))
	c.on(0, "service", "update", "--quiet", "--force", "--no-resolve-image", "far")
	if after := fmt.Sprint(c.tasks("far")); after == before {
		c.Errorf("the tasks are those of before: %s", after)
	}
	if err := <-slow; err != nil {
		c.Errorf("what was under way by a node without a task was cut short: %v", err)
	}
	close(stop)
	askers.Wait()
	c.Logf("while all tasks were exchanged: %d connections at three nodes, %d failed", sent, len(failed))
	if sent == 0 || len(failed) > 0 {
		c.Errorf("of %d connections failed: %v", sent, failed)
	}
}
