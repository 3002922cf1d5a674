package container

import (
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// sick makes and starts a container, and gives what sets its health as a probe does.
func sick(t *testing.T, m *Manager, policy container.RestartPolicy, label string) (ID, func(status container.HealthStatus)) {
	t.Helper()
	c := &container.Config{Image: "debian"}
	if label != "" {
		c.Labels = map[string]string{healLabel: label}
	}
	r, err := m.Create(t.Context(), Create{Name: "sick", Config: c, HostConfig: &container.HostConfig{RestartPolicy: policy}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context(), "sick"); err != nil {
		t.Fatal(err)
	}
	e, _ := m.store.find("sick")
	return r.ID, func(status container.HealthStatus) {
		synctest.Wait()
		e.mu.Lock()
		e.rec.State.Health = &Health{Status: string(status)}
		run := e.run
		e.mu.Unlock()
		m.judged(e, run)
		synctest.Wait()
	}
}

func TestUnhealthyIsRestarted(t *testing.T) {
	always, onFailure := container.RestartPolicy{Name: "always"}, container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}
	for _, c := range []struct {
		name   string
		engine Heal
		policy container.RestartPolicy
		label  string
		after  time.Duration // of the first restart; 0: none
	}{
		{"nothing said", Heal{}, always, "", 0},
		{"engine", Heal{On: true, After: time.Minute}, always, "", time.Minute},
		{"label", Heal{}, always, "30s", 30 * time.Second},
		{"label against the engine", Heal{On: true}, always, "false", 0},
		{"at once", Heal{}, onFailure, "true", time.Nanosecond},
		{"no policy", Heal{On: true}, container.RestartPolicy{}, "true", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
				d := *m.defaults()
				d.Heal = c.engine
				m.SetDefaults(d)
				id, set := sick(t, m, c.policy, c.label)
				set(container.Unhealthy)
				if c.after > time.Nanosecond {
					time.Sleep(c.after - time.Millisecond)
					synctest.Wait()
					if v, _ := m.Get("sick"); v.RestartCount != 0 {
						t.Error("restarted before its time")
					}
				}
				time.Sleep(time.Second)
				synctest.Wait()
				v, _ := m.Get(string(id))
				want := 0
				if c.after > 0 {
					want = 1
				}
				if v.RestartCount != want || v.State.Status != Running {
					t.Errorf("%d restarts, %s; want %d", v.RestartCount, v.State.Status, want)
				}
				if told := slices.Contains(f.actions(), string(actionHeal)); told != (want == 1) {
					t.Errorf("told %v in %v", told, f.actions())
				}
			})
		})
	}
}

// Each restart waits longer, up to a bound; being well for long starts afresh;
// a bound of on-failure counts these restarts too, and a stop ends it all.
func TestUnhealthyBacksOff(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id, set := sick(t, m, container.RestartPolicy{Name: "unless-stopped"}, "true")
		restartsAfter := func() time.Duration {
			before, _ := m.Get(string(id))
			begun := time.Now()
			set(container.Unhealthy)
			for time.Since(begun) < time.Hour {
				if v, _ := m.Get(string(id)); v.RestartCount > before.RestartCount && v.State.Status == Running {
					return time.Since(begun).Round(time.Second)
				}
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
			}
			t.Fatal("is not restarted")
			return 0
		}
		for i, want := range []time.Duration{0, 10, 20, 40, 80, 160, 320, 600, 600} {
			got := restartsAfter()
			if want *= time.Second; got < want || got > want+time.Second {
				t.Errorf("restart %d after %s, want %s", i, got, want)
			}
			set(container.Healthy)
			time.Sleep(time.Minute)
		}
		time.Sleep(healReset)
		if got := restartsAfter(); got > time.Second {
			t.Errorf("after having been well: restarted after %s", got)
		}
		// Well again while the next one waits: it does not come.
		set(container.Unhealthy)
		set(container.Healthy)
		before, _ := m.Get(string(id))
		time.Sleep(time.Hour)
		synctest.Wait()
		if v, _ := m.Get(string(id)); v.RestartCount != before.RestartCount {
			t.Error("restarted though it is well")
		}
		if err := m.Stop(t.Context(), string(id), Stop{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := status(t, m, id); s.Status != Exited {
			t.Errorf("came back after a stop: %s", s.Status)
		}
	})
}

// A run that ends while its restart for health waits leaves nothing in the way of
// the next run's.
func TestUnhealthyAfterItEndedMeanwhile(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id, set := sick(t, m, container.RestartPolicy{Name: "always"}, "1m")
		set(container.Unhealthy)
		if err := m.Restart(t.Context(), string(id), Stop{}); err != nil {
			t.Fatal(err)
		}
		before, _ := m.Get(string(id))
		time.Sleep(time.Hour)
		synctest.Wait()
		if v, _ := m.Get(string(id)); v.RestartCount != before.RestartCount {
			t.Error("the next run was restarted for the last one's health")
		}
		set(container.Unhealthy)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if v, _ := m.Get(string(id)); v.RestartCount != before.RestartCount+1 {
			t.Errorf("%d restarts, want %d", v.RestartCount, before.RestartCount+1)
		}
	})
}

// A container that does not listen is killed; on-failure:N bounds the restarts.
func TestUnhealthyAndDeaf(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id, set := sick(t, m, container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 1}, "true")
		f.tasks[string(id)].ignore = syscall.SIGTERM
		set(container.Unhealthy)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if v, _ := m.Get(string(id)); v.RestartCount != 1 || v.State.Status != Running {
			t.Fatalf("%d restarts, %s", v.RestartCount, v.State.Status)
		}
		set(container.Unhealthy)
		time.Sleep(time.Hour)
		synctest.Wait()
		if v, _ := m.Get(string(id)); v.RestartCount != 1 || v.State.Status != Running {
			t.Errorf("beyond its bound: %d restarts, %s", v.RestartCount, v.State.Status)
		}
	})
}

func TestHealLabelIsChecked(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		for _, bad := range []string{"", "maybe", "-5s", "5"} {
			_, err := m.Create(t.Context(), Create{Config: &container.Config{Image: "debian", Labels: map[string]string{healLabel: bad}}})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", bad, err)
			}
		}
		if len(f.prepared) != 0 {
			t.Errorf("left: %v", f.prepared)
		}
	})
}
