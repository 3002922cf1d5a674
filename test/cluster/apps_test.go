package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"escale.dev/escale/test/internal/harness"
)

// run runs a command against a node's engine and gives what it printed.
func (s *site) run(n string, line ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(5*time.Minute)) // detached: a clean-up uses it, too
	defer cancel()
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+s.nodes[n].Socket)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr, cmd.WaitDelay = &syscall.SysProcAttr{Setpgid: true}, 5*time.Second
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with what it has begun
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(line, " "), err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// escale runs the command line against a node's engine; it has to work.
func (s *site) escale(n string, args ...string) string {
	s.Helper()
	out, err := s.run(n, append([]string{filepath.Join(harness.BinDir(), "escale")}, args...)...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// get asks a web server at a node's address.
func (s *site) get(n string, port int) (string, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + net.JoinHostPort(s.nodes[n].Address, fmt.Sprint(port)))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return strings.TrimSpace(string(b)), err
}

// everywhere waits until so many answer at the address of each node, no others, and all.
func (s *site) everywhere(port, want int) time.Duration {
	s.Helper()
	return s.till(fmt.Sprintf("%d answer at each node", want), func() error {
		for _, n := range s.names() {
			seen := map[string]bool{}
			for range 3 * want {
				who, err := s.get(n, port)
				if err != nil {
					return fmt.Errorf("%s: %w", n, err)
				}
				seen[who] = true
			}
			if len(seen) != want {
				return fmt.Errorf("at %s %d answer", n, len(seen))
			}
		}
		return nil
	})
}

const shop = `name: shop
services:
  web:
    build: .
    secrets: [key]
    init: true
    depends_on: {db: {condition: service_healthy}}
    healthcheck: {test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"], interval: 1s, start_period: 10s, start_interval: 100ms}
    ports: ["8080:80"]
    deploy: {replicas: 3, placement: {max_replicas_per_node: 1}}
  db:
    image: trial:1
    init: true
    command: sh -c "echo made >>/data/log; sleep 10000"
    volumes: ["data:/data"]
    container_name: thedb
    healthcheck: {test: ["CMD", "cat", "/data/log"], interval: 1s, start_period: 10s, start_interval: 100ms}
    networks: {default: {}, back: {ipv4_address: 10.77.0.77}}
    deploy: {placement: {constraints: ["node.role == worker"]}}
  reader:
    image: trial:1
    init: true
    command: sleep 10000
    volumes: ["data:/data:ro"]
    networks: [back]
  site:
    image: trial:1
    init: true
    command: sleep 10000
    volumes: ["./pages:/pages"]
secrets: {key: {file: ./key}}
volumes: {data: {}}
networks: {back: {ipam: {config: [{subnet: 10.77.0.0/24}]}}}
`

// An app of a cluster is one of a host, with its containers on all nodes: names, needs, volumes,
// binds, secrets, what was built, published ports, and the commands that are about it.
func TestAppOnNodes(t *testing.T) {
	s := newSite(t, 3, 1)
	s.ready("n1")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"compose.yaml": shop, "key": "hush\n", "pages/index.html": "bound\n",
		"Dockerfile": "FROM trial:1\nRUN echo built >/built\nCMD [\"sh\", \"-c\", \"mkdir -p /www && (hostname; cat /built /run/secrets/key) >/www/index.html && exec httpd -f -h /www\"]\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	compose := func(args ...string) string {
		t.Helper()
		return s.escale("n1", append([]string{"compose", "--project-directory", dir, "-f", filepath.Join(dir, "compose.yaml")}, args...)...)
	}
	if got := compose("--dry-run", "up"); !strings.Contains(got, "kept on node "+s.name+"-n1: bind "+filepath.Join(dir, "pages")) {
		t.Errorf("the plan does not say where the bind is:\n%s", got)
	}
	compose("up", "-d")
	s.everywhere(8080, 3)
	if got, err := s.get("n2", 8080); err != nil || !strings.HasSuffix(got, "built\nhush") {
		t.Errorf("what was built, with its secret: %q, %v", got, err)
	}
	// Each of the three nodes has one of the front; the others find it, and the database by all its names.
	for _, from := range []string{"reader", "site", "web"} {
		for _, to := range []string{"db", "thedb"} {
			if out := compose("exec", "-T", from, "ping", "-c", "1", "-W", "2", to); !strings.Contains(out, " 0% packet loss") {
				t.Errorf("%s does not reach %s: %s", from, to, out)
			}
		}
	}
	if out := compose("exec", "-T", "db", "ifconfig"); !strings.Contains(out, "10.77.0.77") {
		t.Errorf("the database has another address than it was to have:\n%s", out)
	}
	for service, want := range map[string]string{"reader": "made", "site": "bound"} {
		if out := compose("exec", "-T", service, "cat", map[string]string{"reader": "/data/log", "site": "/pages/index.html"}[service]); out != want {
			t.Errorf("%s sees %q", service, out)
		}
	}
	if got := strings.Fields(compose("ps", "--format", "{{.Name}}")); !slices.Equal(got, []string{"shop-reader-1", "shop-site-1", "shop-web-1", "shop-web-2", "shop-web-3", "thedb"}) {
		t.Errorf("ps lists %v", got)
	}

	compose("stop", "web")
	if got := compose("ps", "--status", "running", "--format", "{{.Name}}", "web"); got != "" {
		t.Errorf("after stop these run: %s", got)
	}
	compose("start", "web")
	s.everywhere(8080, 3)

	// The volume is found again by the next app of the name, wherever it is.
	compose("down")
	compose("up", "-d")
	s.everywhere(8080, 3)
	if got := compose("exec", "-T", "db", "cat", "/data/log"); got != "made\nmade" {
		t.Errorf("after down and up the volume has %q", got)
	}
	// A network of another subnet takes the place of the one there was.
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(strings.ReplaceAll(shop, "10.77.0.", "10.78.0.")), 0o600); err != nil {
		t.Fatal(err)
	}
	compose("up", "-d")
	if out := compose("exec", "-T", "db", "ifconfig"); !strings.Contains(out, "10.78.0.77") {
		t.Errorf("the network was not made anew:\n%s", out)
	}
	// A node that is away keeps nobody waiting; what it has goes when it is back.
	at := ""
	for _, n := range s.names("n1") {
		if s.escale(n, "volume", "ls", "-q", "--filter", "name=shop_data") != "" {
			at = n
		}
	}
	s.dev("kill", at)
	s.till(at+" is down", func() error {
		if list, err := s.members("n1"); err != nil || list[at].Status.State != swarm.NodeStateDown {
			return fmt.Errorf("it is %s, %v", list[at].Status.State, err)
		}
		return nil
	})
	out, err := s.run("n1", "sh", "-c", filepath.Join(harness.BinDir(), "escale")+" compose --project-directory "+dir+" -f "+filepath.Join(dir, "compose.yaml")+" down -v 2>&1")
	if err != nil || !strings.Contains(out, "shop_data  Not removed: node "+s.name+"-"+at+" is away.") {
		t.Errorf("down does not tell of the volume on %s: %v\n%s", at, err, out)
	}
	s.dev("heal")
	s.till("nothing is left on any node", func() error {
		for _, n := range s.names() {
			for _, list := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q", "--filter", "label=com.docker.compose.project=shop"}} {
				if out := s.escale(n, list...); out != "" {
					return fmt.Errorf("%s has, of %v: %s", n, list, out)
				}
			}
		}
		return nil
	})
}
