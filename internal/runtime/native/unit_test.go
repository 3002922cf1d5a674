//go:build !cgo

// With cgo, which what speaks D-Bus here would take, this program could not be executed in a container.
package native

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/sys/systemd/systemdtest"
)

// scoped is a lab whose container is to be in a scope of a systemd for tests, which knows
// the hierarchies that the real one does.
func scoped(t *testing.T, script string) (*lab, *systemdtest.Server, string) {
	l := newLab(t, script)
	layout, err := cgroups.Detect()
	if err != nil {
		t.Fatal(err)
	}
	roots := []string{layout.Unified}
	if !layout.Pure() {
		roots = nil
		for i := range layout.V1 {
			if h := &layout.V1[i]; slices.Contains([]string{"name=systemd", "memory", "cpu", "pids", "devices"}, h.Names[0]) {
				roots = append(roots, h.Mount)
			}
		}
	}
	slice := "escaletest" + strconv.Itoa(os.Getpid()) + ".slice"
	l.spec.Linux.CgroupsPath = slice + ":docker:" + l.id
	s := systemdtest.Start(t, roots...)
	t.Cleanup(func() {
		_, _ = l.call("delete", "--force", l.id) // as a rule it is gone
		g, err := layout.Place("/"+slice, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range g.Dirs() {
			if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	})
	return l, s, "docker-" + l.id + ".scope"
}

func number[T any](v T) *T { return &v }

// in waits until something holds.
func in(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func TestScope(t *testing.T) {
	l, s, unit := scoped(t, "cat /proc/self/cgroup; sleep 60")
	l.spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: number[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: number[int64](33)},
		CPU: &specs.LinuxCPU{Shares: number[uint64](512), Quota: number[int64](12345), Period: number[uint64](100000)}, Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	l.spec.Annotations = map[string]string{"org.systemd.property.TimeoutStopSec": "1.5", "org.systemd.property.Documentation": "['man:x']"}
	l.write()
	l.detached("--systemd-cgroup", "create", l.id)
	u := s.Unit(unit)
	if u == nil {
		t.Fatalf("no unit; there are %v", s.Units())
	}
	for name, want := range map[string]any{"Delegate": true, "DefaultDependencies": false, "CollectMode": "inactive-or-failed", "TasksMax": uint64(33), "DevicePolicy": "strict",
		"CPUQuotaPerSecUSec": uint64(130000), "CPUQuotaPeriodUSec": uint64(100000), "TimeoutStopUSec": uint64(1500000)} {
		if got := u.Properties[name]; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if u.Properties["MemoryMax"] != uint64(64<<20) && u.Properties["MemoryLimit"] != uint64(64<<20) {
		t.Errorf("memory: %v", u.Properties)
	}
	if len(u.Properties["DeviceAllow"].([][]any)) < 8 {
		t.Errorf("DeviceAllow: %v", u.Properties["DeviceAllow"])
	}
	g := l.group()
	if got := read(t, g, "memory.limit_in_bytes", "memory.max"); got != strconv.Itoa(64<<20) {
		t.Errorf("memory: %s", got)
	}
	if got := read(t, g, "pids.max", "pids.max"); got != "33" {
		t.Errorf("pids: %s", got)
	}
	if got := read(t, g, "cpu.cfs_quota_us", "cpu.max"); got != "13000" && got != "13000 100000" {
		t.Errorf("quota: %s", got)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("in the cgroup: %v, %v; only the container's process should be", pids, err)
	}
	l.must("start", l.id)
	l.must("exec", l.id, "true")
	l.must("pause", l.id)
	l.must("resume", l.id)
	l.must("update", "--memory", strconv.Itoa(32<<20), "--pids-limit", "44", "--cpu-quota", "50000", l.id)
	u = s.Unit(unit)
	if m := uint64(32 << 20); u.Properties["MemoryMax"] != m && u.Properties["MemoryLimit"] != m || u.Properties["TasksMax"] != uint64(44) || u.Properties["CPUQuotaPerSecUSec"] != uint64(500000) {
		t.Errorf("after the update: %v", u.Properties)
	}
	if got := read(t, g, "pids.max", "pids.max"); got != "44" {
		t.Errorf("pids after the update: %s", got)
	}
	l.must("delete", "--force", l.id)
	if left := s.Units(); len(left) > 0 {
		t.Errorf("left over: units %v", left)
	}
	l.nothingLeft()
}

func (l *lab) group() *cgroups.Group {
	l.t.Helper()
	layout, err := cgroups.Detect()
	if err != nil {
		l.t.Fatal(err)
	}
	g, err := layout.Place(l.spec.Linux.CgroupsPath, l.id)
	if err != nil {
		l.t.Fatal(err)
	}
	return g
}

// read gives the content of a group's file, by its name in either version.
func read(t *testing.T, g *cgroups.Group, v1, v2 string) string {
	t.Helper()
	name := filepath.Join(g.Unified, v2)
	if !g.Pure {
		controller, _, _ := strings.Cut(v1, ".")
		name = filepath.Join(g.V1[controller], v1)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A start that is refused leaves no unit, wherever it was.
func TestScopeUndone(t *testing.T) {
	for name, spoil := range map[string]func(*lab, *systemdtest.Server){
		"program": func(l *lab, _ *systemdtest.Server) { l.spec.Process.Args = []string{"/none"} },
		"limit": func(l *lab, _ *systemdtest.Server) {
			l.spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}}
		},
		"mount": func(l *lab, _ *systemdtest.Server) {
			l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/none", Options: []string{"bind"}})
		},
		"property": func(l *lab, _ *systemdtest.Server) {
			l.spec.Annotations = map[string]string{"org.systemd.property.Nonsense": "true"}
		},
		"value": func(l *lab, _ *systemdtest.Server) {
			l.spec.Annotations = map[string]string{"org.systemd.property.Abc": "[true"}
		},
		"job":   func(_ *lab, s *systemdtest.Server) { s.Fail("failed") },
		"path":  func(l *lab, _ *systemdtest.Server) { l.spec.Linux.CgroupsPath = "/a/b" },
		"slice": func(l *lab, _ *systemdtest.Server) { l.spec.Linux.CgroupsPath = "a--b.slice:x:y" },
	} {
		t.Run(name, func(t *testing.T) {
			l, s, _ := scoped(t, "true")
			path := l.spec.Linux.CgroupsPath
			spoil(l, s)
			l.write()
			if out, err := l.call("--systemd-cgroup", "run", l.id); err == nil {
				t.Errorf("taken: %s", out)
			}
			l.spec.Linux.CgroupsPath = path
			if left := s.Units(); len(left) > 0 {
				t.Errorf("left over: units %v", left)
			}
			l.nothingLeft()
		})
	}
}

// Killed at any moment, the runtime leaves a unit only to a container's process.
func TestScopeKilledBetween(t *testing.T) {
	l, s, unit := scoped(t, "sleep 60")
	l.write()
	for i := range 12 {
		cmd := l.command("--systemd-cgroup", "create", l.id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pause := time.NewTimer(time.Duration(i) * 2 * time.Millisecond)
		<-pause.C
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		state, err := l.call("state", l.id)
		// One whose runtime was killed before its last word ends by itself.
		if err == nil && strings.Contains(state, `"status": "created"`) && s.Unit(unit) == nil {
			if state = l.must("state", l.id); strings.Contains(state, `"status": "created"`) {
				t.Errorf("a container without a unit: %s", state)
			}
		} else if err != nil || !strings.Contains(state, `"status": "created"`) {
			in(t, "left over: a unit, after a kill", func() bool { return s.Unit(unit) == nil })
		}
		l.must("delete", "--force", l.id)
		if left := s.Units(); len(left) > 0 {
			t.Errorf("left over: units %v", left)
		}
		if t.Failed() {
			return
		}
	}
}

// One that has failed before makes room, and no systemd is told in runc's words.
func TestScopeBefore(t *testing.T) {
	l, s, unit := scoped(t, "echo here")
	s.Add(unit, true)
	l.write()
	if out := l.must("--systemd-cgroup", "run", l.id); out != "here" {
		t.Errorf("said %q", out)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/none")
	if out, err := l.call("--systemd-cgroup", "run", l.id); err == nil || !strings.Contains(out, "systemd not running on this host, cannot use systemd cgroups manager") {
		t.Errorf("without systemd: %v: %s", err, out)
	}
}
