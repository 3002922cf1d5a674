package systemd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/systemd"
	"escale.dev/escale/internal/sys/systemd/systemdtest"
	"github.com/containerd/errdefs"
)

const unit = "docker-a1.scope"

func dial(t *testing.T) *systemd.Conn {
	t.Helper()
	c, err := systemd.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// scope are properties of one with a process of its own, which ends with the test.
func scope(t *testing.T) []systemd.Property {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return []systemd.Property{{Name: "Slice", Value: "a-b.slice"}, {Name: "PIDs", Value: []uint32{uint32(cmd.Process.Pid)}}, {Name: "Delegate", Value: true}}
}

// A root whose "cgroups" are plain directories will do: what was written stays there.
func TestUnit(t *testing.T) {
	root := t.TempDir()
	s := systemdtest.Start(t, root)
	c, props := dial(t), scope(t)
	props = append(props, systemd.Property{Name: "MemoryMax", Value: uint64(1 << 20)}, systemd.Property{Name: "DeviceAllow", Value: []systemd.Device{{Path: "/dev/char/1:3", Access: "rw"}, {Path: "char-*", Access: "m"}}},
		systemd.Property{Name: "AllowedCPUs", Value: []byte{5}}, systemd.Property{Name: "Wants", Value: []string{"x", "yz"}}, systemd.Property{Name: "I", Value: int32(-5)}, systemd.Property{Name: "X", Value: int64(-6)},
		systemd.Property{Name: "D", Value: 0.5}, systemd.Property{Name: "Empty", Value: []systemd.Device{}})
	if err := c.StartTransient(t.Context(), unit, props); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "a.slice/a-b.slice", unit, "cgroup.procs")); err != nil || len(b) == 0 {
		t.Errorf("cgroup: %q, %v", b, err)
	}
	u := s.Unit(unit)
	if u == nil {
		t.Fatal("no unit")
	}
	for name, want := range map[string]any{"MemoryMax": uint64(1 << 20), "Delegate": true, "Slice": "a-b.slice", "I": int32(-5), "X": int64(-6), "D": 0.5} {
		if u.Properties[name] != want {
			t.Errorf("%s: %v, want %v", name, u.Properties[name], want)
		}
	}
	if b, _ := u.Properties["AllowedCPUs"].([]byte); !slices.Equal(b, []byte{5}) {
		t.Errorf("AllowedCPUs: %v", u.Properties["AllowedCPUs"])
	}
	if d, _ := u.Properties["DeviceAllow"].([][]any); len(d) != 2 || d[0][0] != "/dev/char/1:3" || d[1][1] != "m" {
		t.Errorf("DeviceAllow: %v", u.Properties["DeviceAllow"])
	}
	if err := c.SetProperties(t.Context(), unit, []systemd.Property{{Name: "MemoryMax", Value: uint64(2 << 20)}}); err != nil {
		t.Fatal(err)
	}
	if got := s.Unit(unit).Properties["MemoryMax"]; got != uint64(2<<20) {
		t.Errorf("MemoryMax after the change: %v", got)
	}
	if err := c.SetProperties(t.Context(), unit, []systemd.Property{{Name: "Nonsense", Value: true}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "unit "+unit+": Cannot set property Nonsense") {
		t.Errorf("a property there is not: %v", err)
	}
	if n, err := c.Version(t.Context()); n != 252 || err != nil {
		t.Errorf("version: %d, %v", n, err)
	}
	if err := c.Stop(t.Context(), "other.scope"); err != nil {
		t.Errorf("stopping what is not there: %v", err)
	}
	if err := c.SetProperties(t.Context(), "other.scope", props[:1]); !errdefs.IsNotFound(err) {
		t.Errorf("changing what is not there: %v", err)
	}
	if err := os.Remove(filepath.Join(root, "a.slice/a-b.slice", unit, "cgroup.procs")); err != nil { // as a kernel would
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), unit); err != nil || s.Unit(unit) != nil {
		t.Errorf("stop: %v, left %v", err, s.Units())
	}
}

// One that has failed makes room, one that lives does not.
func TestUnitThere(t *testing.T) {
	s := systemdtest.Start(t, t.TempDir())
	c := dial(t)
	s.Add(unit, true)
	if err := c.StartTransient(t.Context(), unit, scope(t)); err != nil {
		t.Errorf("after one that has failed: %v", err)
	}
	if err := c.StartTransient(t.Context(), unit, scope(t)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("beside one that lives: %v", err)
	}
}

func TestJobThatFails(t *testing.T) {
	s := systemdtest.Start(t, t.TempDir())
	c := dial(t)
	for range 2 { // told before and after the answer
		s.Fail("timeout")
		if err := c.StartTransient(t.Context(), unit, scope(t)); err == nil || err.Error() != "unit "+unit+`: its job ended with "timeout"` {
			t.Errorf("error: %v", err)
		}
	}
	if err := c.StartTransient(t.Context(), unit, nil); err == nil || !strings.Contains(err.Error(), "bad unit file setting") {
		t.Errorf("without processes: %v", err)
	}
}

// Nobody waits for ever.
func TestSilence(t *testing.T) {
	s := systemdtest.Start(t)
	c := dial(t)
	s.Hush()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := c.StartTransient(ctx, unit, scope(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error: %v", err)
	}
	gone, enough := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, enough)
	if _, err := systemd.Dial(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNoBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	if _, err := systemd.Dial(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "systemd not running on this host") {
		t.Errorf("error: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "tcp:host=a,port=1")
	if _, err := systemd.Dial(t.Context()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error: %v", err)
	}
}
