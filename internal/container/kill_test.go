package container

import (
	"cmp"
	"context"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/runtime"
	"github.com/moby/moby/api/types/container"
)

// After a signal of a client that ends a container, restart policies rest or act as
// Docker's do.
func TestSignalsAndRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy container.RestartPolicyMode
		own    string // the container's stop signal
		signal string
		want   Status
	}{
		{"always", "", "", Exited},
		{"always", "", "KILL", Exited},
		{"always", "", "TERM", Exited},
		{"always", "", "HUP", Exited},
		{"always", "QUIT", "KILL", Exited},
		{"always", "QUIT", "QUIT", Exited},
		{"always", "QUIT", "HUP", Running},
		{"always", "QUIT", "TERM", Running},
		{"on-failure", "", "USR1", Exited},
		{"on-failure", "QUIT", "USR1", Running},
		{"on-failure", "QUIT", "QUIT", Exited},
		{"unless-stopped", "QUIT", "HUP", Exited},
		{"unless-stopped", "", "HUP", Exited},
	} {
		t.Run(string(c.policy)+" "+cmp.Or(c.own, "-")+" "+cmp.Or(c.signal, "-"), func(t *testing.T) {
			world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
				id := createStopping(t, m, c.policy, c.own)
				if err := m.Start(t.Context(), "it"); err != nil {
					t.Fatal(err)
				}
				if err := m.Kill(t.Context(), "it", c.signal); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if s := status(t, m, id); s.Status != c.want {
					t.Errorf("a second later: %s, want %s", s.Status, c.want)
				}
			})
		})
	}
}

// createStopping makes a container "it" with a restart policy and a stop signal, "" for none.
func createStopping(t *testing.T, m *Manager, policy container.RestartPolicyMode, signal string) ID {
	t.Helper()
	r, err := m.Create(t.Context(), Create{Name: "it", Config: &container.Config{Image: "debian", StopSignal: signal},
		HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: policy}}})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// A signal that a program lives on with does not keep it from being restarted when it
// fails later; one that ends it soon does.
func TestSignalThatIsNoStop(t *testing.T) {
	for _, policy := range []container.RestartPolicyMode{"always", "on-failure", "unless-stopped"} {
		for _, later := range []time.Duration{afterSignal - time.Millisecond, afterSignal + time.Millisecond} {
			world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
				id := createStopping(t, m, policy, "")
				if err := m.Start(t.Context(), "it"); err != nil {
					t.Fatal(err)
				}
				f.tasks[string(id)].ignore = syscall.SIGHUP
				if err := m.Kill(t.Context(), "it", "HUP"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(later)
				f.end(id, 1)
				time.Sleep(time.Second)
				synctest.Wait()
				want := Exited
				if later > afterSignal {
					want = Running
				}
				if s := status(t, m, id); s.Status != want {
					t.Errorf("%s: failed %v after a HUP: %s, want %s", policy, later, s.Status, want)
				}
			})
		}
	}
}

// A signal that stands for a stop ends a wait for a restart, and one that does not leaves it.
func TestSignalToARestartingContainer(t *testing.T) {
	for signal, want := range map[string]Status{"QUIT": Exited, "KILL": Exited, "HUP": Running} {
		world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
			id := createStopping(t, m, "always", "QUIT")
			if err := m.Start(t.Context(), "it"); err != nil {
				t.Fatal(err)
			}
			f.end(id, 1)
			synctest.Wait()
			if err := m.Kill(t.Context(), "it", signal); err != nil && want == Running {
				t.Errorf("%s: %v", signal, err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if s := status(t, m, id); s.Status != want {
				t.Errorf("%s: %s, want %s", signal, s.Status, want)
			}
		})
	}
}

// A paused container hears its stop signal, and no other that is not one.
func TestSignalToAPausedContainer(t *testing.T) {
	for _, c := range []struct {
		own, signal string
		want        Status
	}{{"", "HUP", Running}, {"QUIT", "HUP", Paused}, {"QUIT", "QUIT", Running}} {
		world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
			id := createStopping(t, m, "", c.own)
			if err := m.Start(t.Context(), "it"); err != nil {
				t.Fatal(err)
			}
			sig, _ := parseSignal(c.signal)
			f.tasks[string(id)].ignore = sig
			if err := m.Pause(t.Context(), "it"); err != nil {
				t.Fatal(err)
			}
			if err := m.Kill(t.Context(), "it", c.signal); err != nil {
				t.Fatal(err)
			}
			if s := status(t, m, id); s.Status != c.want {
				t.Errorf("stop signal %q, sent %s: %s, want %s", c.own, c.signal, s.Status, c.want)
			}
		})
	}
}

// An engine that is killed after the signal knows that it was a stop.
func TestEngineKilledAfterKill(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		first := f.manager(t, dir)
		id := createStopping(t, first, "unless-stopped", "QUIT")
		if err := first.Start(t.Context(), "it"); err != nil {
			t.Fatal(err)
		}
		f.tasks[string(id)].ignore = syscall.SIGQUIT // it takes its time
		if err := first.Kill(t.Context(), "it", "QUIT"); err != nil {
			t.Fatal(err)
		}
		first.Close()
		second := f.manager(t, dir)
		second.Resume(t.Context())
		f.end(id, 0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := status(t, second, id); s.Status != Exited {
			t.Errorf("came back after it was stopped: %s", s.Status)
		}
		second.Close()
	})
}

// An unhealthy container that is restarted for that, and one that runs out of memory, did not
// end by the signal that came before.
func TestSignalBeforeAnotherEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		healed bool
		exit   runtime.Exit
		again  bool
	}{
		{"the signal's work", false, runtime.Exit{Code: 1}, false},
		{"healed", true, runtime.Exit{Code: 143}, true},
		{"out of memory", false, runtime.Exit{Code: 137, OOMKilled: true}, true},
	} {
		e := newEntry(Record{ID: "x", Config: &container.Config{}, HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}})
		e.run, e.signalled = &run{}, time.Now()
		if c.healed {
			e.healing = e.run
		}
		if again, _ := e.decideRestart(c.exit, time.Second); again != c.again || e.rec.ManuallyStopped == c.again {
			t.Errorf("%s: restarted %t, stopped by hand %t", c.name, again, e.rec.ManuallyStopped)
		}
	}
}

// A signal is told before the end that comes of it, however late its sender hears that it
// was sent, and once.
func TestSignalIsToldBeforeTheEnd(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(ctx context.Context, m *Manager) error
		want string
	}{
		"kill":  {func(ctx context.Context, m *Manager) error { return m.Kill(ctx, "it", "") }, "kill die"},
		"TERM":  {func(ctx context.Context, m *Manager) error { return m.Kill(ctx, "it", "TERM") }, "kill die"},
		"stop":  {func(ctx context.Context, m *Manager) error { return m.Stop(ctx, "it", Stop{}) }, "kill die stop"},
		"rm -f": {func(ctx context.Context, m *Manager) error { return m.Remove(ctx, "it", Remove{Force: true}) }, "kill die destroy"},
	} {
		world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
			id := createStopping(t, m, "", "")
			if err := m.Start(t.Context(), "it"); err != nil {
				t.Fatal(err)
			}
			f.tasks[string(id)].lag = 100 * time.Millisecond
			before := len(f.actions())
			if err := c.end(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			var got []string
			for _, a := range f.actions()[before:] {
				if a != "disconnect" {
					got = append(got, a)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s: %v, want %s", what, got, c.want)
			}
		})
	}
}
