package apps

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func service(image string, replicas uint64) cluster.ServiceSpec {
	return cluster.ServiceSpec{
		Mode: cluster.Mode{Replicated: &cluster.Replicated{Replicas: replicas}},
		Task: cluster.TaskSpec{Container: &container.Config{Image: image}, Host: &container.HostConfig{}},
	}
}

func spec(services map[string]cluster.ServiceSpec) cluster.AppSpec {
	return cluster.AppSpec{Services: services, Networks: map[string]cluster.NetworkSpec{"default": {Name: "shop_default"}}}
}

func open(t *testing.T) (*Apps, store.Store) {
	t.Helper()
	s := mem.New(store.NewState())
	t.Cleanup(func() { _ = s.Close() })
	return New(s, nil), s
}

// steps writes a plan as "replace web (image: a → b)".
func steps(p *Plan) string {
	var out []string
	for _, s := range p.Steps {
		if s.Kind != "service" {
			continue
		}
		line := s.Action + " " + s.Name
		if len(s.Why) > 0 {
			line += " (" + strings.Join(s.Why, ", ") + ")"
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestPut(t *testing.T) {
	a, s := open(t)
	ctx := context.Background()
	put := func(o Put, services map[string]cluster.ServiceSpec) string {
		t.Helper()
		p, err := a.Put(ctx, "shop", spec(services), o)
		if err != nil {
			t.Fatal(err)
		}
		return steps(p)
	}
	is := func() *cluster.App {
		t.Helper()
		app, err := store.Named[*cluster.App](s.View(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		return app
	}
	two := map[string]cluster.ServiceSpec{"web": service("web:1", 2), "db": service("db:1", 1)}
	if got := put(Put{DryRun: true}, two); got != "create db; create web" {
		t.Errorf("dry run: %s", got)
	}
	if n := len(store.List[*cluster.App](s.View())); n != 0 {
		t.Fatalf("a dry run left %d apps", n)
	}
	put(Put{}, two)
	if got := put(Put{}, two); got != "keep db; keep web" || is().Spec.Number != 1 || len(is().History) != 0 {
		t.Errorf("the same again: %s, number %d", got, is().Spec.Number)
	}
	web := service("web:2", 3)
	web.Task.Container.Env = []string{"KEY=hush"}
	if got := put(Put{Merge: true}, map[string]cluster.ServiceSpec{"web": web}); got != "keep db; replace web (environment, image: web:1 → web:2, replicas: 2 → 3)" {
		t.Errorf("a change of one: %s", got)
	}
	if got := put(Put{Merge: true, Replace: []string{"web"}}, map[string]cluster.ServiceSpec{"web": web}); got != "keep db; replace web (made anew)" {
		t.Errorf("made anew: %s", got)
	}
	if got := put(Put{Merge: true}, map[string]cluster.ServiceSpec{"web": web}); got != "keep db; keep web" {
		t.Errorf("after that: %s", got)
	}
	if got := put(Put{Merge: true, Remove: []string{"db"}}, map[string]cluster.ServiceSpec{"web": web}); got != "keep web; remove db" {
		t.Errorf("one that goes: %s", got)
	}
	if app := is(); app.Spec.Number != 4 || len(app.History) != 3 || app.History[0].Spec.Number != 3 {
		t.Errorf("number %d, %d of history", app.Spec.Number, len(app.History))
	}
	p, err := a.Rollback(ctx, "shop", 1, false)
	if err != nil || steps(p) != "create db; replace web (environment, image: web:2 → web:1, replicas: 3 → 2)" {
		t.Errorf("rollback: %v, %s", err, steps(p))
	}
	if p, err = a.Scale(ctx, "shop", map[string]uint64{"web": 5}); err != nil || steps(p) != "keep db; change web (replicas: 2 → 5)" {
		t.Errorf("scale: %v", err)
	}
	h, err := a.History("shop")
	if err != nil || len(h) != 6 || !h[0].Current || h[0].Number != 6 || h[5].Services["web"] != "web:1" {
		t.Errorf("history: %v, %+v", err, h)
	}
	for i := range 2 * historyKept {
		put(Put{Merge: true}, map[string]cluster.ServiceSpec{"web": service("web:1", uint64(i))})
	}
	if n := len(is().History); n != historyKept {
		t.Errorf("%d specs are remembered", n)
	}
}

// What services that stay use stays, too; what only those used that go does not.
func TestMergeKeepsWhatIsUsed(t *testing.T) {
	a, s := open(t)
	first := spec(map[string]cluster.ServiceSpec{"web": service("web:1", 1), "db": service("db:1", 1)})
	db := first.Services["db"]
	db.Networks = []cluster.Attachment{{Network: "shop_back"}}
	db.Task.Secrets = []cluster.FileRef{{Name: "key", Target: "/run/secrets/key"}}
	first.Services["db"] = db
	first.Networks["back"], first.Networks["old"] = cluster.NetworkSpec{Name: "shop_back"}, cluster.NetworkSpec{Name: "shop_old"}
	first.Secrets = map[string]cluster.SecretSpec{"key": {Data: []byte("hush")}, "other": {Data: []byte("x")}}
	if _, err := a.Put(context.Background(), "shop", first, Put{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Put(context.Background(), "shop", spec(map[string]cluster.ServiceSpec{"web": service("web:2", 1)}), Put{Merge: true}); err != nil {
		t.Fatal(err)
	}
	app, err := store.Named[*cluster.App](s.View(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if got := sortedKeys(app.Spec.Networks); !reflect.DeepEqual(got, []string{"back", "default"}) {
		t.Errorf("networks %v", got)
	}
	if got := sortedKeys(app.Spec.Secrets); !reflect.DeepEqual(got, []string{"key"}) {
		t.Errorf("secrets %v", got)
	}
}

func TestPutRefuses(t *testing.T) {
	a, _ := open(t)
	ctx := context.Background()
	named := service("web:1", 2)
	named.Task.Name = "web"
	empty := service("", 1)
	both := service("web:1", 1)
	both.Mode.Global = true
	secret := service("web:1", 1)
	secret.Task.Secrets = []cluster.FileRef{{Name: "none", Target: "/x"}}
	sched := service("web:1", 1)
	sched.Mode = cluster.Mode{Schedule: "every day", Job: &cluster.Job{Total: 1}}
	place := service("web:1", 1)
	place.Task.Placement.Constraints = []string{"node.role = manager"}
	for _, c := range []struct {
		name    string
		service cluster.ServiceSpec
		change  func(*cluster.AppSpec)
		want    string
	}{
		{"Shop", service("a", 1), nil, "lower-case"},
		{"", service("a", 1), nil, "lower-case"},
		{"shop", named, nil, `2 containers cannot all be named "web"`},
		{"shop", empty, nil, "an image"},
		{"shop", both, nil, "exactly one mode"},
		{"shop", secret, nil, `secret "none" is not the app's`},
		{"shop", sched, nil, `schedule "every day"`},
		{"shop", place, nil, "constraint expected one operator"},
		{"shop", service("a", maxReplicas+1), nil, "10001 replicas"},
		{"shop", service("a", 1), func(s *cluster.AppSpec) { s.Services = nil }, "no services"},
		{"shop", service("a", 1), func(s *cluster.AppSpec) { s.Removed = true }, "does not say"},
		{"shop", service("a", 1), func(s *cluster.AppSpec) { s.Secrets = map[string]cluster.SecretSpec{"k": {External: true}} }, "external"},
		{"shop", service("a", 1), func(s *cluster.AppSpec) {
			s.Configs = map[string]cluster.ConfigSpec{"k": {Data: make([]byte, maxFile+1)}}
		}, "bytes"},
		{"shop", service("a", 1), func(s *cluster.AppSpec) { s.Services["a/b"] = service("a", 1) }, `"a/b"`},
	} {
		asked := spec(map[string]cluster.ServiceSpec{"web": c.service})
		if c.change != nil {
			c.change(&asked)
		}
		_, err := a.Put(ctx, c.name, asked, Put{})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if len(a.List()) != 0 {
		t.Errorf("what was refused is there: %v", a.List())
	}
	for what, err := range map[string]error{
		"scale":   second(a.Scale(ctx, "none", nil)),
		"back":    second(a.Rollback(ctx, "none", 0, false)),
		"remove":  a.Remove(ctx, "none", false),
		"release": a.Release(ctx, "none"),
		"get":     second(a.Get("none")),
		"history": second(a.History("none")),
		"follow":  a.Follow(ctx, "none", func(View) error { return nil }),
	} {
		if !errdefs.IsNotFound(err) || !strings.HasPrefix(err.Error(), "No such app: none") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What a service is to be is looked at before anything of it is made.
func TestPutRefusesServices(t *testing.T) {
	a, _ := open(t)
	for want, change := range map[string]func(*cluster.ServiceSpec){
		`image "A:::"`:                  func(s *cluster.ServiceSpec) { s.Task.Container.Image = "A:::" },
		"Invalid container name (../x)": func(s *cluster.ServiceSpec) { s.Task.Name = "../x" },
		`platform "@@//"`:               func(s *cluster.ServiceSpec) { s.Task.Platform = "@@//" },
		`restart "never"`:               func(s *cluster.ServiceSpec) { s.Task.Restart.Condition = "never" },
		"restart: window: -1ns":         func(s *cluster.ServiceSpec) { s.Task.Restart.Window = -1 },
		"grace: -1ns is negative":       func(s *cluster.ServiceSpec) { s.Task.Grace = -1 },
		`condition "up"`:                func(s *cluster.ServiceSpec) { s.Task.Needs = []cluster.Need{{Service: "x", Condition: "up"}} },
		"less than nothing":             func(s *cluster.ServiceSpec) { s.Task.Reserved.Memory = -1 },
		`failure action "shrug"`:        func(s *cluster.ServiceSpec) { s.Update = &cluster.Rollout{OnFailure: "shrug"} },
		"rollback: failure ratio 1.5":   func(s *cluster.ServiceSpec) { s.Rollback = &cluster.Rollout{MaxFailureRatio: 1.5} },
		"update: monitor: -1s":          func(s *cluster.ServiceSpec) { s.Update = &cluster.Rollout{Monitor: -time.Second} },
		"no range": func(s *cluster.ServiceSpec) {
			s.Ports = []cluster.Port{{Proto: "tcp", Target: 80, Published: 9, Last: 8}}
		},
		"0-8, which is no range":        func(s *cluster.ServiceSpec) { s.Ports = []cluster.Port{{Proto: "tcp", Target: 80, Last: 8}} },
		`protocol ""`:                   func(s *cluster.ServiceSpec) { s.Ports = []cluster.Port{{Target: 80}} },
		`address "x"`:                   func(s *cluster.ServiceSpec) { s.Ports = []cluster.Port{{Target: 80, Proto: "tcp", Address: "x"}} },
		`network "n"`:                   func(s *cluster.ServiceSpec) { s.Networks = []cluster.Attachment{{Network: "n"}, {Network: "n"}} },
		`endpoint "x"`:                  func(s *cluster.ServiceSpec) { s.Endpoint = "x" },
		`target "../x" is not absolute`: func(s *cluster.ServiceSpec) { s.Task.Secrets = []cluster.FileRef{{Name: "k", Target: "../x"}} },
		`"-1" is no id`:                 func(s *cluster.ServiceSpec) { s.Task.Secrets = []cluster.FileRef{{Name: "k", Target: "/k", UID: "-1"}} },
		"mode 10000 is none": func(s *cluster.ServiceSpec) {
			s.Task.Secrets = []cluster.FileRef{{Name: "k", Target: "/k", Mode: 0o10000}}
		},
		"1 runs, 10001 at once": func(s *cluster.ServiceSpec) { s.Mode = cluster.Mode{Job: &cluster.Job{Total: 1, Concurrent: 10001}} },
		`"db": it would wait for itself`: func(s *cluster.ServiceSpec) {
			s.Task.Needs = []cluster.Need{{Service: "shop_db", Condition: cluster.Started}}
		},
	} {
		db, web := service("db:1", 1), service("web:1", 1)
		db.Task.Needs = []cluster.Need{{Service: "shop_web", Condition: cluster.Healthy}, {Service: "shop_elsewhere", Condition: cluster.Healthy}}
		change(&web)
		asked := spec(map[string]cluster.ServiceSpec{"web": web, "db": db})
		asked.Secrets = map[string]cluster.SecretSpec{"k": {Data: []byte("k")}}
		_, err := a.Put(t.Context(), "shop", asked, Put{})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if len(a.List()) != 0 {
		t.Errorf("what was refused is there: %v", a.List())
	}
}

func second[T any](_ T, err error) error { return err }

// Apps a and a_b could have services, and containers, of one name.
func TestPutRefusesOthersNames(t *testing.T) {
	a, _ := open(t)
	named := service("web:1", 1)
	named.Task.Name = "front"
	if _, err := a.Put(context.Background(), "a_b", spec(map[string]cluster.ServiceSpec{"web": named}), Put{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Put(context.Background(), "a", spec(map[string]cluster.ServiceSpec{"b_web": service("web:1", 1)}), Put{}); !errdefs.IsConflict(err) {
		t.Errorf("a service of another's name: %v", err)
	}
	if _, err := a.Put(context.Background(), "c", spec(map[string]cluster.ServiceSpec{"web": named}), Put{}); !errdefs.IsConflict(err) {
		t.Errorf("a container of another's name: %v", err)
	}
}

// task puts a service and a task of it into the store, as the loops do.
func task(t *testing.T, s store.Store, app string, state cluster.TaskState) *cluster.Task {
	t.Helper()
	owner, err := store.Named[*cluster.App](s.View(), app)
	if err != nil {
		t.Fatal(err)
	}
	web := &cluster.Service{Meta: cluster.Meta{ID: cluster.NewID(), Name: app + "_web", Owner: owner.ID}, Spec: owner.Spec.Services["web"]}
	one := web.First(1, "")
	one.ID, one.Status.State = cluster.NewID(), state
	if _, err := s.Commit(context.Background(), store.Create(web), store.Create(one)); err != nil {
		t.Fatal(err)
	}
	return one
}

func TestHalt(t *testing.T) {
	a, s := open(t)
	ctx := context.Background()
	asked := spec(map[string]cluster.ServiceSpec{"web": service("web:1", 1)})
	if _, err := a.Put(ctx, "shop", asked, Put{}); err != nil {
		t.Fatal(err)
	}
	one := task(t, s, "shop", cluster.TaskRunning)
	labels := map[string]string{labelTask: one.ID}
	now := func(id string) *cluster.Task {
		t.Helper()
		found, err := store.Find[*cluster.Task](s.View(), id)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if err := a.Halt(ctx, labels); err != nil || !now(one.ID).Halted {
		t.Fatalf("halted: %v", err)
	}
	if err := a.Resume(ctx, labels); err != nil || now(one.ID).Halted {
		t.Fatalf("resumed: %v", err)
	}
	swarms := &cluster.Task{Meta: cluster.Meta{ID: "swarms"}, Status: cluster.TaskStatus{State: cluster.TaskRunning}}
	if _, err := s.Commit(ctx, store.Create(swarms)); err != nil {
		t.Fatal(err)
	}
	if err := a.Halt(ctx, map[string]string{labelTask: "swarms"}); err != nil || now("swarms").Halted {
		t.Fatalf("what no app has is not to be left stopped: %v", err)
	}
	for _, nobodys := range []map[string]string{nil, {labelTask: "none"}} {
		if err := errors.Join(a.Halt(ctx, nobodys), a.Resume(ctx, nobodys)); err != nil {
			t.Errorf("nobody's container: %v", err)
		}
	}
	if err := a.Halt(ctx, labels); err != nil {
		t.Fatal(err)
	}
	p, err := a.Put(ctx, "shop", asked, Put{})
	if err != nil || steps(p) != "start web (1 stopped)" || p.From != p.To || now(one.ID).Halted {
		t.Errorf("up after a stop: %v, %s, %+v", err, steps(p), now(one.ID).Halted)
	}
	// A task that failed has a successor: that is who is meant, until it has a container.
	failed := cluster.Copy(now(one.ID))
	failed.Status.State = cluster.TaskFailed
	next := failed.Successor(failed.Spec, failed.SpecNumber)
	next.ID = cluster.NewID()
	if _, err := s.Commit(ctx, store.Update(failed), store.Create(next)); err != nil {
		t.Fatal(err)
	}
	if err := a.Halt(ctx, labels); err != nil || now(one.ID).Halted || !now(next.ID).Halted {
		t.Errorf("halting what failed: %v, %v, %v", err, now(one.ID).Halted, now(next.ID).Halted)
	}
	if err := a.Resume(ctx, labels); !errdefs.IsConflict(err) {
		t.Errorf("starting what failed: %v", err)
	}
	made := cluster.Copy(now(next.ID))
	made.Halted, made.Status.State = false, cluster.TaskReady
	if _, err := s.Commit(ctx, store.Update(made)); err != nil {
		t.Fatal(err)
	}
	if err := a.Halt(ctx, labels); err != nil || now(next.ID).Halted {
		t.Errorf("removing what has a successor with a container: %v, halted %t", err, now(next.ID).Halted)
	}
	failed, made = cluster.Copy(now(one.ID)), cluster.Copy(now(next.ID))
	failed.Node, made.Node, made.Status.State = "here", "there", cluster.TaskPreparing
	if _, err := s.Commit(ctx, store.Update(failed), store.Update(made)); err != nil {
		t.Fatal(err)
	}
	if err := a.Halt(ctx, labels); err != nil || now(next.ID).Halted {
		t.Errorf("removing what has a successor on another node: %v, halted %t", err, now(next.ID).Halted)
	}
}

func TestCreating(t *testing.T) {
	a, _ := open(t)
	if _, err := a.Put(context.Background(), "shop", spec(map[string]cluster.ServiceSpec{"web": service("web:1", 1)}), Put{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		labels  map[string]string
		refused bool
	}{
		{nil, false},
		{map[string]string{labelProject: "other"}, false},
		{map[string]string{labelProject: "shop"}, true},
		{map[string]string{labelProject: "shop", labelOneOff: "False"}, true},
		{map[string]string{labelProject: "shop", labelOneOff: "True"}, false},
	} {
		if err := a.Creating(c.labels); errdefs.IsConflict(err) != c.refused || c.refused && !strings.Contains(err.Error(), `"escale release shop"`) {
			t.Errorf("%v: %v", c.labels, err)
		}
	}
}

// Follow tells of what changes, tells of the end, and ends.
func TestFollow(t *testing.T) {
	a, s := open(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := a.Put(ctx, "shop", spec(map[string]cluster.ServiceSpec{"web": service("web:1", 1)}), Put{}); err != nil {
		t.Fatal(err)
	}
	one := task(t, s, "shop", cluster.TaskRunning)
	told := make(chan View, 10)
	done := make(chan error, 1)
	go func() { done <- a.Follow(ctx, "shop", func(v View) error { told <- v; return nil }) }()
	if v := <-told; v.Name != "shop" || len(v.Services) != 1 || len(v.Services[0].Tasks) != 1 || v.Services[0].Tasks[0].State != cluster.TaskRunning || v.Services[0].Healthy != 0 {
		t.Errorf("at first: %+v", v)
	}
	healthy := cluster.Copy(one)
	healthy.Revision = s.View().Revision()
	healthy.Status.Healthy = true
	if _, err := s.Commit(ctx, store.Update(healthy)); err != nil {
		t.Fatal(err)
	}
	if v := <-told; v.Services[0].Healthy != 1 || v.Services[0].Replicas != 1 {
		t.Errorf("once it is healthy: %+v", v.Services)
	}
	app, err := store.Named[*cluster.App](s.View(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.Delete(app)); err != nil {
		t.Fatal(err)
	}
	if v := <-told; !v.Removed || len(v.Services) != 0 {
		t.Errorf("at the end: %+v", v)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A secret's content is in nothing that clients are told.
func TestSecretsAreNotTold(t *testing.T) {
	a, _ := open(t)
	asked := spec(map[string]cluster.ServiceSpec{"web": service("web:1", 1)})
	asked.Secrets = map[string]cluster.SecretSpec{"key": {Data: []byte("hush-hush")}}
	p, err := a.Put(context.Background(), "shop", asked, Put{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.Get("shop")
	if err != nil {
		t.Fatal(err)
	}
	h, err := a.History("shop")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal([]any{p, v, h, a.List()})
	if err != nil || strings.Contains(string(b), "hush") || strings.Contains(string(b), "aHVza") {
		t.Errorf("%v: %s", err, b)
	}
}

// Services that are to be restarted with what they need are exchanged with it, and so
// are those that need them.
func TestDependentsRestart(t *testing.T) {
	a, _ := open(t)
	ctx := context.Background()
	asked := func(db string) map[string]cluster.ServiceSpec {
		need := func(what string, restart bool) cluster.ServiceSpec {
			s := service("web:1", 1)
			s.Task.Needs = []cluster.Need{{Service: what, Condition: cluster.Started, Restart: restart}}
			return s
		}
		return map[string]cluster.ServiceSpec{"db": service(db, 1), "api": need("shop_db", true), "web": need("shop_api", true), "job": need("shop_db", false)}
	}
	if _, err := a.Put(ctx, "shop", spec(asked("db:1")), Put{}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Put{{}, {Merge: true}} {
		p, err := a.Put(ctx, "shop", spec(asked("db:2")), Put{Merge: o.Merge, DryRun: true})
		if err != nil || steps(p) != "replace api (made anew); replace db (image: db:1 → db:2); keep job; replace web (made anew)" {
			t.Errorf("merge %t: %v, %s", o.Merge, err, steps(p))
		}
	}
	if p, err := a.Put(ctx, "shop", spec(asked("db:1")), Put{}); err != nil || steps(p) != "keep api; keep db; keep job; keep web" {
		t.Errorf("the same: %v, %s", err, steps(p))
	}
}

// Containers have secrets and configs as they were when they were made: who reads one
// that has changed is exchanged, nobody else.
func TestReadersOfFilesRestart(t *testing.T) {
	a, _ := open(t)
	ctx := context.Background()
	asked := func(key, page string) cluster.AppSpec {
		web, db := service("web:1", 1), service("db:1", 1)
		web.Task.Secrets = []cluster.FileRef{{Name: "key", Target: "/run/secrets/key"}}
		db.Task.Configs = []cluster.FileRef{{Name: "page", Target: "/page"}}
		out := spec(map[string]cluster.ServiceSpec{"web": web, "db": db, "idle": service("idle:1", 1)})
		out.Secrets = map[string]cluster.SecretSpec{"key": {Data: []byte(key)}}
		out.Configs = map[string]cluster.ConfigSpec{"page": {Data: []byte(page)}}
		return out
	}
	for _, c := range []struct{ key, page, want string }{
		{"a", "b", "create db; create idle; create web"},
		{"a", "b", "keep db; keep idle; keep web"},
		{"A", "b", "keep db; keep idle; replace web (made anew)"},
		{"A", "b", "keep db; keep idle; keep web"},
		{"A", "B", "replace db (made anew); keep idle; keep web"},
	} {
		if p, err := a.Put(ctx, "shop", asked(c.key, c.page), Put{Merge: true}); err != nil || steps(p) != c.want {
			t.Errorf("key %s, page %s: %v, %s, want %s", c.key, c.page, err, steps(p), c.want)
		}
	}
}

// strangers are on networks that are made up, by their names; by the ids of tasks, what
// these are not on.
type strangers map[string][]string

func (s strangers) Strangers(network, _ string) []string { return s[network] }

func (s strangers) Node() string                     { return "n1" }
func (s strangers) Driver(string) string             { return "" }
func (s strangers) Has(context.Context, string) bool { return false }

func (s strangers) Missing(tasks, networks []string) (out []string) {
	for _, task := range tasks {
		out = append(out, slices.DeleteFunc(slices.Clone(s[task]), func(n string) bool { return !slices.Contains(networks, n) })...)
	}
	return out
}

// A service of which a container was disconnected by hand is exchanged at the next up.
func TestDisconnected(t *testing.T) {
	a, s := open(t)
	on := strangers{"t1": {"shop_back", "theirs"}, "t2": {"shop_default"}}
	a.n = on
	web := service("web:1", 2)
	web.Networks = []cluster.Attachment{{Network: "shop_default"}, {Network: "shop_back"}}
	client := service("client:1", 1)
	client.Task.Needs = []cluster.Need{{Service: "shop_web", Condition: cluster.Started, Restart: true}}
	put := func(want string) {
		t.Helper()
		p, err := a.Put(context.Background(), "shop", spec(map[string]cluster.ServiceSpec{"web": web, "client": client}), Put{})
		if err != nil || steps(p) != want {
			t.Errorf("%v, %s, want %s", err, steps(p), want)
		}
	}
	put("create client; create web")
	made := &cluster.Service{Meta: cluster.Meta{Name: "shop_web"}, Spec: web}
	made.Spec.Number = 1
	if _, err := s.Commit(t.Context(), store.Create(made)); err != nil {
		t.Fatal(err)
	}
	svc, err := store.Named[*cluster.Service](s.View(), "shop_web")
	if err != nil {
		t.Fatal(err)
	}
	for id, halted := range map[string]bool{"t1": false, "t2": true} {
		task := svc.First(1, "")
		task.ID, task.Status.State, task.Halted = id, cluster.TaskRunning, halted
		if _, err := s.Commit(t.Context(), store.Create(task)); err != nil {
			t.Fatal(err)
		}
	}
	put("replace client (made anew); replace web (disconnected from shop_back)")
	clear(on)
	put("keep client; keep web")
}

// A network whose options differ is made anew, with the tasks that are on it, and with no
// others; its labels say nothing of how it works.
func TestNetworksAreRemade(t *testing.T) {
	a, _ := open(t)
	on := strangers{}
	a.n = on
	ctx := context.Background()
	asked := func(internal bool, label string, services ...string) cluster.AppSpec {
		all := map[string]cluster.ServiceSpec{}
		for _, name := range services {
			all[name] = service(name+":1", 1)
		}
		if s, ok := all["web"]; ok {
			s.Networks = []cluster.Attachment{{Network: "shop_default"}}
			all["web"] = s
		}
		out := spec(all)
		out.Networks["default"] = cluster.NetworkSpec{Name: "shop_default", Create: &network.CreateRequest{Internal: internal, Labels: map[string]string{"l": label}}}
		return out
	}
	put := func(s cluster.AppSpec, o Put, network, services string) {
		t.Helper()
		p, err := a.Put(ctx, "shop", s, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := steps(p); got != services {
			t.Errorf("services: %s, want %s", got, services)
		}
		for _, st := range p.Steps {
			if got := st.Action + " " + strings.Join(st.Why, ", "); st.Kind == "network" && st.Name == "default" && strings.TrimSpace(got) != network {
				t.Errorf("network: %s, want %s", got, network)
			}
		}
	}
	put(asked(false, "a", "db", "web"), Put{}, "create", "create db; create web")
	put(asked(false, "b", "db", "web"), Put{}, "change", "keep db; keep web")
	on["shop_default"] = []string{"theirs"}
	if _, err := a.Put(ctx, "shop", asked(true, "b", "db", "web"), Put{DryRun: true}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), `network "default" has to be made anew, and there are others than the app's containers on it: theirs`) {
		t.Errorf("others on it: %v", err)
	}
	put(asked(false, "b", "db", "web"), Put{}, "keep", "keep db; keep web")
	delete(on, "shop_default")
	put(asked(true, "b", "db"), Put{Merge: true}, "replace internal, what is on it is stopped first", "keep db; replace web (networks)")
	put(asked(true, "b", "db", "web"), Put{}, "keep", "keep db; keep web")
	if p, err := a.Rollback(ctx, "shop", 0, false); err != nil || steps(p) != "keep db; replace web (networks)" {
		t.Errorf("back: %v, %s", err, steps(p))
	}
	app, err := store.Named[*cluster.App](a.s.View(), "shop")
	if err != nil || app.Spec.Networks["default"].Made != 2 || app.Spec.Services["web"].Networks[0].Made != 2 {
		t.Errorf("it was made %d times anew, %v", app.Spec.Networks["default"].Made, err)
	}
	// What is somebody else's is never made, and another name is another network.
	for _, next := range []cluster.NetworkSpec{{Name: "shop_default", External: true}, {Name: "new"}} {
		if (cluster.NetworkSpec{Name: "shop_default", Create: &network.CreateRequest{Internal: true}}).Differs(next) {
			t.Errorf("%+v is made anew", next)
		}
	}
}
