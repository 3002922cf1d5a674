package app

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/moby/moby/api/types/container"
)

// bench has a store with the app "shop" and looks at it with the loop.
type bench struct {
	*testing.T
	s store.Store
}

func newBench(t *testing.T, spec cluster.AppSpec) *bench {
	b := &bench{t, mem.New(store.NewState())}
	t.Cleanup(func() { _ = b.s.Close() })
	b.commit(store.Create(&cluster.App{Meta: cluster.Meta{Name: "shop"}, Spec: spec}))
	return b
}

func (b *bench) commit(changes ...store.Change) {
	b.Helper()
	if _, err := b.s.Commit(b.Context(), changes...); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) app() *cluster.App {
	b.Helper()
	a, err := store.Named[*cluster.App](b.s.View(), "shop")
	if err != nil {
		b.Fatal(err)
	}
	return a
}

func (b *bench) ask(f func(*cluster.AppSpec)) {
	b.Helper()
	a := store.Copy(b.app())
	f(&a.Spec)
	a.Spec.Number++
	b.commit(store.Update(a))
}

// decide does what the loop wants done, once, and writes it as "create network
// shop_default, …".
func (b *bench) decide() string {
	b.Helper()
	v := b.s.View()
	var all []string
	for _, a := range store.List[*cluster.App](v) {
		d := Loop{}.Decide(v, a.ID, time.Now())
		for _, c := range d.Changes {
			if c.Op != store.OpUnchanged {
				all = append(all, fmt.Sprintf("%s %s %s", map[store.Op]string{store.OpCreate: "create", store.OpUpdate: "update", store.OpDelete: "delete"}[c.Op], c.Object.Kind(), c.Object.Base().Name))
			}
		}
		if len(d.Changes) > 0 {
			b.commit(d.Changes...)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// steps checks what the loop wants, decision after decision.
func (b *bench) steps(want ...string) {
	b.Helper()
	for i, w := range want {
		if got := b.decide(); got != w {
			b.Errorf("decision %d: %q, want %q", i+1, got, w)
		}
	}
}

// clear does what the node does with what is to be removed.
func (b *bench) clear() {
	b.Helper()
	for _, n := range store.List[*cluster.Network](b.s.View()) {
		if n.Spec.Removed {
			b.commit(store.Delete(n))
		}
	}
	for _, v := range store.List[*cluster.Volume](b.s.View()) {
		if v.Spec.Removed {
			b.commit(store.Delete(v))
		}
	}
}

// task makes a task of a service in a state.
func (b *bench) task(service string, slot, number uint64, state cluster.TaskState, f func(*cluster.Task)) *cluster.Task {
	b.Helper()
	s, err := store.Named[*cluster.Service](b.s.View(), "shop_"+service)
	if err != nil {
		b.Fatal(err)
	}
	t := s.First(slot, "")
	t.ID, t.Number, t.Status.State, t.Status.Healthy = cluster.NewID(), number, state, state == cluster.TaskRunning
	t.Status.Err = map[bool]string{true: "task: non-zero exit (1)"}[state == cluster.TaskFailed]
	if f != nil {
		f(t)
	}
	b.commit(store.Create(t))
	return t
}

// tells lets the loop decide; then the app is to have failed for that reason, or for "" to
// be changing.
func (b *bench) tells(reason string) {
	b.Helper()
	b.decide()
	want := cluster.AppStatus{Number: 1, Phase: cluster.AppChanging}
	if reason != "" {
		want.Phase, want.Message = cluster.AppFailed, reason
	}
	if got := b.app().Status; got != want {
		b.Errorf("%+v, want %+v", got, want)
	}
}

func spec() cluster.AppSpec {
	service := func(needs ...cluster.Need) cluster.ServiceSpec {
		return cluster.ServiceSpec{
			Mode: cluster.Mode{Replicated: &cluster.Replicated{Replicas: 1}},
			Task: cluster.TaskSpec{Container: &container.Config{Image: "a"}, Host: &container.HostConfig{}, Needs: needs},
		}
	}
	return cluster.AppSpec{
		Number:   1,
		Services: map[string]cluster.ServiceSpec{"web": service(cluster.Need{Service: "shop_db", Condition: cluster.Started}), "db": service()},
		Networks: map[string]cluster.NetworkSpec{"default": {Name: "shop_default"}, "lan": {Name: "lan", External: true}},
		Volumes:  map[string]cluster.VolumeSpec{"data": {Name: "shop_data"}},
		Secrets:  map[string]cluster.SecretSpec{"key": {Data: []byte("hush")}},
	}
}

const made = "create network shop_default, create network shop_lan, create secret shop_key, create service shop_db, create service shop_web, create volume shop_data"

func TestMakesAndStates(t *testing.T) {
	b := newBench(t, spec())
	b.steps(made, "update app shop", "")
	if got := b.app().Status; got.Phase != cluster.AppChanging || got.Number != 1 {
		t.Errorf("nothing runs yet: %+v", got)
	}
	b.task("db", 1, 1, cluster.TaskRunning, nil)
	web := b.task("web", 1, 1, cluster.TaskRunning, nil)
	b.steps("update app shop", "")
	if got := b.app().Status; got.Phase != cluster.AppSteady || got.Message != "" {
		t.Errorf("all runs: %+v", got)
	}
	web = store.Copy(web)
	web.Revision, web.Halted, web.Status.Healthy = b.s.View().Revision(), true, false
	now, err := store.Find[*cluster.Task](b.s.View(), web.ID)
	if err != nil {
		t.Fatal(err)
	}
	web.Meta = now.Meta
	b.commit(store.Update(web))
	b.steps("update app shop", "")
	if got := b.app().Status; got.Phase != cluster.AppSteady || got.Message != "1 stopped by a client" {
		t.Errorf("one is stopped: %+v", got)
	}
}

// What is not in the spec any more goes; what the host alone can take away is marked,
// what is somebody else's is only forgotten, and volumes stay.
func TestDrops(t *testing.T) {
	b := newBench(t, spec())
	b.steps(made)
	b.ask(func(s *cluster.AppSpec) { s.Networks, s.Volumes, s.Secrets = nil, nil, nil })
	b.steps("delete network shop_lan, delete secret shop_key, update network shop_default")
	b.clear()
	if n, v := len(store.List[*cluster.Network](b.s.View())), len(store.List[*cluster.Volume](b.s.View())); n != 0 || v != 1 {
		t.Errorf("%d networks and %d volumes are left", n, v)
	}
}

// A network that has another name from now on is another one: the old one goes when
// nobody is on it any more.
func TestNetworkRenamed(t *testing.T) {
	b := newBench(t, spec())
	b.steps(made)
	web := b.task("web", 1, 1, cluster.TaskRunning, nil)
	b.ask(func(s *cluster.AppSpec) {
		s.Networks["default"] = cluster.NetworkSpec{Name: "other"}
		front := s.Services["web"]
		front.Networks = []cluster.Attachment{{Network: "other"}}
		s.Services["web"] = front
	})
	b.steps("create network shop_default@shop_default, update network shop_default, update service shop_web", "update app shop", "")
	web = store.Copy(b.find(web))
	web.Status.State = cluster.TaskShutdown
	b.commit(store.Update(web))
	b.steps("update network shop_default@shop_default")
	b.clear()
	list := store.List[*cluster.Network](b.s.View())
	if len(list) != 2 || !slices.ContainsFunc(list, func(n *cluster.Network) bool { return n.Name == "shop_default" && n.Spec.Name == "other" }) {
		t.Errorf("there are %+v", list)
	}
}

// Whoever needs others ends before they do; then go networks, volumes if they are to, and the app.
func TestRemovesInOrder(t *testing.T) {
	for _, volumes := range []bool{false, true} {
		b := newBench(t, spec())
		b.steps(made)
		web, db := b.task("web", 1, 1, cluster.TaskRunning, nil), b.task("db", 1, 1, cluster.TaskRunning, nil)
		b.ask(func(s *cluster.AppSpec) { s.Removed, s.Volumed = true, volumes })
		b.steps("delete service shop_web", "")
		b.commit(store.Delete(b.find(web)))
		b.steps("delete service shop_db", "")
		b.commit(store.Delete(b.find(db)))
		b.steps(map[bool]string{
			false: "delete network shop_lan, delete secret shop_key, delete volume shop_data, update network shop_default",
			true:  "delete network shop_lan, delete secret shop_key, update network shop_default, update volume shop_data",
		}[volumes], "")
		b.clear()
		b.steps("delete app shop", "")
	}
}

func (b *bench) find(t *cluster.Task) *cluster.Task {
	b.Helper()
	found, err := store.Find[*cluster.Task](b.s.View(), t.ID)
	if err != nil {
		b.Fatal(err)
	}
	return found
}

// Services that need each other end together.
func TestRemovesCircles(t *testing.T) {
	s := spec()
	db := s.Services["db"]
	db.Task.Needs = []cluster.Need{{Service: "shop_web", Condition: cluster.Started}}
	s.Services["db"] = db
	b := newBench(t, s)
	b.steps(made)
	b.ask(func(s *cluster.AppSpec) { s.Removed = true })
	b.steps("delete service shop_db, delete service shop_web")
}

// An app that is released asks its tasks to be let go, and leaves the host's as it is.
func TestReleases(t *testing.T) {
	b := newBench(t, spec())
	b.steps(made)
	one := b.task("web", 1, 1, cluster.TaskRunning, nil)
	b.ask(func(s *cluster.AppSpec) { s.Released = true })
	b.steps("delete service shop_db, delete service shop_web, update task shop_web.1", "")
	if got := b.find(one).Desired; got != cluster.TaskOrphaned {
		t.Fatalf("desired is %s", got)
	}
	free := store.Copy(b.find(one))
	free.Status.State = cluster.TaskOrphaned
	b.commit(store.Update(free))
	b.steps("delete task shop_web.1", "delete network shop_default, delete network shop_lan, delete secret shop_key, delete volume shop_data", "delete app shop", "")
}

// A place in which nothing comes up is told of, with the reason.
func TestTellsOfFailures(t *testing.T) {
	b := newBench(t, spec())
	b.steps(made)
	b.task("db", 1, 1, cluster.TaskRunning, nil)
	for n := range uint64(hopeless) {
		if got := b.decide(); n > 1 && got != "" {
			t.Errorf("after %d: %s", n, got)
		}
		b.task("web", 1, n+1, cluster.TaskFailed, func(t *cluster.Task) { t.Failures = n })
	}
	b.steps("update app shop", "")
	if got := b.app().Status; got.Phase != cluster.AppFailed || got.Message != "web: task: non-zero exit (1)" {
		t.Errorf("%+v", got)
	}
	// What is asked next is not to blame for it, while the exchange has not come there.
	b.ask(func(s *cluster.AppSpec) {
		web := s.Services["web"]
		c := *web.Task.Container
		c.Image, web.Task.Container = "b", &c
		s.Services["web"] = web
	})
	b.decide()
	b.decide()
	if got := b.app().Status; got.Phase != cluster.AppChanging {
		t.Errorf("of the next one: %+v", got)
	}
	b.task("web", 1, hopeless+1, cluster.TaskRunning, nil)
	b.steps("update app shop")
	if got := b.app().Status; got.Phase != cluster.AppSteady {
		t.Errorf("once it runs: %+v", got)
	}
}

// Of a service that shares namespaces with another, nothing is told before the other stands: it
// may be the reason.
func TestTellsOfWhatOthersLeanOn(t *testing.T) {
	const own, others = "web: cannot join network of a non running container", "db: task: non-zero exit (1)"
	for name, c := range map[string]struct {
		failures uint64
		state    cluster.TaskState
		since    time.Duration // before now
		want     string
	}{
		"it is not there":        {0, cluster.TaskStarting, 0, ""},
		"it comes and goes":      {1, cluster.TaskRunning, time.Second, ""},
		"it does not come up":    {2, cluster.TaskFailed, 0, others},
		"it stands":              {0, cluster.TaskRunning, 0, own},
		"it has come to a stand": {1, cluster.TaskRunning, time.Minute, own},
	} {
		t.Run(name, func(t *testing.T) {
			spec := spec()
			web := spec.Services["web"]
			web.Task.Needs[0].Shared = true
			spec.Services["web"] = web
			b := newBench(t, spec)
			b.steps(made)
			b.task("db", 1, 1, c.state, func(t *cluster.Task) {
				t.Failures, t.Status.At = c.failures, time.Now().Add(-c.since)
			})
			b.task("web", 1, 1, cluster.TaskRejected, func(t *cluster.Task) {
				t.Failures, t.Status.Err = hopeless, "cannot join network of a non running container"
			})
			b.tells(c.want)
		})
	}
}

// What waits for the good end of a service that has ended badly is told of at once when nothing
// more is tried of that, and not before.
func TestTellsOfUnmetNeeds(t *testing.T) {
	job, optional := cluster.Mode{Job: &cluster.Job{Total: 1}}, func(n *cluster.Need) { n.Optional = true }
	over := func(t *cluster.Task) {
		t.Desired, t.Status.Container = cluster.TaskShutdown, &cluster.ContainerStatus{ExitCode: 4}
	}
	no := cluster.RestartPolicy{Condition: cluster.RestartNone}
	const exit = `web: service "db" didn't complete successfully: exit 4`
	for name, c := range map[string]struct {
		mode    cluster.Mode
		restart cluster.RestartPolicy
		need    func(*cluster.Need)
		state   cluster.TaskState
		f       func(*cluster.Task)
		want    string
	}{
		"over":                {restart: no, state: cluster.TaskFailed, f: over, want: exit},
		"never made":          {restart: no, state: cluster.TaskRejected, f: func(t *cluster.Task) { t.Desired, t.Status.Err = cluster.TaskShutdown, "no such image" }, want: `web: service "db" didn't complete successfully: no such image`},
		"about to come again": {state: cluster.TaskFailed, f: func(t *cluster.Task) { over(t); t.Desired = cluster.TaskRunning }},
		"runs":                {restart: no, state: cluster.TaskRunning},
		"ended well":          {restart: no, state: cluster.TaskComplete, f: over},
		"optional":            {restart: no, need: optional, state: cluster.TaskFailed, f: over},
		"started will do":     {restart: no, need: func(n *cluster.Need) { n.Condition = cluster.Started }, state: cluster.TaskFailed, f: over},
		"a job":               {mode: job, restart: no, state: cluster.TaskFailed, f: func(t *cluster.Task) { over(t); t.Desired = cluster.TaskComplete }, want: exit},
		"a job, again":        {mode: job, state: cluster.TaskFailed, f: func(t *cluster.Task) { over(t); t.Desired = cluster.TaskComplete }},
		"of the one before":   {restart: no, state: cluster.TaskFailed, f: func(t *cluster.Task) { over(t); t.SpecNumber-- }},
	} {
		t.Run(name, func(t *testing.T) {
			spec := spec()
			web, db := spec.Services["web"], spec.Services["db"]
			web.Task.Needs[0].Condition = cluster.Completed
			if c.need != nil {
				c.need(&web.Task.Needs[0])
			}
			if db.Task.Restart = c.restart; c.mode.Job != nil {
				db.Mode = c.mode
			}
			spec.Services["web"], spec.Services["db"] = web, db
			b := newBench(t, spec)
			b.steps(made)
			b.task("db", 1, 1, c.state, c.f)
			b.task("web", 1, 1, cluster.TaskReady, nil)
			b.tells(c.want)
		})
	}
}
