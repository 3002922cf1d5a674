package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/stats"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// fakeFigures counts how often it is read; each sample has used more CPU.
type fakeFigures struct {
	mu    sync.Mutex
	reads uint64
	last  stats.Target
	err   error
	pids  []int
	oom   chan struct{} // memory ran out
}

func (f *fakeFigures) Read(t stats.Target) (*container.StatsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	f.last = t
	s := &container.StatsResponse{Read: time.Now()}
	s.CPUStats.CPUUsage.TotalUsage = f.reads
	return s, f.err
}

func (f *fakeFigures) Pids(string) ([]int, error) { return f.pids, nil }

func (f *fakeFigures) OOMs(ctx context.Context, _ string, told func(bool)) error {
	for {
		select {
		case <-f.oom:
			told(false)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fakeFigures) Cpuset(string) (string, string) { return "0-3", "0" }

func (f *fakeFigures) count() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

func (f *fakeFigures) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func TestStatsShareOneSampler(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := f.manager(t, dir)
		defer m.Close()
		id := running(t, m, "web")
		ctx, cancel := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		var got [3][]*container.StatsResponse
		for i := range got {
			readers.Go(func() {
				err := m.Stats(ctx, "web", StatsOptions{Stream: true}, func(s *container.StatsResponse) error {
					got[i] = append(got[i], s)
					return nil
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("reader %d: %v", i, err)
				}
			})
		}
		time.Sleep(4500 * time.Millisecond)
		if n := f.figures.count(); n != 5 {
			t.Errorf("%d samples in 4.5 s for three readers, want 5", n)
		}
		cancel()
		readers.Wait()
		for i, list := range got {
			if len(list) != 5 {
				t.Fatalf("reader %d got %d samples, want 5", i, len(list))
			}
			for n, s := range list {
				if s.ID != string(id) || s.Name != "/web" {
					t.Errorf("sample of %q %q", s.ID, s.Name)
				}
				if want := uint64(n); s.PreCPUStats.CPUUsage.TotalUsage != want {
					t.Errorf("sample %d: before it %d, want %d", n, s.PreCPUStats.CPUUsage.TotalUsage, want)
				}
			}
		}
		time.Sleep(3 * time.Second)
		if n := f.figures.count(); n != 5 {
			t.Errorf("%d samples: it goes on though nobody looks", n)
		}
		if len(m.samplers) != 0 {
			t.Errorf("%d samplers left", len(m.samplers))
		}
	})
}

func TestStatsOnce(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := f.manager(t, dir)
		defer m.Close()
		id := running(t, m, "web")
		one := func(o StatsOptions) (out []*container.StatsResponse, took time.Duration) {
			t.Helper()
			begin := time.Now()
			if err := m.Stats(t.Context(), "web", o, func(s *container.StatsResponse) error {
				out = append(out, s)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return out, time.Since(begin)
		}
		out, took := one(StatsOptions{})
		if len(out) != 1 || out[0].PreCPUStats.CPUUsage.TotalUsage != 1 || out[0].CPUStats.CPUUsage.TotalUsage != 2 || out[0].PreRead.IsZero() || took != time.Second {
			t.Errorf("after %s: %+v", took, out)
		}
		out, took = one(StatsOptions{OneShot: true})
		if len(out) != 1 || !out[0].PreRead.IsZero() || out[0].CPUStats.CPUUsage.TotalUsage != 3 || took != 0 {
			t.Errorf("one-shot after %s: %+v", took, out)
		}
		// It ended while it was read: zeros, like one that has stopped.
		f.figures.fail(fs.ErrNotExist)
		if out, _ = one(StatsOptions{OneShot: true}); len(out) != 1 || out[0].CPUStats.CPUUsage.TotalUsage != 0 || out[0].ID != string(id) {
			t.Errorf("gone: %+v", out)
		}
		f.figures.fail(nil)
		f.end(id, 0)
		synctest.Wait()
		before := f.figures.count()
		if out, took = one(StatsOptions{}); len(out) != 1 || out[0].Name != "/web" || !out[0].Read.IsZero() || took != 0 || f.figures.count() != before {
			t.Errorf("stopped, after %s: %+v", took, out)
		}
		if err := m.Stats(t.Context(), "nope", StatsOptions{}, nil); !errdefs.IsNotFound(err) || err.Error() != "No such container: nope" {
			t.Error(err)
		}
	})
}

func TestStatsEndWithTheContainer(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := f.manager(t, dir)
		defer m.Close()
		running(t, m, "web")
		done := make(chan error, 1)
		n := 0
		go func() {
			done <- m.Stats(t.Context(), "web", StatsOptions{Stream: true}, func(*container.StatsResponse) error { n++; return nil })
		}()
		time.Sleep(1500 * time.Millisecond)
		if err := m.Remove(t.Context(), "web", Remove{Force: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		select {
		case err := <-done:
			if err != nil || n != 2 {
				t.Errorf("%d samples, then %v", n, err)
			}
		default:
			t.Error("goes on for a container that is gone")
		}
		// A reader that cannot take any more is told apart from the others.
		running(t, m, "web2")
		full := errors.New("full")
		if err := m.Stats(t.Context(), "web2", StatsOptions{Stream: true}, func(*container.StatsResponse) error { return full }); err != full {
			t.Error(err)
		}
	})
}

func TestStatsLinks(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	e, _ := m.store.find(string(running(t, m, "web")))
	e.mu.Lock()
	e.rec.Endpoints[0].Interface = "eth0"
	e.mu.Unlock()
	if _, err := m.sample(e); err != nil || !slices.Equal(f.figures.last.Links, []string{"eth0"}) || f.figures.last.Pid != 4242 || f.figures.last.Cgroup != "/docker/"+string(e.id) {
		t.Errorf("%v, %+v", err, f.figures.last)
	}
	rec := e.view().Record
	rec.HostConfig = &container.HostConfig{NetworkMode: "container:web"}
	rec.Endpoints = nil
	if got := m.links(&rec); !slices.Equal(got, []string{"eth0"}) {
		t.Errorf("by way of another container: %q", got)
	}
	rec.HostConfig.NetworkMode = "host"
	if got := m.links(&rec); got != nil {
		t.Errorf("of the host: %q", got)
	}
}

func TestTop(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	id := running(t, m, "web")
	f.figures.pids = []int{os.Getpid()}
	res, err := m.Top(t.Context(), "web", "-o pid,args")
	if err != nil {
		t.Skipf("needs ps: %v", err)
	}
	if len(res.Processes) != 1 || len(res.Titles) != 2 || !strings.Contains(res.Processes[0][1], "container.test") {
		t.Errorf("%+v", res)
	}
	for _, c := range []struct{ ref, args, want string }{
		{"nope", "", "No such container: nope"},
		{"web", "-eo a=PID", `specifying "a=PID" is not allowed`},
		{"web", "-eo user", "Couldn't find PID field in ps output"},
	} {
		if _, err := m.Top(t.Context(), c.ref, c.args); err == nil || err.Error() != c.want {
			t.Errorf("%s %s: %v, want %s", c.ref, c.args, err, c.want)
		}
	}
	if _, err := m.Top(t.Context(), "web", "--bogus"); err == nil || !strings.HasPrefix(err.Error(), "ps: ") {
		t.Error(err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := m.Top(t.Context(), "web", ""); err == nil || err.Error() != `ps: exec: "ps": executable file not found in $PATH` {
		t.Error(err)
	}
	if err := m.Kill(t.Context(), "web", "KILL"); err != nil {
		t.Fatal(err)
	}
	stopped(t, m, id)
	if _, err := m.Top(t.Context(), "web", ""); !errdefs.IsConflict(err) || err.Error() != "container "+string(id)+" is not running" {
		t.Error(err)
	}
}

func TestParsePS(t *testing.T) {
	const out = "UID PID PPID CMD\nroot 1 0 init a b\nroot 5 1 sh\n - - - thread of 5\n33 51 5 sleep  9\n\n"
	res, err := parsePS([]byte(out), []int{5, 51})
	want := [][]string{{"root", "5", "1", "sh"}, {"-", "-", "-", "thread of 5"}, {"33", "51", "5", "sleep 9"}}
	if err != nil || !slices.EqualFunc(res.Processes, want, slices.Equal) {
		t.Errorf("%q, %v", res.Processes, err)
	}
	for _, bad := range []string{"", "A B\n1 2\n", "A PID\n1\n", "A PID\n1 x\n"} {
		if _, err := parsePS([]byte(bad), []int{1}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzParsePS(f *testing.F) {
	f.Add("PID CMD\n1 init\n- x\n")
	f.Fuzz(func(t *testing.T, s string) {
		res, err := parsePS([]byte(s), []int{1, 2})
		if err != nil {
			return
		}
		for _, p := range res.Processes {
			if len(p) > len(res.Titles) {
				t.Errorf("%q under %q", p, res.Titles)
			}
		}
	})
}

// running makes and starts a container.
func running(t *testing.T, m *Manager, name string) ID {
	t.Helper()
	id := create(t, m, name, nil)
	if err := m.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return id
}

// stopped blocks until the end of a container's run is recorded.
func stopped(t *testing.T, m *Manager, id ID) {
	t.Helper()
	for range 500 {
		if !status(t, m, id).Running() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("still running")
}
