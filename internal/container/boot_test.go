package container

import (
	"fmt"
	"reflect"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/runtime"
	"github.com/moby/moby/api/types/container"
)

// reboot lets an engine make containers, takes it away with all of them, and
// gives the next one before Resume.
func reboot(t *testing.T, f *fakeEngine, dir string, prepare func(m *Manager)) *Manager {
	t.Helper()
	first := f.manager(t, dir)
	prepare(first)
	synctest.Wait()
	first.Close()
	for _, v := range first.List() {
		if v.State.Running() {
			f.end(v.ID, 137)
			f.exits[first.store.path(v.ID)] = runtime.Exit{Code: 137, At: now()}
		}
	}
	f.mu.Lock()
	f.events = nil
	f.mu.Unlock()
	return f.manager(t, dir)
}

// starts lists the names of what was started, in order.
func (f *fakeEngine) starts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, e := range f.events {
		if e.Action == "start" {
			out = append(out, e.Actor.Attributes["name"])
		}
	}
	return out
}

func service(t *testing.T, m *Manager, name, depends string, h *container.HostConfig, hc *container.HealthConfig) {
	t.Helper()
	if h == nil {
		h = &container.HostConfig{}
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = "always"
	}
	labels := map[string]string{composeProject: "p", composeService: name}
	if depends != "" {
		labels[composeDepends] = depends
	}
	_, err := m.Create(t.Context(), Create{Name: name, HostConfig: h, Config: &container.Config{Image: "debian", Labels: labels, Healthcheck: hc}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// before tells whether a comes before b in list.
func before(list []string, a, b string) bool {
	return slices.Contains(list, a) && slices.Index(list, a) < slices.Index(list, b)
}

func TestBootOrder(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := reboot(t, f, dir, func(m *Manager) {
			service(t, m, "base", "", nil, nil)
			service(t, m, "net", "", nil, nil)
			service(t, m, "linked", "", &container.HostConfig{Links: []string{"base:db"}}, nil)
			service(t, m, "joined", "", &container.HostConfig{NetworkMode: "container:net"}, nil)
			service(t, m, "pid", "", &container.HostConfig{PidMode: "container:joined"}, nil)
			service(t, m, "files", "", &container.HostConfig{VolumesFrom: []string{"pid:ro"}}, nil)
			service(t, m, "web", "files:service_started:true,nosuch:service_healthy:true", nil, nil)
		})
		m.Resume(t.Context())
		time.Sleep(time.Second)
		synctest.Wait()
		got := f.starts()
		for _, p := range [][2]string{{"base", "linked"}, {"net", "joined"}, {"joined", "pid"}, {"pid", "files"}, {"files", "web"}} {
			if !before(got, p[0], p[1]) {
				t.Errorf("%s is not before %s in %v", p[0], p[1], got)
			}
		}
		if len(got) != 7 {
			t.Errorf("started %v, want seven", got)
		}
		m.Close()
	})
}

func TestBootWaitsForHealth(t *testing.T) {
	dir := t.TempDir()
	probe := &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Hour}
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := reboot(t, f, dir, func(m *Manager) {
			service(t, m, "db", "", nil, probe)
			service(t, m, "web", "db:service_healthy:true", nil, nil)
			service(t, m, "slow", "", nil, probe)
			service(t, m, "late", "slow:service_healthy:true", nil, nil)
			// A job that has done its work, and one that has not.
			no := container.RestartPolicy{Name: "no"}
			service(t, m, "job", "", &container.HostConfig{RestartPolicy: no}, nil)
			service(t, m, "bad", "", &container.HostConfig{RestartPolicy: no}, nil)
			f.end(m.mustID("job"), 0)
			f.end(m.mustID("bad"), 3)
			synctest.Wait()
			service(t, m, "after", "job:service_completed_successfully:false", nil, nil)
			service(t, m, "anyway", "bad:service_completed_successfully:false", nil, nil)
		})
		m.Resume(t.Context())
		time.Sleep(10 * time.Second)
		synctest.Wait()
		got := f.starts()
		slices.Sort(got)
		if want := []string{"after", "anyway", "db", "slow"}; !slices.Equal(got, want) {
			t.Errorf("before db is healthy: %v, want %v", got, want)
		}
		e, _ := m.store.find("db")
		e.mu.Lock()
		e.rec.State.Health = &Health{Status: string(container.Healthy)}
		e.tellChange()
		e.mu.Unlock()
		synctest.Wait()
		if got := f.starts(); !slices.Contains(got, "web") || slices.Contains(got, "late") {
			t.Errorf("once db is healthy: %v", got)
		}
		time.Sleep(needPatience)
		synctest.Wait()
		if got := f.starts(); !slices.Contains(got, "late") {
			t.Errorf("held for ever by what does not get well: %v", got)
		}
		m.Close()
	})
}

