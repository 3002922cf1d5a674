package container

import (
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/runtime"
)

// Memory that runs out is told when it does, whoever is killed for it, and not
// again at the end of the run.
func TestOutOfMemory(t *testing.T) {
	oom := func(f *fakeEngine) (n int) {
		for _, a := range f.actions() {
			if a == "oom" {
				n++
			}
		}
		return n
	}
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "hungry", nil)
		if err := m.Start(t.Context(), "hungry"); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 2; n++ {
			f.figures.oom <- struct{}{}
			synctest.Wait()
			if s := status(t, m, id); !s.OOMKilled || s.Status != Running || oom(f) != n {
				t.Fatalf("%+v, %v", s, f.actions())
			}
		}
		f.finish(id, runtime.Exit{Code: 3, At: time.Now(), OOMKilled: true})
		synctest.Wait()
		if s := status(t, m, id); !s.OOMKilled || s.ExitCode != 3 || oom(f) != 2 {
			t.Errorf("%+v, %v", s, f.actions())
		}
		// The next run knows nothing of it; its end comes before anybody looked.
		if err := m.Start(t.Context(), "hungry"); err != nil {
			t.Fatal(err)
		}
		if s := status(t, m, id); s.OOMKilled {
			t.Error("still marked after a new start")
		}
		f.finish(id, runtime.Exit{Code: 137, At: time.Now(), OOMKilled: true})
		synctest.Wait()
		actions := f.actions()
		if s := status(t, m, id); !s.OOMKilled || oom(f) != 3 || lastBefore(actions, "die") != "oom" {
			t.Errorf("%+v, %v", s, actions)
		}
	})
}

// lastBefore is what came just before the last of its kind.
func lastBefore(list []string, what string) string {
	for i := len(list) - 1; i > 0; i-- {
		if list[i] == what {
			return list[i-1]
		}
	}
	return ""
}
