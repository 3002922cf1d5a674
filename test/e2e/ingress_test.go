package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// manyHosts is a cluster of several engines, each in a network namespace of its own.
type manyHosts struct {
	*testing.T
	name  string
	nodes []oneOf
}

// oneOf is a node of it.
type oneOf struct{ Name, Address, Socket string }

func newManyHosts(t *testing.T, n int) *manyHosts {
	needs(t)
	if foreign != "" {
		t.Skip("another engine has no clusters on one machine")
	}
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("needs the command docker")
	}
	c := &manyHosts{T: t, name: fmt.Sprintf("e%d", os.Getpid()%1e6)}
	t.Cleanup(func() {
		if _, err := c.dev("down"); err != nil {
			t.Error(err)
		}
	})
	out, err := c.dev("up", fmt.Sprint(n))
	for try := 1; err != nil && harness.Slow() > 1 && try < 3; try++ { // of an emulated machine a store may take longer than a join waits
		if _, err := c.dev("down"); err != nil {
			t.Fatal(err)
		}
		out, err = c.dev("up", fmt.Sprint(n))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err = c.dev("ls", "--format", "json")
	if err != nil {
		t.Fatal(err)
	}
	tar, err := harness.BusyboxTar()
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(out) {
		var o oneOf
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, o)
		api := harness.NewAPI(o.Socket)
		if err := api.Import(t.Context(), "mesh", "latest", bytes.NewReader(tar)); err != nil {
			t.Fatal(err)
		}
		api.Close()
	}
	return c
}

// command runs a client and gives what it printed.
func (c *manyHosts) command(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute)) // detached: a clean-up uses it, too
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (c *manyHosts) dev(args ...string) (string, error) {
	return c.command(filepath.Join(harness.BinDir(), "escale"), append([]string{"cluster", "dev", "--name", c.name}, args...)...)
}

// on runs a command on a node.
func (c *manyHosts) on(node int, args ...string) string {
	c.Helper()
	out, err := c.command("docker", append([]string{"-H", c.nodes[node].Socket}, args...)...)
	if err != nil {
		c.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// ask asks a web server and gives its answer.
func ask(addr string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, 2*time.Second) // by this very thread
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprint(conn, "GET /name HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(conn)
	head, who, _ := strings.Cut(string(b), "\r\n\r\n")
	if !strings.Contains(head, " 200 ") {
		return "", fmt.Errorf("%s answers %q, %v", addr, head, err)
	}
	return strings.TrimSpace(who), err
}

// within does something in the network namespace of a node.
func (c *manyHosts) within(n oneOf, do func() error) error {
	return harness.Within("/run/netns/"+c.name+"-"+n.Name, do)
}

// answer are those who answer at a node, in as many questions as that many need; "" stands for
// no answer.
func (c *manyHosts) answer(node, tasks int) map[string]bool {
	out := map[string]bool{}
	for range 2 * tasks {
		who, _ := ask(net.JoinHostPort(c.nodes[node].Address, "8080"))
		out[who] = true
	}
	return out
}

// everywhere waits until so many tasks answer, the same at each node and no other.
func (c *manyHosts) everywhere(tasks int, within time.Duration) {
	c.Helper()
	var got []map[string]bool
	for end := time.Now().Add(harness.Patience(within)); ; time.Sleep(50 * time.Millisecond) {
		got = nil
		all, same := map[string]bool{}, true
		for i := range c.nodes {
			a := c.answer(i, max(tasks, 1))
			got = append(got, a)
			for who := range a {
				all[who] = true
			}
			same = same && len(a) == max(tasks, 1)
		}
		if same && len(all) == max(tasks, 1) && all[""] == (tasks == 0) {
			return
		}
		if time.Now().After(end) {
			c.Fatalf("want %d tasks to answer at each node: %v", tasks, got)
		}
	}
}

// Every node answers a published port, with all tasks of the service wherever they are, and goes
// by what becomes of them; a node that was cut off, too. Nothing is left on one that leaves.
func TestIngressOfNodes(t *testing.T) {
	c := newManyHosts(t, 3)
	c.on(0, "service", "create", "--detach", "--no-resolve-image", "--name", "web", "--replicas", "2", "--publish", "8080:80", "mesh",
		"sh", "-c", "mkdir /www && hostname > /www/name && exec httpd -f -p 80 -h /www")
	c.everywhere(2, time.Minute)
	for _, n := range c.nodes {
		for _, addr := range []string{"127.0.0.1", "[::1]", n.Address} {
			if err := c.within(n, func() error { _, err := ask(net.JoinHostPort(strings.Trim(addr, "[]"), "8080")); return err }); err != nil {
				t.Errorf("%s asks itself: %v", n.Name, err)
			}
		}
	}

	// A task that ends is replaced, and nobody is sent to it meanwhile.
	ended := 0
	for i := range c.nodes {
		if id := c.on(i, "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=web"); id != "" {
			c.on(i, "kill", strings.Fields(id)[0])
			ended++
			break
		}
	}
	if ended == 0 {
		t.Error("no node has a task")
	}
	c.everywhere(2, time.Minute)

	c.on(0, "service", "scale", "--detach", "web=4")
	c.everywhere(4, time.Minute)
	if _, err := c.dev("partition", c.nodes[2].Name); err != nil {
		t.Fatal(err)
	}
	c.on(0, "service", "scale", "--detach", "web=1")
	if _, err := c.dev("heal"); err != nil {
		t.Fatal(err)
	}
	c.everywhere(1, time.Minute)

	c.on(0, "service", "rm", "web")
	c.everywhere(0, 10*time.Second)
	c.on(0, "service", "create", "--detach", "--no-resolve-image", "--name", "again", "--publish", "8080:80", "mesh",
		"sh", "-c", "mkdir /www && hostname > /www/name && exec httpd -f -p 80 -h /www")
	c.everywhere(1, time.Minute)
	left := c.nodes[2]
	c.on(2, "swarm", "leave", "--force")
	for end := time.Now().Add(harness.Patience(20 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
		links, err := exec.Command("nsenter", "--net=/run/netns/"+c.name+"-"+left.Name, "ip", "-o", "link").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, links)
		}
		_, refused := ask(net.JoinHostPort(left.Address, "8080"))
		_, err = os.Stat(filepath.Join("/run/escale-dev", c.name, left.Name, "exec", "ingress.json"))
		if refused != nil && os.IsNotExist(err) && !strings.Contains(string(links), "vx-") && !strings.Contains(string(links), "br-") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left on a node that has left: answers %v, file %v, links\n%s", refused == nil, err, links)
		}
	}
}
