// Package cluster tries a cluster of real engines, each in a network namespace of its own
// (escale cluster dev): what it does when machines die, stand still or are cut off, under
// requests and writes that go on.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/moby/moby/api/types/swarm"
)

// soon is how long things may take that come by themselves: a bound for a test that would
// not end, not a goal.
const soon = 90 * time.Second

// node is one of a site.
type node struct {
	Name, Role, Address, Socket, State string

	api *harness.API
}

// site is a cluster, and who is where in it.
type site struct {
	*testing.T
	name  string
	nodes map[string]*node
}

// newSite makes a cluster of some nodes, of which the first are managers, each with the image.
func newSite(t *testing.T, nodes, managers int) *site {
	t.Helper()
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
	for _, p := range []string{"/var/lib/escale-dev", "/run/escale-dev"} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Skip("needs " + p + ": " + err.Error())
		}
	}
	s := &site{T: t, name: fmt.Sprintf("t%d", rand.IntN(100000)), nodes: map[string]*node{}}
	t.Cleanup(func() { s.dev("down") })
	up := []string{"up", strconv.Itoa(nodes), "--managers", strconv.Itoa(managers)}
	for _, arg := range harness.RuntimeArgs() {
		up = append(up, "--engine-option="+arg)
	}
	s.dev(up...)
	var list []*node
	for _, line := range strings.Split(strings.TrimSpace(s.dev("ls", "--format", "json")), "\n") {
		n := &node{}
		if err := json.Unmarshal([]byte(line), n); err != nil {
			t.Fatal(err, line)
		}
		n.api = harness.NewAPI(n.Socket)
		t.Cleanup(n.api.Close)
		s.nodes[n.Name], list = n, append(list, n)
	}
	tar, err := harness.BusyboxTar()
	if err != nil {
		t.Skip(err)
	}
	for _, n := range list {
		if err := n.api.Import(t.Context(), image, "1", bytes.NewReader(tar)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

const image = "trial"

// dev runs `escale cluster dev`.
func (s *site) dev(args ...string) string {
	s.Helper()
	// detached: a clean-up uses it, too
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.BinDir(), "escale"), append([]string{"cluster", "dev", "--name", s.name}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		s.Fatalf("cluster dev %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// names are those of all nodes, but for some.
func (s *site) names(but ...string) []string {
	out := slices.Sorted(maps.Keys(s.nodes))
	return slices.DeleteFunc(out, func(n string) bool { return slices.Contains(but, n) })
}

// do asks a node's engine.
func (s *site) do(n, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
	defer cancel()
	return s.nodes[n].api.Do(ctx, method, path, body, out)
}

// must is do, of what has to work by and by.
func (s *site) must(n, method, path string, body, out any) {
	s.Helper()
	s.till(method+" "+path, func() error { return s.do(n, method, path, body, out) })
}

// till waits until something is so, and gives how long that took.
func (s *site) till(what string, f func() error) time.Duration {
	s.Helper()
	begin := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > harness.Patience(soon) {
			s.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// members are the nodes as a manager sees them, by name.
func (s *site) members(asked string) (map[string]swarm.Node, error) {
	var list []swarm.Node
	if err := s.do(asked, http.MethodGet, "/nodes", nil, &list); err != nil {
		return nil, err
	}
	out := map[string]swarm.Node{}
	for _, n := range list {
		_, name, _ := strings.Cut(n.Description.Hostname, "-")
		out[name] = n
	}
	return out, nil
}

// leader is who leads, as a manager sees it; "" for nobody.
func (s *site) leader(asked string) string {
	list, _ := s.members(asked)
	for name, n := range list {
		if n.ManagerStatus != nil && n.ManagerStatus.Leader && n.ManagerStatus.Reachability == swarm.ReachabilityReachable {
			return name
		}
	}
	return ""
}

// managers are the names of nodes that manage.
func (s *site) managers(asked string) (out []string) {
	list, _ := s.members(asked)
	for name, n := range list {
		if n.ManagerStatus != nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// ready waits until all nodes are, and all managers reachable, one of them leading.
func (s *site) ready(asked string) time.Duration {
	s.Helper()
	return s.till("all nodes are ready", func() error {
		list, err := s.members(asked)
		if err != nil {
			return err
		}
		leaders := 0
		for name, n := range list {
			if n.Status.State != swarm.NodeStateReady || n.ManagerStatus != nil && n.ManagerStatus.Reachability != swarm.ReachabilityReachable {
				return fmt.Errorf("%s is %s, %+v", name, n.Status.State, n.ManagerStatus)
			}
			if n.ManagerStatus != nil && n.ManagerStatus.Leader {
				leaders++
			}
		}
		if len(list) != len(s.nodes) || leaders != 1 {
			return fmt.Errorf("%d nodes, %d leaders", len(list), leaders)
		}
		return nil
	})
}

// create makes a service.
func (s *site) create(asked string, spec swarm.ServiceSpec) {
	s.Helper()
	s.must(asked, http.MethodPost, "/services/create", spec, nil)
}

// service is one that runs a script.
func service(name, script string, mode swarm.ServiceMode) swarm.ServiceSpec {
	grace := time.Second
	return swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: name}, Mode: mode,
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image + ":1", Command: []string{"sh", "-c", script}, StopGracePeriod: &grace}},
	}
}

func replicas(n uint64) swarm.ServiceMode {
	return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}
}

// tasks are those of a service, as a manager sees them.
func (s *site) tasks(asked, service string) ([]swarm.Task, error) {
	var list []swarm.Task
	err := s.do(asked, http.MethodGet, "/tasks?filters="+url.QueryEscape(`{"service":["`+service+`"]}`), nil, &list)
	return list, err
}

// running waits until a service has so many tasks that run on nodes that are there, one in
// each place. Nodes that are lost are not, whatever is known of them.
func (s *site) running(asked, service string, want int, lost ...string) time.Duration {
	s.Helper()
	return s.till(fmt.Sprintf("%s has %d tasks", service, want), func() error {
		list, err := s.tasks(asked, service)
		if err != nil {
			return err
		}
		nodes, err := s.members(asked)
		if err != nil {
			return err
		}
		up := map[string]bool{}
		for name, n := range nodes {
			up[n.ID] = n.Status.State == swarm.NodeStateReady && !slices.Contains(lost, name)
		}
		slots, said := map[string]int{}, []string{}
		for _, t := range list {
			if t.DesiredState == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateRunning && up[t.NodeID] {
				place := strconv.Itoa(t.Slot)
				if t.Slot == 0 {
					place = t.NodeID
				}
				slots[place]++
			} else if t.DesiredState == swarm.TaskStateRunning {
				said = append(said, fmt.Sprintf("%s %s %s", t.Status.State, t.Status.Message, t.Status.Err))
			}
		}
		if len(slots) != want {
			return fmt.Errorf("%d places run; %s", len(slots), strings.Join(said, "; "))
		}
		return nil
	})
}

// load asks the nodes' published port, so often a second, until stop is called.
type load struct {
	mu     sync.Mutex
	at     map[string]bool // nodes that are asked
	sent   int
	failed int
	errs   map[string]int
	end    context.CancelFunc
	done   sync.WaitGroup
}

func (s *site) load(port, rate int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{at: map[string]bool{}, errs: map[string]int{}, end: cancel}
	for _, n := range s.names() {
		l.at[n] = true
	}
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	l.done.Go(func() {
		defer ticker.Stop()
		var requests sync.WaitGroup
		defer requests.Wait()
		for ctx.Err() == nil {
			<-ticker.C
			requests.Go(func() { l.ask(client, s, port) })
		}
	})
	s.Cleanup(func() { l.stop() })
	return l
}

// ask is one request, of a node that is not hurt as it begins.
func (l *load) ask(client *http.Client, s *site, port int) {
	l.mu.Lock()
	names := slices.Sorted(maps.Keys(l.at))
	l.mu.Unlock()
	n := names[rand.IntN(len(names))]
	res, err := client.Get(fmt.Sprintf("http://%s:%d/", s.nodes[n].Address, port))
	if err == nil {
		_ = res.Body.Close() // the status is all that counts
		if res.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", res.StatusCode)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at[n] {
		return // it was hurt meanwhile
	}
	l.sent++
	if err != nil {
		l.failed++
		l.errs[n+": "+short(err)]++
	}
}

// short is what went wrong, without whom it happened to.
func short(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// hurt are nodes that are not asked any more; heal undoes it.
func (l *load) hurt(names ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		delete(l.at, n)
	}
}

func (l *load) heal(names ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		l.at[n] = true
	}
}

// since gives how many were sent and failed since the last call.
func (l *load) since() (sent, failed int, errs map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent, failed, errs = l.sent, l.failed, l.errs
	l.sent, l.failed, l.errs = 0, 0, map[string]int{}
	return sent, failed, errs
}

func (l *load) stop() {
	l.end()
	l.done.Wait()
}

// writer makes configs, one after the other, and notes which the cluster has said it has.
type writer struct {
	mu    sync.Mutex
	at    []string // managers that are asked
	acked []string
	worst time.Duration // between two that were acknowledged
	last  time.Time
	end   context.CancelFunc
	done  sync.WaitGroup
}

func (s *site) write(managers ...string) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{at: managers, end: cancel, last: time.Now()}
	w.done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			w.mu.Lock()
			n := s.nodes[w.at[rand.IntN(len(w.at))]]
			w.mu.Unlock()
			name := fmt.Sprintf("w%d", i)
			ask, stop := context.WithTimeout(ctx, 8*time.Second)
			err := n.api.Do(ask, http.MethodPost, "/configs/create", swarm.ConfigSpec{Annotations: swarm.Annotations{Name: name}, Data: []byte(name)}, nil)
			stop()
			w.note(name, err)
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	s.Cleanup(func() { w.stop() })
	return w
}

func (w *writer) note(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return
	}
	w.worst = max(w.worst, time.Since(w.last))
	w.acked, w.last = append(w.acked, name), time.Now()
}

// ask says which managers are asked from now on.
func (w *writer) ask(managers ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = managers
}

// gap is the longest time without a write that was acknowledged, since the last call.
func (w *writer) gap() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	worst := max(w.worst, time.Since(w.last))
	w.worst = 0
	return worst
}

func (w *writer) stop() {
	w.end()
	w.done.Wait()
}
