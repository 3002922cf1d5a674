package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// A port of the node is one task's: the next one waits and says so, and has it when the
// first one goes. Services can be on the networks that every node has.
func TestSwarmHostPorts(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		_, port, _ := strings.Cut(freePort(t), ":")
		s.run("service", "create", "-d", "--name", "web", "--replicas", "2", "--publish", "mode=host,published="+port+",target=80", "--publish", "mode=host,target=81", "--update-monitor", "100ms", "--stop-grace-period", "1s", image, "httpd", "-f", "-p", "80")
		s.till("no suitable node (host-mode port already in use on 1 node)", "service", "ps", "--no-trunc", "--format", "{{.Error}}", "web")
		s.till("*:"+port+"->80/tcp", "service", "ps", "--format", "{{.Ports}}", "web")
		s.till("->81/tcp", "service", "ps", "--format", "{{.Ports}}", "web")
		s.till("1/2", "service", "ls")
		s.run("service", "scale", "-d", "web=1")
		s.till("1/1", "service", "ls")
		s.run("service", "update", "-d", "--env-add", "A=b", "web")
		s.till("completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "web")
		s.shows("*:"+port+"->80/tcp", "service", "ps", "--filter", "desired-state=running", "--format", "{{.Ports}}", "web")
		s.run("service", "rm", "web")
		s.run("network", "create", "--config-only", "--subnet", "10.213.9.0/24", "cfg")
		s.fails("network sub: the swarm has networks of driver overlay only, not of macvlan", "network", "create", "--scope", "swarm", "--config-from", "cfg", "-d", "macvlan", "sub")
		s.fails("network sub: the swarm has networks of driver overlay only, not of bridge", "network", "create", "--scope", "swarm", "sub")
		s.run("network", "rm", "cfg")
		for i, network := range []string{"host", "bridge", s.run("network", "inspect", "-f", "{{.Id}}", "host")} {
			name := "own" + strconv.Itoa(i)
			s.run("service", "create", "-d", "--name", name, "--network", network, "--stop-grace-period", "1s", image, "sleep", "1000")
			s.till([]string{"host", "bridge", "host"}[i], "ps", "--filter", "name="+name, "--format", "{{.Networks}}")
			s.run("service", "rm", name)
		}
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// givenRoot makes a root that is nobody's yet, and gives the files of its certificate and key.
func givenRoot(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "ours"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, want, want, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// The root of a swarm is exchanged for another of its own, and for one that is given. A
// manager's store begins anew with it: commands are tried until they are answered.
func TestSwarmRoot(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		// until runs a command until what it prints, or fails with, is as it is wanted.
		until := func(want func(out string, err error) bool, args ...string) string {
			t.Helper()
			for end := time.Now().Add(harness.Patience(40 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
				out, err := s.try(args...)
				if want(out, err) {
					return out
				}
				if time.Now().After(end) {
					t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
				}
			}
		}
		well := func(_ string, err error) bool { return err == nil }
		rotate := func(args ...string) string {
			t.Helper()
			before := until(well, "swarm", "ca")
			until(well, append([]string{"swarm", "ca", "--rotate", "--detach"}, args...)...)
			return until(func(out string, err error) bool { return err == nil && out != before }, "swarm", "ca")
		}
		refused := func(words string, args ...string) {
			t.Helper()
			until(func(out string, err error) bool { return err != nil && strings.Contains(out, words) }, args...)
		}
		token := s.run("swarm", "join-token", "-q", "worker")
		if got := rotate(); !strings.Contains(got, "BEGIN CERTIFICATE") {
			s.Error(got)
		}
		if got := until(well, "swarm", "join-token", "-q", "worker"); got == token {
			s.Error("the token names the old root")
		}
		cert, key := givenRoot(t)
		raw, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		mine := strings.TrimSpace(string(raw))
		if got := rotate("--ca-cert", cert, "--ca-key", key); got != mine {
			s.Errorf("%s\nwant %s", got, mine)
		}
		has := func(out string, err error) bool { return err == nil && strings.Contains(out, mine) }
		until(has, "node", "inspect", "-f", "{{.Description.TLSInfo.TrustRoot}}", "self")
		other, _ := givenRoot(t)
		refused("it is not the key of the certificate", "swarm", "ca", "--rotate", "--ca-cert", other, "--ca-key", key)
		refused("external certificate authorities are not supported", "swarm", "update", "--external-ca", "protocol=cfssl,url=https://192.0.2.1")
		refused("minimum certificate expiry time is: 1h0m0s", "swarm", "update", "--cert-expiry", "1m")
		until(has, "swarm", "ca") // what was refused has changed nothing
		until(well, "swarm", "leave", "--force")
	})
}

// A secret gets other content under its name: tasks are exchanged as for every update, and
// who goes back has what was there before.
func TestSwarmRenew(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte("first"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.run("secret", "create", "--label", "a=b", "key", file)
		s.run("service", "create", "-d", "--name", "reader", "--replicas", "2", "--restart-delay", "100ms", "--update-monitor", "100ms", "--rollback-monitor", "100ms", "--update-parallelism", "1", "--secret", "key", image,
			"sh", "-c", "echo has $(cat /run/secrets/key); trap exit TERM; sleep 1000 & wait")
		s.till("2/2", "service", "ls")
		api := s.e.API()
		var renewed struct {
			ID       string
			Services []string
		}
		renew := func(data string) {
			t.Helper()
			if err := api.Do(s.Context(), "POST", "/escale/secrets/key/renew", map[string][]byte{"Data": []byte(data)}, &renewed); err != nil {
				t.Fatal(err)
			}
		}
		// has waits until the tasks that run have it.
		has := func(what string) {
			t.Helper()
			end := time.Now().Add(harness.Patience(40 * time.Second))
			for {
				n := 0
				for _, id := range s.list("ps", "-q", "--filter", "label=com.docker.swarm.service.name=reader") {
					if out, err := s.try("exec", id, "cat", "/run/secrets/key"); err == nil && out == what {
						n++
					}
				}
				if n == 2 {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("%d tasks have %q\n%s", n, what, s.run("service", "ps", "--no-trunc", "reader"))
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		renew("second")
		if fmt.Sprint(renewed.Services) != "[reader]" {
			t.Errorf("%+v", renewed)
		}
		has("second")
		s.till("completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "reader")
		s.shows(renewed.ID, "service", "inspect", "-f", "{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}{{.SecretID}}{{end}}", "reader")
		s.shows("b", "secret", "inspect", "-f", "{{.Spec.Labels.a}}", "key")
		s.run("service", "rollback", "-d", "reader")
		has("first")
		s.till("rollback_completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "reader")
		s.run("service", "update", "-d", "--env-add", "A=b", "reader") // from where it is
		s.till("completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "reader")
		has("first")
		renew("third")
		has("third")
		if got := s.list("secret", "ls", "--format", "{{.Name}}"); len(got) != 1 {
			s.Errorf("%v", got)
		}
		s.run("service", "rm", "reader")
		s.run("secret", "rm", "key")
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// Services have rights that Docker's cannot have, once the swarm permits it.
func TestSwarmPermit(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		create := []string{"service", "create", "-d", "--name", "able", "--container-label", "escale.privileged=true", "--container-label", "escale.devices=/dev/null:/dev/mine:rw", image, "sleep", "1000"}
		s.fails(`this swarm does not permit that to services: its label escale.permit has to name`, create...)
		var is struct {
			Version struct{ Index uint64 }
			Spec    map[string]any
		}
		api := s.e.API()
		if err := api.Do(s.Context(), "GET", "/swarm", nil, &is); err != nil {
			t.Fatal(err)
		}
		is.Spec["Labels"] = map[string]string{"escale.permit": "privileged,devices"}
		if err := api.Do(s.Context(), "POST", "/swarm/update?version="+strconv.FormatUint(is.Version.Index, 10), is.Spec, nil); err != nil {
			t.Fatal(err)
		}
		s.run(create...)
		s.till("1/1", "service", "ls")
		id := s.list("ps", "-q", "--filter", "label=com.docker.swarm.service.name=able")[0]
		s.shows("true", "inspect", "-f", "{{.HostConfig.Privileged}}", id)
		s.run("exec", id, "test", "-c", "/dev/mine")
		s.run("swarm", "update", "--task-history-limit", "3") // and keeps what it permits
		s.run("service", "update", "-d", "--force", "able")
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// A job is done whenever its label says, and not because it is changed.
func TestSwarmSchedule(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		s.fails("only jobs can have a schedule", "service", "create", "-d", "--label", "escale.schedule=@daily", image)
		s.fails(`label escale.schedule: schedule "x"`, "service", "create", "-d", "--mode", "replicated-job", "--label", "escale.schedule=x", image)
		s.run("service", "create", "-d", "--name", "tick", "--mode", "replicated-job", "--label", "escale.schedule=@every 1s", image, "true")
		runs := func() int {
			var list []struct {
				JobStatus struct{ JobIteration struct{ Index int } }
			}
			if err := json.Unmarshal([]byte(s.run("service", "inspect", "tick")), &list); err != nil {
				t.Fatal(err)
			}
			return list[0].JobStatus.JobIteration.Index
		}
		end := time.Now().Add(harness.Patience(40 * time.Second))
		for runs() < 3 {
			if time.Now().After(end) {
				t.Fatalf("%d runs\n%s", runs(), s.run("service", "ps", "--no-trunc", "tick"))
			}
			time.Sleep(100 * time.Millisecond)
		}
		s.run("service", "rm", "tick")
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	})
}

// What is on one node keeps its task there, and says so.
func TestSwarmVolumes(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		s.run("service", "create", "-d", "--name", "db", "--restart-delay", "100ms", "--update-monitor", "100ms", "--mount", "type=volume,source=data,target=/data", image,
			"sh", "-c", "echo x >> /data/starts; trap exit TERM; sleep 1000 & wait")
		begun := func(starts string) { // or what is ended next has not written yet
			s.till("1/1", "service", "ls")
			// The one before is listed for a moment still.
			for end := time.Now().Add(harness.Patience(40 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
				said := ""
				for _, id := range s.list("ps", "-q", "--filter", "label=com.docker.swarm.service.name=db") {
					said, _ = s.try("exec", id, "cat", "/data/starts") // it may be ending
				}
				if strings.Contains(said, starts) {
					return
				}
				if time.Now().After(end) {
					s.Fatalf("its container says %q, not %q\n%s", said, starts, s.run("node", "ps", "--no-trunc"))
				}
			}
		}
		begun("x")
		node, name := s.run("info", "-f", "{{.Swarm.NodeID}}"), s.run("info", "-f", "{{.Name}}")
		s.run("node", "update", "--availability", "drain", node)
		s.till(`no suitable node (volume "data" is on node `+name+`; node not available on 1 node): "escale volume move data NODE" takes it along`, "service", "ps", "--no-trunc", "--format", "{{.Error}}", "db")
		s.run("node", "update", "--availability", "active", node)
		begun("x\nx")
		s.run("service", "update", "-d", "--force", "db")
		s.till("completed", "service", "inspect", "-f", "{{.UpdateStatus.State}}", "db")
		begun("x\nx\nx")
		s.run("service", "rm", "db")
		s.run("swarm", "leave", "--force")
		s.run("volume", "rm", "data")
		noLeaks(t, s.e)
	})
}

// Resources that people make up are reserved, and those that have names are told to whoever
// has got them.
func TestSwarmResources(t *testing.T) {
	swarmClients(t, func(s *swarming) {
		s.init()
		s.shows("gpu=a gpu=b ssd=2", "node", "inspect", "-f", "{{range .Description.Resources.GenericResources}}{{with .NamedResourceSpec}}{{.Kind}}={{.Value}} {{end}}{{with .DiscreteResourceSpec}}{{.Kind}}={{.Value}}{{end}}{{end}}", "self")
		s.run("service", "create", "-d", "--name", "miner", "--replicas", "3", "--generic-resource", "gpu=1", image, "sh", "-c", "echo has $DOCKER_RESOURCE_GPU; sleep 1000")
		s.till("2/3", "service", "ls")
		s.till("has a", "service", "logs", "--raw", "miner")
		s.till("has b", "service", "logs", "--raw", "miner")
		s.till("no suitable node (insufficient resources on 1 node)", "service", "ps", "--no-trunc", "miner")
		s.run("service", "rm", "miner")
		s.run("service", "create", "-d", "--name", "store", "--generic-resource", "ssd=2", image, "sh", "-c", "echo has $DOCKER_RESOURCE_SSD; sleep 1000")
		s.till("has 2", "service", "logs", "--raw", "store")
		s.run("swarm", "leave", "--force")
		noLeaks(t, s.e)
	}, "--node-generic-resource", "gpu=a", "--node-generic-resource", "gpu=b", "--node-generic-resource", "ssd=2")
}