func (m *Manager) mustID(name string) ID {
	e, err := m.store.find(name)
	if err != nil {
		panic(err)
	}
	return e.id
}

// Circles are cut, failures hold nobody, and a stop takes a container out.
func TestBootGoesOn(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := reboot(t, f, dir, func(m *Manager) {
			service(t, m, "one", "three:service_started:true", nil, nil)
			service(t, m, "two", "one:service_started:true", nil, nil)
			service(t, m, "three", "two:service_started:true,three:service_started:true", nil, nil)
			service(t, m, "broken", "", nil, nil)
			service(t, m, "needy", "broken:service_started:true", nil, nil)
			service(t, m, "held", "", nil, nil)
			service(t, m, "holder", "held:service_started:true", nil, nil)
		})
		f.refuse = map[string]bool{string(m.mustID("broken")): true}
		m.HoldRestarts(true)
		m.Resume(t.Context())
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := f.starts(); len(got) != 0 {
			t.Errorf("started while they are held back: %v", got)
		}
		if err := m.Stop(t.Context(), "held", Stop{}); err != nil {
			t.Error(err)
		}
		m.HoldRestarts(false)
		synctest.Wait()
		got := f.starts()
		slices.Sort(got)
		if want := []string{"holder", "needy", "one", "three", "two"}; !slices.Equal(got, want) {
			t.Errorf("started %v, want %v", got, want)
		}
		m.Close()
	})
}

func TestBootIsBounded(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		const n = 60
		m := reboot(t, f, dir, func(m *Manager) {
			for i := range n {
				service(t, m, fmt.Sprintf("c%d", i), "", nil, nil)
			}
		})
		now, most := make(chan int, 1), 0
		now <- 0
		f.starting = func() {
			k := <-now + 1
			most = max(most, k)
			now <- k
			time.Sleep(time.Second)
			now <- <-now - 1
		}
		m.Resume(t.Context())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := len(f.starts()); got != n || most > max(minBootStarts, 2*goruntime.GOMAXPROCS(0)) || most < 2 {
			t.Errorf("%d started, %d at once", got, most)
		}
		m.Close()
	})
}

func TestParseDepends(t *testing.T) {
	for in, want := range map[string][]dependency{
		"":                        nil,
		"db:service_healthy:true": {{"db", whenHealthy}},
		"db:service_started:false,job:service_completed_successfully:true": {{"db", whenStarted}, {"job", whenCompleted}},
		"db,cache":        {{"db", whenStarted}, {"cache", whenStarted}},
		"db:nonsense,,:x": {{"db", whenStarted}},
	} {
		if got := parseDepends(in); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzParseDepends(f *testing.F) {
	f.Add("db:service_healthy:true,cache")
	f.Add(",,:::")
	f.Fuzz(func(t *testing.T, s string) {
		for _, d := range parseDepends(s) {
			if d.service == "" || strings.ContainsAny(d.service, ",:") || (d.when != whenStarted && d.when != whenHealthy && d.when != whenCompleted) {
				t.Errorf("%q: %+v", s, d)
			}
		}
	})
}
