package cluster

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// placed is where a task is found: its address in each place.
type placed struct {
	id, node, container string
	pid                 int
	at                  map[string]string
}

// served are the tasks of a service that are to run, and do.
func (s *site) served(asked, service, net string) ([]placed, error) {
	list, err := s.tasks(asked, service)
	if err != nil {
		return nil, err
	}
	nodes, err := s.members(asked)
	if err != nil {
		return nil, err
	}
	var out []placed
	for _, t := range list {
		if t.DesiredState != swarm.TaskStateRunning || t.Status.State != swarm.TaskStateRunning || t.Status.ContainerStatus == nil {
			continue
		}
		p := placed{id: t.ID, container: t.Status.ContainerStatus.ContainerID, pid: t.Status.ContainerStatus.PID, at: map[string]string{}}
		for name, n := range nodes {
			if n.ID == t.NodeID {
				p.node = name
			}
		}
		for _, a := range t.NetworksAttachments {
			for _, addr := range a.Addresses {
				text := fmt.Sprint(addr)
				if prefix, err := netip.ParsePrefix(text); err == nil {
					text = prefix.Addr().String()
				}
				if a.Network.Spec.Name == net {
					p.at[inNames], p.at[inVIP] = text, text
				} else {
					p.at[inMesh] = text
				}
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// places are the addresses of tasks by place.
func places(list []placed) map[string][]string {
	out := map[string][]string{}
	for _, p := range list {
		for place, a := range p.at {
			out[place] = append(out[place], a)
		}
	}
	return out
}

// scale has a service have so many tasks, and gives when that was asked.
func (s *site) scale(asked, service string, n uint64) time.Time {
	s.Helper()
	var begin time.Time
	s.till("scale "+service, func() error {
		var is swarm.Service
		if err := s.do(asked, http.MethodGet, "/services/"+service, nil, &is); err != nil {
			return err
		}
		is.Spec.Mode = replicas(n)
		begin = time.Now()
		return s.do(asked, http.MethodPost, fmt.Sprintf("/services/%s/update?version=%d", is.ID, is.Version.Index), is.Spec, nil)
	})
	return begin
}

// TestSpread: how long it takes until all nodes know of a task that has come, that is to go, or
// that has died: its names, the address of its service, published ports. And a node that was cut
// off while much has changed knows afterwards just what it would know if it had come that moment.
// ESCALE_TRIAL=1 asks for five nodes, and prints the times of more rounds.
func TestSpread(t *testing.T) {
	nodes, managers, rounds := 3, 1, 1
	if os.Getenv("ESCALE_TRIAL") != "" {
		nodes, managers, rounds = 5, 3, 5
	}
	s := newSite(t, nodes, managers)
	s.ready("n1")
	last := fmt.Sprint("n", nodes)
	s.must("n1", http.MethodPost, "/networks/create", network.CreateRequest{Name: "wide", Driver: "overlay"}, nil)
	on := []swarm.NetworkAttachmentConfig{{Target: "wide"}}
	look := service("look", "exec sleep 100000", swarm.ServiceMode{Global: &swarm.GlobalService{}})
	look.TaskTemplate.Networks = on
	s.create("n1", look)
	web := service("web", "echo it works >/srv/index.html; exec httpd -f -p 80 -h /srv", replicas(3))
	web.TaskTemplate.Networks = on
	web.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname!=" + s.name + "-" + last}}
	web.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: port}}}
	s.create("n1", web)
	s.running("n1", "look", nodes)
	s.running("n1", "web", 3)
	l := s.watch("look", "web")
	times := map[string]map[string][]time.Duration{}
	note := func(what string, begin time.Time, come bool, of []placed) {
		t.Helper()
		if len(of) == 0 {
			t.Fatalf("%s: no task", what)
		}
		var worst map[string]time.Duration
		s.till(what+" is known everywhere", func() (err error) { worst, err = l.since(begin, come, places(of)); return err })
		if len(worst) != 3 {
			t.Fatalf("%s: looked at %v", what, worst)
		}
		if times[what] == nil {
			times[what] = map[string][]time.Duration{}
		}
		for place, d := range worst {
			times[what][place] = append(times[what][place], d)
		}
	}
	for range rounds {
		before := s.runs("web", 3)
		s.scale("n1", "web", 5)
		more := s.runs("web", 5)
		for _, p := range more {
			if !slices.ContainsFunc(before, func(o placed) bool { return o.id == p.id }) {
				note("a task that has started", s.started(p), true, []placed{p})
			}
		}
		p := more[0]
		begin := time.Now()
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		note("a task that has died", begin, false, []placed{p})
		more = s.runs("web", 5, p.id)
		begin = s.scale("n1", "web", 3)
		left := s.runs("web", 3)
		note("a task that is to go", begin, false, slices.DeleteFunc(more, func(p placed) bool {
			return slices.ContainsFunc(left, func(o placed) bool { return o.id == p.id })
		}))
	}
	l.close()
	for _, what := range slices.Sorted(maps.Keys(times)) {
		by := times[what]
		for _, place := range []string{inNames, inVIP, inMesh} {
			slices.Sort(by[place])
			d := by[place]
			late := ""
			if d[len(d)-1] > time.Second {
				late = ": MORE THAN A SECOND"
			}
			t.Logf("%s: all nodes have it in %s after %v (median of %d; worst %v)%s", what, place, d[len(d)/2].Round(time.Millisecond), len(d), d[len(d)-1].Round(time.Millisecond), late)
		}
	}
	s.healed(last)
}

// runs waits until a service has so many tasks, none of them one of these.
func (s *site) runs(service string, n int, but ...string) (out []placed) {
	s.Helper()
	s.till(fmt.Sprintf("%s has %d tasks", service, n), func() (err error) {
		out, err = s.served("n1", service, "wide")
		if err == nil && len(out) != n {
			err = fmt.Errorf("%d run", len(out))
		}
		for _, p := range out {
			if slices.Contains(but, p.id) || len(p.at) != 3 {
				err = fmt.Errorf("%s runs still, or has no addresses: %v", p.id, p.at)
			}
		}
		return err
	})
	return out
}

// started is when the container of a task has.
func (s *site) started(p placed) time.Time {
	s.Helper()
	var c struct{ State struct{ StartedAt time.Time } }
	s.must(p.node, http.MethodGet, "/containers/"+p.container+"/json", nil, &c)
	return c.State.StartedAt
}

// healed cuts a node off, changes much, and compares what it knows, once it is back, with what
// it knows after all of that was taken from it.
func (s *site) healed(n string) {
	s.Helper()
	s.dev("partition", n)
	s.till(n+" is down", func() error {
		list, err := s.members("n1")
		if err == nil && list[n].Status.State == swarm.NodeStateReady {
			err = fmt.Errorf("it is ready still")
		}
		return err
	})
	gone := s.runs("web", 3)
	s.scale("n1", "web", 1)
	s.runs("web", 1)
	s.scale("n1", "web", 4)
	now := s.runs("web", 4)
	begin := time.Now()
	s.dev("heal", n)
	s.ready("n1")
	s.running("n1", "look", len(s.nodes))
	var is []string
	s.till(n+" knows the tasks that there are", func() (err error) {
		if is, err = s.entries(n, "look", "web"); err != nil {
			return err
		}
		return knows(is, now, gone)
	})
	s.Logf("%s was cut off and knows all again %v after that is over", n, time.Since(begin).Round(10*time.Millisecond))
	is = s.steady(n)
	box, err := s.client(n, "look")
	if err != nil {
		s.Fatal(err)
	}
	s.dev("stop", n)
	if err := s.wipe(n, box); err != nil {
		s.Fatal(err)
	}
	s.dev("start", n)
	s.ready("n1")
	var fresh []string
	s.till(n+" begins anew", func() (err error) {
		if fresh, err = s.entries(n, "look", "web"); err != nil {
			return err
		}
		return knows(fresh, now, gone)
	})
	fresh = s.steady(n)
	for _, e := range is {
		if !slices.Contains(fresh, e) {
			s.Errorf("%s was cut off and has what a fresh node has not: %s", n, e)
		}
	}
	for _, e := range fresh {
		if !slices.Contains(is, e) {
			s.Errorf("%s was cut off and has not what a fresh node has: %s", n, e)
		}
	}
	if len(is) < 20 {
		s.Errorf("that is too little to compare: %s", strings.Join(is, "\n"))
	}
}

// steady is what a node knows once that has not changed for a second.
func (s *site) steady(n string) (out []string) {
	s.Helper()
	since := time.Now()
	s.till(n+" comes to rest", func() error {
		is, err := s.entries(n, "look", "web")
		if err != nil {
			return err
		}
		if !slices.Equal(is, out) {
			out, since = is, time.Now()
		}
		if time.Since(since) < time.Second {
			return fmt.Errorf("it has just changed")
		}
		return nil
	})
	return out
}

// knows tells whether names say the addresses of tasks and no others.
func knows(entries []string, now, gone []placed) error {
	text := ""
	for _, e := range entries {
		if strings.HasPrefix(e, "tasks.web ") {
			text = e + " "
		}
	}
	has := func(p placed) bool {
		return strings.Contains(strings.NewReplacer("[", " ", "]", " ").Replace(text), " "+p.at[inNames]+" ")
	}
	for _, p := range now {
		if !has(p) {
			return fmt.Errorf("%s is not in %s", p.at[inNames], text)
		}
	}
	for _, p := range gone {
		if has(p) && !slices.ContainsFunc(now, func(o placed) bool { return o.at[inNames] == p.at[inNames] }) {
			return fmt.Errorf("%s is in %s", p.at[inNames], text)
		}
	}
	return nil
}
