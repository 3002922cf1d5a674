package simulation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
)

// shop is an app of a web front, a database, and a job that prepares it.
func shop(web string, replicas uint64) cluster.AppSpec {
	front, db, job := spec(web, 0, replicas), spec(good, 0, 1), spec(ends, 0, 0)
	front.Task.Needs = []cluster.Need{{Service: "shop_db", Condition: cluster.Healthy}, {Service: "shop_job", Condition: cluster.Completed}, {Service: "shop_none", Condition: cluster.Started, Optional: true}}
	front.Update = &cluster.Rollout{Parallelism: 1, StartFirst: true, OnFailure: cluster.FailureRollback}
	job.Mode = cluster.Mode{Job: &cluster.Job{Total: 1}}
	job.Task.Needs = []cluster.Need{{Service: "shop_db", Condition: cluster.Started}}
	return cluster.AppSpec{
		Number: 1, Services: map[string]cluster.ServiceSpec{"web": front, "db": db, "job": job},
		Networks: map[string]cluster.NetworkSpec{"default": {Name: "shop_default"}}, Volumes: map[string]cluster.VolumeSpec{"data": {Name: "shop_data"}},
		Secrets: map[string]cluster.SecretSpec{"key": {Data: []byte("hush")}},
	}
}

// ask writes what an app is to be, as `up` does.
func (w *world) ask(f func(s *cluster.AppSpec)) {
	w.t.Helper()
	a, err := store.Named[*cluster.App](w.s.View(), "shop")
	if err != nil {
		a = &cluster.App{Meta: cluster.Meta{Name: "shop"}, Spec: shop(good, 3)}
		f(&a.Spec)
		w.commit(store.Create(a))
		return
	}
	a = store.Copy(a)
	f(&a.Spec)
	a.Spec.Number++
	w.commit(store.Update(a))
}

// phase is how far the app says that it is.
func (w *world) phase() string {
	a, err := store.Named[*cluster.App](w.s.View(), "shop")
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(fmt.Sprint(a.Status.Phase, " ", a.Status.Message))
}

// inOrder: no task of the front ever runs before what it needs.
func (w *world) inOrder() {
	v := w.s.View()
	job, err := store.Named[*cluster.Service](v, "shop_job")
	if err != nil {
		return
	}
	done := false
	for _, t := range store.List[*cluster.Task](v, store.Owner(job.ID)) {
		done = done || t.Status.State == cluster.TaskComplete
	}
	if up, _ := w.running("shop_db"); up[1] == 0 {
		done = false
	}
	web, err := store.Named[*cluster.Service](v, "shop_web")
	if err != nil || done {
		return
	}
	for _, t := range store.List[*cluster.Task](v, store.Owner(web.ID)) {
		if t.Status.State == cluster.TaskStarting {
			w.t.Fatalf("the front starts before what it needs\n%s", w.describe())
		}
	}
}

func TestApp(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed, 1)
		w.watch = w.inOrder
		w.ask(func(*cluster.AppSpec) {})
		for range 30 {
			w.some()
			for _, task := range store.List[*cluster.Task](w.s.View()) {
				if w.rng.IntN(2) == 0 {
					w.act(task)
				}
			}
		}
		w.settle()
		w.watch = func() {}
		up, _ := w.running("shop_web")
		if w.phase() != "steady" || up[1] != 3 {
			t.Fatalf("seed %d: %s, %v\n%s", seed, w.phase(), up, w.describe())
		}
		before := w.s.View().Revision()
		w.ask(func(*cluster.AppSpec) {})
		w.settle()
		if n := w.s.View().Revision() - before; n > 3 { // the spec's number, and the status
			t.Errorf("asking the same again led to %d commits", n)
		}
		// One service changes, one comes, one goes; the others are not touched.
		db, _ := w.running("shop_db")
		w.ask(func(s *cluster.AppSpec) {
			front := s.Services["web"]
			front.Task.Force++
			s.Services["web"] = front
			s.Services["more"] = spec(good, 0, 2)
			s.Networks["back"] = cluster.NetworkSpec{Name: "shop_back"}
			delete(s.Services, "job")
			delete(s.Secrets, "key")
			front.Task.Needs = front.Task.Needs[:1]
			s.Services["web"] = front
		})
		w.settle()
		up, _ = w.running("shop_web")
		more, _ := w.running("shop_more")
		same, _ := w.running("shop_db")
		if w.phase() != "steady" || up[2] != 3 || more[1] != 2 || same[1] != db[1] || len(store.List[*cluster.Secret](w.s.View())) != 0 || len(store.List[*cluster.Network](w.s.View())) != 2 {
			t.Fatalf("seed %d: %s, web %v, more %v, db %v\n%s", seed, w.phase(), up, more, same, w.describe())
		}
		w.ask(func(s *cluster.AppSpec) { s.Removed = true })
		w.settle()
		if w.phase() != "gone" || len(store.List[*cluster.Task](w.s.View())) != 0 || len(store.List[*cluster.Volume](w.s.View())) != 0 {
			t.Fatalf("seed %d: %s\n%s", seed, w.phase(), w.describe())
		}
	}
}

// A new version that fails leaves the old one up, goes back by itself, says so, and is
// not tried again until something else is asked.
func TestAppGoesBack(t *testing.T) {
	for _, image := range []string{broken, missing, ill} {
		w := newWorld(t, 9, 1)
		w.ask(func(*cluster.AppSpec) {})
		w.settle()
		w.watch = func() {
			if up, _ := w.running("shop_web"); up[1] < 3 {
				t.Fatalf("%s: %v are up\n%s", image, up, w.describe())
			}
		}
		asked := func(image string) {
			w.ask(func(s *cluster.AppSpec) {
				front := s.Services["web"]
				front.Task.Container = &container.Config{Image: image}
				s.Services["web"] = front
			})
			w.settle()
		}
		asked(image)
		if got := w.phase(); !strings.HasPrefix(got, "reverted web: rollback completed") {
			t.Fatalf("%s: the app is %q\n%s", image, got, w.describe())
		}
		before := w.s.View().Revision()
		w.now = w.now.Add(time.Hour)
		w.settle()
		if n := w.s.View().Revision() - before; n > 0 {
			t.Errorf("%s: in an hour of rest it made %d commits", image, n)
		}
		w.watch = func() {}
		asked(good)
		if up, live := w.running("shop_web"); w.phase() != "steady" || live != 3 || len(up) != 1 {
			t.Fatalf("%s: back at the good one it is %s, %v\n%s", image, w.phase(), up, w.describe())
		}
	}
}
