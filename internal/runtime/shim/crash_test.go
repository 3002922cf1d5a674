package shim

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
	"escale.dev/escale/internal/sys/cgroup"
)

// TestAdoptAmidAStart: an engine killed while the runtime is at work leaves a
// start whose outcome the next one must not miss.
func TestAdoptAmidAStart(t *testing.T) {
	b := newBox(t, "exit 21")
	runc := b.launch.Runtime.Path
	slow := filepath.Join(t.TempDir(), "slow-runc")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\nsleep 0.7\nexec "+runc+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.launch.Runtime.Path = slow
	first := b.launchIt()
	go first.Start(ctxFor(t)) // its answer never comes
	time.Sleep(200 * time.Millisecond)
	first.Close()
	if !lives(b.launch.RunDir) {
		t.Error("the monitor does not hold its lock")
	}
	task, err := b.r.Adopt(ctxFor(t), b.launch.ID, b.launch.RunDir, b.launch.StateDir)
	if err == nil {
		exit, werr := task.Wait(ctxFor(t), "")
		task.Close()
		if task.Pid() == 0 && werr == nil && exit.Code != 21 {
			t.Errorf("exit %+v of a process that ended with 21", exit)
		}
	}
	var last runtime.Exit
	for range 200 {
		if last, err = b.r.LastExit(b.launch.StateDir, b.launch.Generation); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || last.Code != 21 {
		t.Errorf("recorded %+v, %v; want 21", last, err)
	}
	gone(t, first.Monitor())
	if lives(b.launch.RunDir) {
		t.Error("the lock outlives the monitor")
	}
}

// TestStartFailsWithoutEngine: a start that fails behind an engine that was killed
// leaves nothing that looks like an end of the container.
func TestStartFailsWithoutEngine(t *testing.T) {
	b := newBox(t, "exit 21")
	slow := filepath.Join(t.TempDir(), "slow-runc")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\nsleep 0.5\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.launch.Runtime.Path = slow
	first := b.launchIt()
	go first.Start(ctxFor(t)) // its answer never comes
	time.Sleep(200 * time.Millisecond)
	first.Close()
	gone(t, first.Monitor())
	if e, err := b.r.LastExit(b.launch.StateDir, b.launch.Generation); !errdefs.IsNotFound(err) {
		t.Errorf("exit record of a container that never ran: %+v, %v", e, err)
	}
	if lives(b.launch.RunDir) {
		t.Error("the lock outlives the monitor")
	}
}

func TestAdopt(t *testing.T) {
	b := newBox(t, "i=0; while read x; do echo got $x; done; exit 8", func(b *box) { b.launch.OpenStdin, b.launch.Generation = true, 7 })
	first := b.launchIt()
	pid := b.start()
	lost := make(chan error)
	go func() { _, err := first.Wait(ctxFor(t), ""); lost <- err }()
	first.Close()
	first.Close()
	if err := <-lost; err == nil || errors.Is(err, runtime.ErrMonitorLost) {
		t.Errorf("wait of the one that let go: %v", err)
	}
	b.adopt()
	if b.task.Pid() != pid || b.task.Monitor() != first.Monitor() || b.task.Generation() != 7 {
		t.Errorf("pid %d, monitor %d, generation %d", b.task.Pid(), b.task.Monitor(), b.task.Generation())
	}
	started, err := os.ReadFile(filepath.Join(b.launch.RunDir, wire.StartedName))
	start, err2 := startTime(pid)
	if f := strings.Fields(string(started)); err != nil || err2 != nil || len(f) != 3 || f[0] != strconv.Itoa(pid) || f[1] != start {
		t.Errorf("identity %q, %v %v", started, err, err2)
	}
	if _, err := b.task.Start(ctxFor(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if _, err := b.r.Adopt(ctxFor(t), strings.Repeat("0", 64), b.launch.RunDir, b.launch.StateDir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("adopted under another id: %v", err)
	}
	s := b.attach("", all)
	_, _ = io.WriteString(s, "hello\n")
	if _, err := io.CopyN(io.Discard, s, 8+10); err != nil {
		t.Fatal(err)
	}
	if err := b.task.Signal(ctxFor(t), "", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(""); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	if got := joined(readLog(t, b.launch.Log.Path), "stdout"); got != "got hello\n" {
		t.Errorf("log %q", got)
	}
}

func TestEndWithoutEngine(t *testing.T) {
	b := newBox(t, "seq 1 1000; sleep 0.3; seq 1001 2000; exit 21", func(b *box) { b.launch.Generation = 3 })
	task := b.launchIt()
	if err := os.WriteFile(filepath.Join(b.launch.StateDir, "exit-2"), []byte("stale"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	task.Close()
	gone(t, task.Monitor())
	e, err := b.r.LastExit(b.launch.StateDir, 3)
	if err != nil || e.Code != 21 || time.Since(e.At) > time.Minute || e.OOMKilled {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := b.r.Adopt(ctxFor(t), b.launch.ID, b.launch.RunDir, b.launch.StateDir); !errdefs.IsNotFound(err) {
		t.Errorf("adopt: %v", err)
	}
	if n := len(readLog(t, b.launch.Log.Path)); n != 2000 {
		t.Errorf("%d lines", n)
	}
	records, err := filepath.Glob(filepath.Join(b.launch.StateDir, "exit-*"))
	if err != nil || len(records) != 1 {
		t.Errorf("records %v, %v", records, err)
	}
}

func TestUnreadableRecordIsNone(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"exit-1": "", "exit-2": `{"version":1,"generation":2}`, "exit-3": `{"version":1,"generation":2,"code":0}`, "exit-4": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for g := range uint64(6) {
		if e, err := New(Config{}).LastExit(dir, g); !errdefs.IsNotFound(err) {
			t.Errorf("generation %d: %+v, %v", g, e, err)
		}
	}
}

func TestMonitorKilled(t *testing.T) {
	b := sleeper(t)
	pid := b.task.Pid()
	s := b.attach("", all)
	wait := make(chan error)
	go func() { _, err := b.task.Wait(ctxFor(t), ""); wait <- err }()
	if _, err := b.exec("e", nil, "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(b.task.Monitor(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-wait; !errors.Is(err, runtime.ErrMonitorLost) {
		t.Errorf("wait: %v", err)
	}
	if _, err := b.task.Wait(ctxFor(t), "e"); !errors.Is(err, runtime.ErrMonitorLost) {
		t.Errorf("wait for the exec: %v", err)
	}
	if err := b.task.Signal(ctxFor(t), "", syscall.SIGTERM); !errors.Is(err, runtime.ErrMonitorLost) {
		t.Errorf("signal: %v", err)
	}
	if _, err := io.ReadAll(s); err != nil {
		t.Errorf("attached: %v", err)
	}
	if _, err := b.r.Adopt(ctxFor(t), b.launch.ID, b.launch.RunDir, b.launch.StateDir); !errdefs.IsNotFound(err) {
		t.Errorf("adopt: %v", err)
	}
	b.cleanup()
	gone(t, pid)
}

func (b *box) cleanupArgs() runtime.Cleanup {
	return runtime.Cleanup{ID: b.launch.ID, RunDir: b.launch.RunDir, Runtime: b.launch.Runtime, CgroupPath: b.launch.CgroupPath}
}

// Cleanup of a container that still runs, with cgroups below its own and all of
// it frozen.
func TestCleanupKills(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		b := sleeper(t)
		pid := b.task.Pid()
		dirs, err := b.r.cgroupDirs(b.launch.CgroupPath)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			if !exists(d) {
				continue
			}
			below := filepath.Join(d, "below")
			if err := os.Mkdir(below, 0o755); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(d, "cpuset") { // a new cpuset takes nobody before it has processors
				if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
					t.Fatal(err)
				}
			}
			if state := filepath.Join(below, "freezer.state"); frozen && exists(state) {
				if err := os.WriteFile(state, []byte("FROZEN"), 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		begin := time.Now()
		if err := b.r.Cleanup(ctxFor(t), b.cleanupArgs()); err != nil {
			t.Errorf("frozen %v: %v", frozen, err)
		}
		t.Logf("frozen %v: %v", frozen, time.Since(begin))
		gone(t, pid)
		gone(t, b.task.Monitor())
		if err := b.r.Cleanup(ctxFor(t), b.cleanupArgs()); err != nil {
			t.Errorf("again: %v", err)
		}
		b.checkNothingLeft()
	}
}

// What escaped from the container's own cgroup in one hierarchy or another is
// found in the others; the version 2 hierarchy plays no part here.
func TestCleanupWithoutUnified(t *testing.T) {
	b := sleeper(t)
	info, err := b.r.cgroups()
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Mounts) == 0 {
		t.Skip("needs cgroup version 1")
	}
	pid := b.task.Pid()
	b.r.cgroups = func() (i cgroup.Info, err error) { i = info; i.Unified = ""; return i, nil }
	if err := unix.Kill(b.task.Monitor(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := b.r.Cleanup(ctxFor(t), b.cleanupArgs()); err != nil {
		t.Error(err)
	}
	gone(t, pid)
	b.checkNothingLeft()
	b.r.cgroups = func() (cgroup.Info, error) { return info, nil }
}

func TestCleanupRefuses(t *testing.T) {
	r := New(Config{})
	for _, c := range []runtime.Cleanup{
		{ID: "", RunDir: "/x"}, {ID: "a/b", RunDir: "/x"}, {ID: "a", RunDir: "x"},
		{ID: "a", RunDir: "/nosuch", CgroupPath: "/"}, {ID: "a", RunDir: "/nosuch", CgroupPath: "/a/.."},
		{ID: "a", RunDir: "/nosuch", CgroupPath: "relative"},
	} {
		c.Runtime.Path = "runc"
		if err := r.Cleanup(t.Context(), c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := r.Cleanup(t.Context(), runtime.Cleanup{ID: "a", RunDir: "/nosuch", Runtime: runtime.Binary{Path: "runc"}, CgroupPath: "/nosuch-" + strconv.Itoa(os.Getpid()) + "/a"}); err != nil {
		t.Errorf("nothing is there: %v", err)
	}
}

func TestCleanupByOtherRuntime(t *testing.T) {
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	if err := os.MkdirAll(filepath.Join(run, wire.RootName, "abc"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "crun")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$@\" > "+dir+"/called\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := runtime.Cleanup{ID: "abc", RunDir: run, Runtime: runtime.Binary{Path: script, Args: []string{"--x"}}}
	for range 2 {
		if err := New(Config{}).Cleanup(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	called, err := os.ReadFile(filepath.Join(dir, "called"))
	if want := "--x --root " + run + "/oci delete --force abc\n"; string(called) != want || err != nil {
		t.Errorf("%q, %v, want %q", called, err, want)
	}
	if exists(filepath.Join(run, wire.RootName)) {
		t.Error("the state is left over")
	}
}

// A record of a process that is no more, and whose pid is now another's.
func TestStaleIdentity(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		strconv.Itoa(os.Getpid()) + " 1 " + string(boot), // we started later
		"999999999 1 " + string(boot), "1 1 other-boot", "torn", "", "-1 1 " + string(boot),
	} {
		path := filepath.Join(t.TempDir(), "monitor")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, _, err := recorded(path); f != nil || err != nil {
			t.Errorf("%q: %v, %v", text, f, err)
		}
	}
}

func TestCgroupPath(t *testing.T) {
	for spec, want := range map[string]string{
		"":                       "",
		"/docker/abc":            "/docker/abc",
		"system.slice:docker:ab": "/system.slice/docker-ab.scope",
		":docker:ab":             "/system.slice/docker-ab.scope",
		"a-b.slice:docker:ab":    "/a.slice/a-b.slice/docker-ab.scope",
		"-.slice::ab":            "/ab.scope",
		"user.slice:x:y.slice":   "/user.slice/y.slice",
	} {
		if got, err := cgroupPath(spec); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", spec, got, err, want)
		}
	}
}

// A full disk costs lines, and says how many; it costs the container nothing.
func TestFullDisk(t *testing.T) {
	const lines = 40000
	disk := filepath.Join(t.TempDir(), "disk")
	if whyNot == "" {
		if err := os.Mkdir(disk, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
			t.Skip("needs a tmpfs: " + err.Error())
		}
		t.Cleanup(func() {
			if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	b := newBox(t, "seq 1 "+strconv.Itoa(lines)+"; echo full >&2; read x; echo after; exit 6", withStdin, func(b *box) { b.launch.Log.Path = filepath.Join(disk, "x-json.log") })
	b.launchIt()
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 200000), 0o600); err != nil {
		t.Fatal(err)
	}
	s := b.attach("", runtime.Attach{Stdin: true, Stderr: true})
	b.start()
	if _, err := io.CopyN(io.Discard, s, 8+5); err != nil {
		t.Fatal(err)
	}
	before := readLog(t, b.launch.Log.Path) // no torn line
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(s, "\n")
	if e := b.wait(""); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	after := readLog(t, b.launch.Log.Path)
	if len(after) != len(before)+2 || len(before) < 1000 || len(before) >= lines {
		t.Fatalf("%d lines, then %d", len(before), len(after))
	}
	note := after[len(before)]
	m := regexp.MustCompile(`^escale: (\d+) log lines lost: no space left on device\n$`).FindStringSubmatch(note.Log)
	if m == nil || note.Stream != "stderr" {
		t.Fatalf("note %+v", note)
	}
	if lost, err := strconv.Atoi(m[1]); err != nil || lost+len(before) != lines+1 {
		t.Errorf("%d written, %d lost, of %d", len(before), lost, lines+1)
	}
	for i, e := range before {
		if e.Log != strconv.Itoa(i+1)+"\n" {
			t.Fatalf("line %d is %q", i+1, e.Log)
		}
	}
}

// A line that a crash has torn does not spoil those after it.
func TestTornLine(t *testing.T) {
	b := newBox(t, "echo new")
	if err := os.WriteFile(b.launch.Log.Path, []byte(`{"log":"old\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}`+"\n"+`{"log":"to`), 0o640); err != nil {
		t.Fatal(err)
	}
	b.launchIt()
	b.start()
	b.wait("")
	if got := joined(readLog(t, b.launch.Log.Path), "stdout"); got != "old\nnew\n" {
		t.Errorf("%q", got)
	}
}

// The monitor stays small whatever passes through it.
func TestMemoryAfterMillionLines(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	b := newBox(t, "yes 'a line of a log as it is written all day long' | head -n 1000000; read x", withStdin, func(b *box) {
		b.launch.Log.MaxSize, b.launch.Log.MaxFiles = 10<<20, 2
	})
	task := b.launchIt()
	idle := rssKB(t, task.Monitor())
	s := b.attach("", runtime.Attach{Stdin: true})
	b.start()
	begin := time.Now()
	_, _ = io.WriteString(s, "\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	most := 0
	for {
		if _, err := os.Stat("/proc/" + strconv.Itoa(task.Pid())); err != nil {
			break
		}
		if b, err := os.ReadFile("/proc/" + strconv.Itoa(task.Monitor()) + "/status"); err == nil && strings.Contains(string(b), "VmRSS") {
			most = max(most, rssKB(t, task.Monitor()))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := task.Wait(ctx, ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("monitor: %d kB before the start, at most %d kB with a million lines, %.0f k lines/s", idle, most, 1000/time.Since(begin).Seconds())
	if most > 3072 {
		t.Errorf("monitor has %d kB", most)
	}
}
