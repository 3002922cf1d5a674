package cluster

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/moby/moby/api/types/swarm"
)

// The services of a trial: one that answers on every node, one that moves, and one with a secret.
const (
	port     = 8099
	moving   = 8
	password = "the-secret-of-the-trial"
)

// How long it may take, on a machine that has nothing else to do, until a node that is lost is known to be,
// until its tasks run elsewhere, and until a new service runs after the leader was lost.
const (
	knownIn     = 3 * time.Second
	elsewhereIn = 5 * time.Second
	newRunsIn   = 3 * time.Second
)

// trial is a site under load.
type trial struct {
	*site
	load   *load
	writer *writer
	strict bool // it is to be as fast as it has to
}

// within complains when something took longer than it may: half as long again, for other work goes on beside.
func (tr *trial) within(what string, took, bound time.Duration) {
	tr.Helper()
	if tr.strict && took > harness.Patience(bound*3/2) {
		tr.Errorf("%s after %s, and %s are meant", what, round(took), bound)
	}
}

func newTrial(t *testing.T, nodes, managers, rate int) *trial {
	s := newSite(t, nodes, managers)
	s.ready("n1")
	web := service("web", "echo it works >/srv/index.html; exec httpd -f -p 80 -h /srv", swarm.ServiceMode{Global: &swarm.GlobalService{}})
	web.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: port}}}
	s.create("n1", web)
	s.create("n1", service("moves", "exec sleep 100000", replicas(moving)))
	var made struct{ ID string }
	s.must("n1", http.MethodPost, "/secrets/create", swarm.SecretSpec{Annotations: swarm.Annotations{Name: "password"}, Data: []byte(password)}, &made)
	guarded := service("guarded", "exec sleep 100000", replicas(1))
	guarded.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}}
	guarded.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: made.ID, SecretName: "password", File: &swarm.SecretReferenceFileTarget{Name: "password", UID: "0", GID: "0", Mode: 0o400}}}
	s.create("n1", guarded)
	s.running("n1", "web", nodes)
	s.running("n1", "moves", moving)
	s.running("n1", "guarded", 1)
	tr := &trial{site: s}
	s.answer(s.names()...)
	tr.load, tr.writer = s.load(port, rate), s.write(s.managers("n1")...)
	time.Sleep(2 * time.Second)
	sent, failed, errs := tr.load.since()
	tr.Logf("at rest: %d requests, %d failed; writes at most %s apart", sent, failed, tr.writer.gap().Round(time.Millisecond))
	if failed > 0 {
		tr.Errorf("at rest requests fail: %v", errs)
	}
	return tr
}

// tell prints how something went.
func (tr *trial) tell(what string, times ...any) {
	tr.Helper()
	time.Sleep(time.Second)
	sent, failed, errs := tr.load.since()
	tr.Logf("%-34s %s; of other nodes' %d requests %d failed %v; writes at most %s apart", what+":", fmt.Sprintln(times...)[:len(fmt.Sprintln(times...))-1], sent, failed, errs, tr.writer.gap().Round(10*time.Millisecond))
}

// answer waits until nodes answer the published port.
func (s *site) answer(names ...string) {
	s.Helper()
	for _, n := range names {
		s.till(n+" answers", func() error {
			res, err := http.Get(fmt.Sprintf("http://%s:%d/", s.nodes[n].Address, port))
			if err == nil {
				_ = res.Body.Close() // the status is all that counts
				if res.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %d", res.StatusCode)
				}
			}
			return err
		})
	}
}

