package retire

import (
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

// What was replaced goes when the last one has ceased to use it, and nothing else does.
func TestGoes(t *testing.T) {
	refs := []cluster.FileRef{{ID: "old", Name: "key"}}
	b := looptest.New(t, Loop{})
	for id, by := range map[string]string{"old": "new", "new": ""} {
		b.Commit(store.Create(&cluster.Secret{Meta: cluster.Meta{ID: id, Name: "key" + by}, Spec: cluster.SecretSpec{Name: "key", ReplacedBy: by}}))
	}
	there := func() int { return len(store.List[*cluster.Secret](b.Store.View())) }
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) { s.Task.Secrets = refs })
	b.Task("web", 1, cluster.TaskRunning)
	b.Look()
	for what, change := range map[string]func(s *cluster.Service){
		"it has another now, and could go back": func(s *cluster.Service) {
			before := store.Copy(s).Spec
			s.Previous, s.Spec.Task.Secrets = &before, nil
		},
		"nor could it go forward again": func(s *cluster.Service) {
			if s.Previous != nil {
				s.Status.Wanted, s.Previous = s.Previous, nil
			}
		},
	} {
		b.Change("web", change)
		if b.Look(); there() != 2 {
			t.Fatalf("gone too early: %s", what)
		}
	}
	b.Change("web", func(s *cluster.Service) { s.Previous, s.Status.Wanted, s.Spec.Task.Secrets = nil, nil, nil })
	if b.Look(); there() != 2 {
		t.Fatal("gone while a task runs that has it")
	}
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Look()
	if list := store.List[*cluster.Secret](b.Store.View()); len(list) != 1 || list[0].ID != "new" {
		t.Errorf("%+v", list)
	}
}

// One that nobody uses when it is replaced goes at once; so does a config.
func TestUnused(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Commit(store.Create(&cluster.Config{Meta: cluster.Meta{ID: "c", Name: "c"}}))
	b.Look()
	c, err := store.Find[*cluster.Config](b.Store.View(), "c")
	if err != nil {
		t.Fatal(err)
	}
	c = store.Copy(c)
	c.Name, c.Spec.ReplacedBy = "c@c", "d"
	b.Commit(store.Update(c))
	b.Look()
	if n := len(store.List[*cluster.Config](b.Store.View())); n != 0 {
		t.Errorf("%d are left", n)
	}
}

// A service that goes takes with it what only it could have gone back to.
func TestServiceGoes(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Commit(store.Create(&cluster.Config{Meta: cluster.Meta{ID: "c", Name: "c@c"}, Spec: cluster.ConfigSpec{ReplacedBy: "d"}}))
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) { s.Task.Configs = []cluster.FileRef{{ID: "c"}} })
	b.Look()
	b.DeleteService("web")
	b.Look()
	if n := len(store.List[*cluster.Config](b.Store.View())); n != 0 {
		t.Errorf("%d are left", n)
	}
}
