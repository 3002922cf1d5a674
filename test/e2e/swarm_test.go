package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// swarming drives a swarm of one node, on an engine of its own, by a client's commands.
type swarming struct {
	*testing.T
	e      *harness.Engine
	client string
	env    []string
	addr   string // of the swarm
}

func newSwarming(t *testing.T, path string, args ...string) *swarming {
	if foreign != "" {
		t.Skip("another's swarm is left alone")
	}
	s := &swarming{t, start(t, harness.Options{Args: args}), path, nil, fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))}
	s.env = append(os.Environ(), "DOCKER_HOST="+s.e.Host(), "ESCALE_HOST="+s.e.Host(), "DOCKER_CONFIG="+t.TempDir(), "DOCKER_CLI_HINTS=false")
	s.Cleanup(func() { _, _ = s.try("swarm", "leave", "--force") })
	return s
}

// try runs a command and gives what it printed.
func (s *swarming) try(args ...string) (string, error) {
	// detached: a clean-up uses it, too
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, s.client, args...)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s *swarming) run(args ...string) string {
	s.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// fails wants a command to fail with words.
func (s *swarming) fails(words string, args ...string) {
	s.Helper()
	if out, err := s.try(args...); err == nil || !strings.Contains(out, words) {
		s.Errorf("%s: %v\n%s\nwant: %s", strings.Join(args, " "), err, out, words)
	}
}

// shows wants a command to print words.
func (s *swarming) shows(words string, args ...string) {
	s.Helper()
	if out := s.run(args...); words == "" || !strings.Contains(out, words) {
		s.Errorf("%s: %s\nwant: %s", strings.Join(args, " "), out, words)
	}
}

// till waits until a command prints words.
func (s *swarming) till(words string, args ...string) {
	s.Helper()
	if words == "" {
		s.Fatalf("%s: every output has no words in it: use none", strings.Join(args, " "))
	}
	s.until(words, func(out string) bool { return strings.Contains(out, words) }, args...)
}

// none waits until a command prints nothing.
func (s *swarming) none(args ...string) {
	s.Helper()
	s.until("nothing", func(out string) bool { return out == "" }, args...)
}

// until waits until a command prints what is wanted.
func (s *swarming) until(words string, ok func(string) bool, args ...string) {
	s.Helper()
	end := time.Now().Add(harness.Patience(40 * time.Second))
	for {
		out, err := s.try(args...)
		if err == nil && ok(out) {
			return
		}
		if time.Now().After(end) {
			s.Fatalf("%s: %v\n%s\nwant: %s\n%s", strings.Join(args, " "), err, out, words, s.run("node", "ps", "--no-trunc"))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// tillFails waits until a command fails with words.
func (s *swarming) tillFails(words string, args ...string) {
	s.Helper()
	end := time.Now().Add(harness.Patience(20 * time.Second))
	for {
		out, err := s.try(args...)
		if err != nil && strings.Contains(out, words) {
			return
		}
		if time.Now().After(end) {
			s.Fatalf("%s: %v\n%s\nwant: %s", strings.Join(args, " "), err, out, words)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// init begins a swarm on a loopback address of its own: others may have theirs.
func (s *swarming) init(args ...string) string {
	s.Helper()
	return s.run(append([]string{"swarm", "init", "--listen-addr", s.addr, "--advertise-addr", s.addr}, args...)...)
}

// list gives the lines of what a command prints.
func (s *swarming) list(args ...string) []string { return strings.Fields(s.run(args...)) }

// swarmClients calls f with each client there is.
func swarmClients(t *testing.T, f func(*swarming), args ...string) {
	needs(t)
	for _, name := range []string{"docker", "escale"} {
		t.Run(name, func(t *testing.T) {
			path := clients()[name]
			if _, err := os.Stat(path); err != nil {
				t.Skipf("no client %s: the swarm is not tried with it", name)
			}
			f(newSwarming(t, path, args...))
		})
	}
}

// A swarm begins, tells of itself, changes its tokens, and ends without a trace.
func TestSwarmInit(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		const no = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
		for _, cmd := range []string{"node ls", "service ls", "secret ls", "config ls", "stack ls", "swarm join-token worker", "service create " + image} {
			s.fails(no, strings.Fields(cmd)...)
		}
		s.fails("This node is not part of a swarm", "swarm", "leave")
		s.shows("inactive", "info", "-f", "{{.Swarm.LocalNodeState}}")
		s.fails("must be a non-zero IP address or network interface", "swarm", "init", "--advertise-addr", "nosuch0")
		if out := s.init("--default-addr-pool", "10.77.0.0/16", "--default-addr-pool-mask-length", "26"); !strings.Contains(out, filepath.Base(s.client)+" swarm join --token SWMTKN-1-") {
			s.Error(out)
		}
		s.fails("This node is already part of a swarm", "swarm", "init")
		s.shows("active true 1 1 "+s.addr+" [10.77.0.0/16] 26", "info", "-f", "{{with .Swarm}}{{.LocalNodeState}} {{.ControlAvailable}} {{.Managers}} {{.Nodes}} {{.NodeAddr}} {{.Cluster.DefaultAddrPool}} {{.Cluster.SubnetSize}}{{end}}")
		s.shows("Leader", "node", "ls")
		s.shows("ready true", "node", "inspect", "-f", "{{.Status.State}} {{.ManagerStatus.Leader}}", "self")
		worker, manager := s.run("swarm", "join-token", "-q", "worker"), s.run("swarm", "join-token", "-q", "manager")
		if worker == manager || s.run("swarm", "join-token", "-q", "--rotate", "worker") == worker || s.run("swarm", "join-token", "-q", "manager") != manager {
			s.Error("tokens")
		}
		s.run("swarm", "update", "--task-history-limit", "2", "--cert-expiry", "48h")
		s.shows("2", "info", "-f", "{{.Swarm.Cluster.Spec.Orchestration.TaskHistoryRetentionLimit}}")
		s.fails("raft settings are those of the store", "swarm", "update", "--snapshot-interval", "7")
		s.shows("BEGIN CERTIFICATE", "swarm", "ca")
		id := s.run("info", "-f", "{{.Swarm.NodeID}}")
		s.run("node", "update", "--label-add", "zone=a", id)
		s.shows("a", "node", "inspect", "-f", "{{.Spec.Labels.zone}}", id)
		s.fails("attempting to demote the last manager of the swarm", "node", "demote", id)
		s.fails("is a cluster manager and is a member of the raft cluster", "node", "rm", "--force", id)
		// What the engine knew before it was killed it knows after.
		ctx := s.Context()
		if err := s.e.Kill(); err != nil {
			s.Fatal(err)
		}
		if err := s.e.Start(ctx); err != nil {
			s.Fatal(err)
		}
		s.till(s.addr+" active", "info", "-f", "{{.Swarm.NodeAddr}} {{.Swarm.LocalNodeState}}")
		s.till("Leader", "node", "ls")
		s.fails("Use `--force` to ignore this message", "swarm", "leave")
		s.run("swarm", "leave", "--force")
		s.tillFails(no, "node", "ls")
	})
}

// The life of a service: it is made, scaled, killed, updated, goes back, is drained, and goes.
func TestSwarmService(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		_, port, _ := strings.Cut(freePort(t), ":")
		s.run("service", "create", "-d", "--name", "web", "--replicas", "2", "--publish", port+":80", "--publish", "81", "--limit-memory", "50M", "--env", "WHERE={{.Node.Hostname}}-{{.Task.Slot}}",
			"--hostname", "h{{.Task.Slot}}", "--label", "tier=front", "--container-label", "inner=yes", "--restart-delay", "100ms", "--constraint", "node.role==manager", "--mount", "type=tmpfs,target=/scratch",
			"--stop-grace-period", "1s", "--user", "0", "--host", "far:192.0.2.9", "--cap-add", "NET_ADMIN", "--ulimit", "nofile=100:200", "--sysctl", "net.ipv4.ip_forward=0", image, "httpd", "-f", "-p", "80")
		s.till("2/2", "service", "ls")
		task := s.list("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web", "--filter", "name=web.1.")
		if len(task) != 1 {
			t.Fatalf("containers of the first place: %v", task)
		}
		s.shows("h1", "exec", task[0], "hostname")
		s.shows("-1", "exec", task[0], "sh", "-c", "echo $WHERE")
		s.shows("52428800 yes web", "inspect", "-f", `{{.HostConfig.Memory}} {{.Config.Labels.inner}} {{index .Config.Labels "com.docker.swarm.service.name"}}`, task[0])
		s.shows("192.0.2.9", "exec", task[0], "cat", "/etc/hosts")
		s.shows("tcp 80 ingress", "service", "inspect", "-f", "{{range .Endpoint.Ports}}{{.Protocol}} {{.TargetPort}} {{.PublishMode}} {{end}}", "web")
		s.shows("30000", "service", "inspect", "-f", "{{range .Endpoint.Ports}}{{.PublishedPort}} {{end}}", "web")
		s.fails("is already in use by service 'web'", "service", "create", "-d", "--publish", port+":80", image)
		s.fails("name conflicts with an existing object: service web already exists", "service", "create", "-d", "--name", "web", image)

		s.run("kill", task[0])
		s.till("2/2", "service", "ls")
		s.till("exit (137)", "service", "ps", "--no-trunc", "web")
		// A task's container that a client removes is replaced, too.
		s.run("rm", "-f", s.list("ps", "-q", "--filter", "name=web.2.")[0])
		s.till("2/2", "service", "ls")
		s.run("service", "scale", "-d", "web=3")
		s.till("3/3", "service", "ls")

		s.shows("web", "service", "update", "--env-add", "NEW=1", "--update-parallelism", "0", "--update-monitor", "100ms", "web")
		s.shows("completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "web")
		s.run("service", "rollback", "-d", "web")
		s.till("rollback_completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "web")
		if strings.Contains(s.run("service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web"), "NEW") {
			s.Error("it has not gone back")
		}
		// An update that fails stops, or goes back by itself.
		s.run("service", "update", "-d", "--update-failure-action", "rollback", "--args", "false", "web")
		s.till("rollback_completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "web")
		s.till("3/3", "service", "ls")

		node := s.run("info", "-f", "{{.Swarm.NodeID}}")
		s.run("node", "update", "--availability", "drain", node)
		s.till("0/3", "service", "ls")
		s.till("no suitable node", "service", "ps", "--no-trunc", "web")
		s.run("node", "update", "--availability", "active", node)
		s.till("3/3", "service", "ls")
		s.run("service", "update", "-d", "--constraint-add", "node.labels.zone==a", "web")
		s.till("scheduling constraints not satisfied", "service", "ps", "--no-trunc", "web")
		s.run("node", "update", "--label-add", "zone=a", node)
		s.till("3/3", "service", "ls")
		s.run("service", "rm", "web")
		s.fails("no such service: web", "service", "inspect", "web")
		s.run("swarm", "leave", "--force")
		if list := s.list("ps", "-aq", "--filter", "label=com.docker.swarm.task.id"); len(list) != 0 {
			s.Errorf("containers are left: %v", list)
		}
		noLeaks(t, s.e)
	})
}

// Secrets and configs reach the tasks that ask for them, are renewed by updates, cannot be
// removed while they are used; configs can be templates.
func TestSwarmSecrets(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		dir := t.TempDir()
		for name, text := range map[string]string{"key": "hush\n", "key2": "hush again\n", "conf": "slot={{.Task.Slot}} {{env \"A\"}}\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.run("secret", "create", "--label", "a=b", "key", filepath.Join(dir, "key"))
		s.run("secret", "create", "key2", filepath.Join(dir, "key2"))
		s.run("config", "create", "--template-driver", "golang", "conf", filepath.Join(dir, "conf"))
		s.fails("secret key already exists", "secret", "create", "key", filepath.Join(dir, "key"))
		s.shows("key", "secret", "ls", "--filter", "label=a=b")
		s.shows("slot=", "config", "inspect", "--pretty", "conf")
		s.fails("secret not found: nokey", "service", "create", "-d", "--secret", "nokey", image)
		s.run("service", "create", "-d", "--name", "reader", "--env", "A=x", "--restart-delay", "100ms", "--secret", "source=key,target=k,uid=1,gid=2,mode=0400", "--config", "source=conf,target=/etc/conf", image,
			"sh", "-c", "cat /run/secrets/k /etc/conf; stat -c '%u:%g %a' /run/secrets/k; trap exit TERM; sleep 1000 & wait")
		s.till("1:2 400", "service", "logs", "--raw", "reader")
		s.shows("hush\nslot=1 x", "service", "logs", "--raw", "reader")
		s.shows("reader.1.", "service", "logs", "reader")
		s.fails("secret 'key' is in use by the following service: reader", "secret", "rm", "key")
		s.fails("config 'conf' is in use by the following service: reader", "config", "rm", "conf")
		s.run("service", "update", "-d", "--secret-rm", "key", "--secret-add", "source=key2,target=k", "reader")
		s.till("hush again", "service", "logs", "--raw", "reader")
		s.run("secret", "rm", "key")
		s.run("service", "rm", "reader")
		s.run("secret", "rm", "key2")
		s.run("config", "rm", "conf")
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// Global services and jobs; events tell of all of them.
func TestSwarmModes(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		s.run("service", "create", "-d", "--name", "agent", "--mode", "global", image, "sleep", "1000")
		s.run("service", "create", "-d", "--name", "batch", "--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2", image, "echo", "done")
		s.run("service", "create", "-d", "--name", "once", "--mode", "global-job", image, "true")
		s.till("1/1", "service", "ls", "--filter", "name=agent")
		s.till("0/2 (3/3 completed)", "service", "ls", "--filter", "name=batch")
		s.till("(1/1 completed)", "service", "ls", "--filter", "name=once")
		if got := strings.Count(s.run("service", "logs", "--raw", "batch"), "done"); got != 3 {
			s.Errorf("%d runs", got)
		}
		// A client that waits for a job sees it done.
		s.run("service", "create", "-q", "--name", "followed", "--mode", "replicated-job", "--replicas", "2", image, "true")
		s.run("service", "create", "-q", "--name", "followed-too", "--mode", "global-job", image, "true")
		s.run("service", "update", "-d", "--force", "batch") // is done again
		s.till("3/3 completed", "service", "ls", "--filter", "name=batch")
		s.shows("agent", "node", "ps")
		for _, want := range []string{"service create agent", "service create batch", "service update batch"} {
			s.till(want, "events", "--since", "10m", "--until", "0s", "--filter", "scope=swarm", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}")
		}
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// The engine is killed while a service comes and goes; the next one goes on with it.
func TestSwarmEngineKilled(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		restart := func() {
			if err := s.e.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := s.e.Start(s.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.run("service", "create", "-d", "--name", "web", "--replicas", "3", "--restart-delay", "100ms", image, "sleep", "1000")
		restart()
		s.till("3/3", "service", "ls")
		s.run("service", "update", "-d", "--env-add", "A=b", "--update-parallelism", "1", "web")
		restart()
		s.till("completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "web")
		s.till("3/3", "service", "ls")
		s.run("service", "rm", "web")
		restart()
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// The container of a task answers to the task's name, and a task is inspected by its id.
func TestSwarmReach(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		s.run("service", "create", "-d", "--name", "web", "--replicas", "2", "--restart-delay", "100ms", "--hostname", "h{{.Task.Slot}}", image, "sh", "-c", "echo begun $(hostname); exec sleep 1000")
		s.till("2/2", "service", "ls")
		task := s.run("service", "ps", "-q", "--no-trunc", "--filter", "name=web.2", "web")
		name, container := "web.2."+task, s.run("inspect", "-f", "{{.Status.ContainerStatus.ContainerID}}", task)
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("from here"), 0o644); err != nil {
			t.Fatal(err)
		}
		s.shows(container, "inspect", "-f", "{{.Id}}", "web.2")
		s.shows(container, "inspect", "-f", "{{.Id}}", name)
		s.shows("h2", "exec", "web.2", "hostname")
		s.shows("h1", "exec", "web.1", "hostname")
		s.till("begun h2", "logs", "web.2")
		s.shows("sleep 1000", "top", "web.2")
		s.run("cp", file, "web.2:/tmp/file")
		s.shows("from here", "exec", name, "cat", "/tmp/file")
		s.run("cp", "web.2:/tmp/file", file+".back")
		if b, err := os.ReadFile(file + ".back"); err != nil || string(b) != "from here" {
			t.Errorf("%q, %v", b, err)
		}
		s.fails("No such", "exec", "web.3", "true")
		s.fails("No such", "exec", "web", "true")
		s.fails("No such container: web.2", "rm", "web.2") // it names no container to remove
		s.shows("h2", "exec", "web.2", "hostname")
		if filepath.Base(s.client) == "escale" { // Docker's asks for a container first
			s.shows("h2", "exec", task, "hostname")
			s.shows("begun h2", "logs", task)
		}
	})
}

// What one node has all can use: an image that was built on one runs on the others, and the
// manager reaches containers, files and logs of tasks that are not its own.
func TestSwarmNeighbours(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		other := newSwarming(t, s.client)
		s.init()
		token := s.run("swarm", "join-token", "-q", "worker")
		other.run("swarm", "join", "--token", token, "--advertise-addr", other.addr, "--listen-addr", other.addr, s.addr+":2377")
		node := other.run("info", "-f", "{{.Swarm.NodeID}}")
		s.till("Ready", "node", "ls", "--filter", "id="+node)
		// Made on the manager, for the worker; and the other way round.
		made := s.run("commit", "-m", "here", s.run("create", image, "true"), "made:here")
		there := other.run("commit", "-m", "there", other.run("create", image, "true"), "made:there")
		for _, ref := range []string{"made:here", "made:there"} {
			name := strings.TrimPrefix(ref, "made:")
			s.run("service", "create", "-d", "--name", name, "--mode", "global", "--restart-delay", "100ms", ref, "sh", "-c", "echo begun "+name+"; exec sleep 1000")
			s.till("2/2", "service", "ls", "--filter", "name="+name)
		}
		if got := other.run("image", "inspect", "-f", "{{.Id}}", "made:here"); got != made {
			t.Errorf("%s, want %s", got, made)
		}
		if got := s.run("image", "inspect", "-f", "{{.Id}}", "made:there"); got != there {
			t.Errorf("%s, want %s", got, there)
		}
		task := "here." + node + "." + s.run("service", "ps", "-q", "--no-trunc", "--filter", "node="+node, "here")
		container := s.run("inspect", "-f", "{{.Status.ContainerStatus.ContainerID}}", task[strings.LastIndex(task, ".")+1:])
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("from here"), 0o644); err != nil {
			t.Fatal(err)
		}
		s.shows(container, "inspect", "-f", "{{.Id}}", container[:20])
		s.till("begun here", "logs", container)
		s.run("cp", file, container+":/tmp/file")
		s.shows("from here", "exec", container, "cat", "/tmp/file")
		s.run("cp", container+":/tmp/file", file+".back")
		if b, err := os.ReadFile(file + ".back"); err != nil || string(b) != "from here" {
			t.Errorf("%q, %v", b, err)
		}
		s.shows("sleep 1000", "top", container)
		if out, err := s.try("exec", container, "sh", "-c", "echo no >&2; exit 7"); err == nil || out != "no" {
			t.Errorf("%q, %v", out, err)
		}
		other.fails("No such container", "exec", s.run("inspect", "-f", "{{.Id}}", s.list("ps", "-q", "--no-trunc", "--filter", "name=here")[0]), "true")
		s.till("begun here\nbegun here", "service", "logs", "--raw", "here")
	})
}
