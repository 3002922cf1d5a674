package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A stack comes up with a network of its own on which its services find each other, is
// changed, pruned, and goes with the network, though its tasks need a while to end. A network
// on which somebody is stays, and one that containers may use is used.
func TestSwarmStack(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.fails("This node is not a swarm manager", "network", "create", "-d", "overlay", "early")
		s.init()
		s.till("ingress", "network", "ls", "--filter", "driver=overlay", "--filter", "scope=swarm", "--format", "{{.Name}}")

		file := filepath.Join(s.TempDir(), "stack.yml")
		write := func(more ...string) {
			s.Helper()
			text := append([]string{
				`version: "3.8"`, "services:",
				"  web:", "    image: " + image, `    command: sh -c "mkdir /w; echo it works >/w/index.html; trap 'sleep 1; exit 0' TERM; httpd -f -h /w & wait"`,
				"    networks: [inner]", "    deploy: {replicas: 2}", "    stop_grace_period: 5s",
				"  client:", "    image: " + image, "    command: sleep 1000", "    networks: [inner]",
			}, more...)
			if err := os.WriteFile(file, []byte(strings.Join(append(text, "networks: {inner: {}}", ""), "\n")), 0o600); err != nil {
				s.Fatal(err)
			}
		}
		write("  extra:", "    image: "+image, "    command: sleep 1000")
		s.run("stack", "deploy", "-d=true", "-c", file, "vote")
		s.till("2/2", "stack", "services", "--filter", "name=vote_web", "vote")
		s.till("1/1", "stack", "services", "--filter", "name=vote_client", "vote")
		s.shows("vote 3", "stack", "ls", "--format", "{{.Name}} {{.Services}}")
		s.shows("Running", "stack", "ps", "vote")
		client := s.run("ps", "-q", "--filter", "label=com.docker.swarm.service.name=vote_client")
		s.till("it works", "exec", client, "wget", "-q", "-O", "-", "http://web/")
		s.shows("it works", "exec", client, "wget", "-q", "-O", "-", "http://tasks.vote_web/")
		s.fails("is in use by service", "network", "rm", "vote_inner")

		write()
		s.run("stack", "deploy", "-d=true", "--prune", "-c", file, "vote")
		s.shows("vote 2", "stack", "ls", "--format", "{{.Name}} {{.Services}}")
		if now := s.run("ps", "-q", "--filter", "label=com.docker.swarm.service.name=vote_client"); now != client {
			s.Errorf("a service that has not changed was touched: %s, was %s", now, client)
		}
		s.run("stack", "rm", "vote")
		if left := s.run("network", "ls", "-q", "--filter", "name=vote_"); left != "" {
			s.Errorf("networks that are left: %s", left)
		}
		s.none("ps", "-aq")

		s.run("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.199.7.0/24", "shared")
		s.run("network", "create", "-d", "overlay", "--internal", "closed")
		s.shows("swarm true 10.199.7.0/24", "network", "inspect", "-f", "{{.Scope}} {{.Attachable}} {{(index .IPAM.Config 0).Subnet}}", "shared")
		s.fails("network with name shared already exists", "network", "create", "shared")
		s.fails("not manually attachable", "run", "--rm", "--network", "closed", image, "true")
		s.run("run", "-d", "--name", "one", "--network", "shared", image, "sleep", "1000")
		s.shows("inet 10.199.7.", "run", "--rm", "--network", "shared", image, "sh", "-c", "ip a show eth0; ping -c 1 -W 2 one")
		s.fails("is in use by", "network", "rm", "shared")
		s.run("rm", "-f", "one")
		s.run("network", "rm", "shared", "closed")
		s.run("swarm", "leave", "--force")
		noLeaks(s.T, s.e)
	})
}