// killWorker ends a worker as a power cut does, and gives it back.
func (tr *trial) killWorker(n, asked string) {
	tr.Helper()
	tr.load.hurt(n)
	begin := time.Now()
	tr.dev("kill", n)
	tr.till("it is down", func() error {
		list, err := tr.members(asked)
		if err == nil && list[n].Status.State == swarm.NodeStateReady {
			err = fmt.Errorf("%s is ready still", n)
		}
		return err
	})
	down := time.Since(begin)
	tr.running(asked, "moves", moving, n)
	moved := time.Since(begin)
	tr.dev("heal", n)
	back := tr.ready(asked)
	tr.running(asked, "web", len(tr.nodes))
	tr.answer(n)
	tr.load.heal(n)
	tr.within("a lost worker is known", down, knownIn)
	tr.within("its tasks run elsewhere", moved, elsewhereIn)
	tr.tell("a worker killed", "known after", round(down), "its tasks elsewhere after", round(moved), "back after", round(back))
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// loseLeader does something to the leader, waits for another, and undoes it.
func (tr *trial) loseLeader(what, verb string, others ...string) {
	tr.Helper()
	was := tr.leader("n1")
	if was == "" {
		tr.Fatal("nobody leads")
	}
	lost := append([]string{was}, others...)
	rest := slices.DeleteFunc(tr.managers(was), func(n string) bool { return slices.Contains(lost, n) })
	tr.load.hurt(lost...)
	tr.writer.ask(rest...)
	begin := time.Now()
	tr.dev(append([]string{verb}, lost...)...)
	tr.till("another leads", func() error {
		if is := tr.leader(rest[0]); is == "" || is == was {
			return fmt.Errorf("%q leads", is)
		}
		return nil
	})
	leads := time.Since(begin)
	name := fmt.Sprintf("after-%s", verb)
	tr.create(rest[0], service(name, "exec sleep 100000", replicas(1)))
	tr.running(rest[0], name, 1, lost...)
	runs := time.Since(begin)
	tr.running(rest[0], "moves", moving, lost...)
	moved := time.Since(begin)
	time.Sleep(2 * time.Second) // the old one is past its lease by far
	tr.dev(append([]string{"heal"}, lost...)...)
	back := tr.ready(rest[0])
	tr.running(rest[0], "web", len(tr.nodes))
	tr.must(rest[0], http.MethodDelete, "/services/"+name, nil, nil)
	tr.answer(lost...)
	tr.load.heal(lost...)
	tr.writer.ask(tr.managers(rest[0])...)
	tr.within(what+": a new service runs", runs, newRunsIn)
	tr.within(what+": tasks run elsewhere", moved, elsewhereIn)
	tr.tell(what, "another leads after", round(leads), "a new service runs after", round(runs), "all tasks elsewhere after", round(moved), "back after", round(back))
}

// loseMajority cuts off all managers but one: nothing is written, all goes on that runs, and
// all is well again after.
func (tr *trial) loseMajority() {
	tr.Helper()
	list := tr.managers("n1")
	one, others := list[0], list[1:]
	tr.load.hurt(others...)
	tr.dev(append([]string{"partition"}, others...)...)
	time.Sleep(4 * time.Second)
	if err := tr.do(one, http.MethodPost, "/configs/create", swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "minority"}}, nil); err == nil {
		tr.Error("a minority writes")
	}
	tr.dev(append([]string{"heal"}, others...)...)
	back := tr.ready(one)
	tr.running(one, "web", len(tr.nodes))
	tr.running(one, "moves", moving)
	tr.answer(others...)
	tr.load.heal(others...)
	tr.tell("two of three managers cut off", "back after", round(back))
}

// restartAll starts the engines anew, one after the other: what runs goes on.
func (tr *trial) restartAll() {
	tr.Helper()
	begin := time.Now()
	for _, n := range tr.names() {
		asked := "n1"
		if n == "n1" {
			asked = "n2"
		}
		tr.writer.ask(asked)
		tr.dev("stop", n)
		tr.dev("start", n)
		tr.ready(asked)
	}
	tr.running("n1", "web", len(tr.nodes))
	tr.writer.ask(tr.managers("n1")...)
	tr.tell("all engines anew, one by one", "in", round(time.Since(begin)))
}

var leads = regexp.MustCompile(`msg="this manager leads".* term=(\d+)`)

// check looks, at the end, whether all is as it was said: every write that was acknowledged is
// there, no term had two leaders, a secret is where it is needed only, and each node has the
// containers of its tasks and no others.
func (tr *trial) check() {
	tr.Helper()
	tr.writer.stop()
	tr.load.stop()
	var configs []swarm.Config
	tr.must("n1", http.MethodGet, "/configs", nil, &configs)
	there := map[string]bool{}
	for _, c := range configs {
		there[c.Spec.Name] = string(c.Spec.Data) == c.Spec.Name
	}
	lost := 0
	for _, name := range tr.writer.acked {
		if !there[name] {
			lost++
		}
	}
	tr.Logf("%d writes were acknowledged, %d of them are lost", len(tr.writer.acked), lost)
	if lost > 0 {
		tr.Error("acknowledged writes are lost")
	}
	terms := map[string]string{}
	for _, n := range tr.names() {
		log, err := os.ReadFile(filepath.Join("/var/lib/escale-dev", tr.name, n, "engine.log"))
		if err != nil {
			tr.Fatal(err)
		}
		for _, m := range leads.FindAllStringSubmatch(string(log), -1) {
			if other := terms[m[1]]; other != "" {
				tr.Errorf("term %s: %s and %s led", m[1], other, n)
			}
			terms[m[1]] = n
		}
	}
	tr.Logf("%d terms, each with one leader", len(terms))
	tr.secrets()
	tr.till("each node has its tasks", tr.containers)
}

// containers tells whether each node runs the containers of the tasks that are to run there.
func (tr *trial) containers() error {
	list, err := tr.members("n1")
	if err != nil {
		return err
	}
	var tasks []swarm.Task
	if err := tr.do("n1", http.MethodGet, "/tasks", nil, &tasks); err != nil {
		return err
	}
	for name, n := range list {
		want := 0
		for _, t := range tasks {
			if t.NodeID == n.ID && t.DesiredState == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateRunning {
				want++
			}
		}
		var has []struct{ ID string }
		if err := tr.do(name, http.MethodGet, "/containers/json", nil, &has); err != nil {
			return err
		}
		if len(has) != want {
			return fmt.Errorf("%s runs %d containers for %d tasks", name, len(has), want)
		}
	}
	return nil
}

// secrets looks for the secret in what nodes have on disk and in their files in memory: the
// node with the task has it, in memory only.
func (tr *trial) secrets() {
	tr.Helper()
	tasks, err := tr.tasks("n1", "guarded")
	if err != nil {
		tr.Fatal(err)
	}
	list, err := tr.members("n1")
	if err != nil {
		tr.Fatal(err)
	}
	needs := map[string]bool{}
	for _, t := range tasks {
		for name, n := range list {
			if t.NodeID == n.ID && t.DesiredState == swarm.TaskStateRunning {
				needs[name] = true
			}
		}
	}
	forms := []string{password, base64.StdEncoding.EncodeToString([]byte(password))}
	has := func(dir string) (found []string) {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { // what goes meanwhile is not there
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			if b, err := os.ReadFile(path); err == nil && slices.ContainsFunc(forms, func(f string) bool { return strings.Contains(string(b), f) }) {
				found = append(found, path)
			}
			return nil
		})
		return found
	}
	for _, name := range tr.names() {
		if found := has(filepath.Join("/var/lib/escale-dev", tr.name, name, "data", "cluster")); len(found) > 0 {
			tr.Errorf("%s has the secret on disk: %v", name, found)
		}
		found := has(filepath.Join("/run/escale-dev", tr.name, name, "exec", "tasks"))
		if (len(found) > 0) != needs[name] {
			tr.Errorf("%s has the secret in memory: %v; it needs it: %v", name, found, needs[name])
		}
	}
}

// TestTrial: five nodes, three managers, under requests to a published port and writes to the
// store; a worker and leaders are lost in every way. ESCALE_TRIAL=1 asks for all of it; else
// three nodes lose a worker and a leader.
func TestTrial(t *testing.T) {
	if os.Getenv("ESCALE_TRIAL") == "" {
		tr := newTrial(t, 4, 3, 50)
		tr.killWorker("n4", "n1")
		tr.loseLeader("the leader killed", "kill")
		tr.check()
		return
	}
	tr := newTrial(t, 5, 3, 500)
	tr.strict = true
	tr.killWorker("n5", "n1")
	tr.loseLeader("the leader killed", "kill")
	tr.loseLeader("the leader frozen past its lease", "freeze")
	tr.loseLeader("the leader and a worker cut off", "partition", "n4")
	tr.loseMajority()
	tr.restartAll()
	tr.check()
}
