package monitor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOOM(t *testing.T) {
	const quiet = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n"
	for what, c := range map[string]struct {
		before string // what was read while it ran
		end    string // what is there at the end; empty: the cgroup is gone
		lost   bool   // by a SIGKILL of others
		want   bool
	}{
		"killed":                                     {quiet, "max 7\noom 1\noom_kill 1\n", true, true},
		"killed, as cgroup v1 tells":                 {"", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", true, true},
		"another was killed, before":                 {"max 7\noom 1\noom_kill 1\n", "", false, true},
		"ended":                                      {quiet, quiet, false, false},
		"at its limit, and ended":                    {"max 7\n", "", false, false},
		"at its limit, and gone":                     {"max 7\noom_kill 0\n", "", true, true},
		"at its limit, killed by others, and there":  {"max 7\n", "max 9\noom 0\noom_kill 0\n", true, false},
		"killed by others, and gone":                 {quiet, "", true, false},
		"gone before anything was read":              {"", "", true, false},
		"a file that tells nothing":                  {"oom_kill\nmax x\n\n", "oom_kill -1\n", true, false},
		"of the group, which is another count":       {quiet, "max 0\noom_group_kill 1\n", true, false},
		"a kill beside its own, which ended by a -9": {quiet, "oom_kill 3\n", false, true},
	} {
		path := filepath.Join(t.TempDir(), "memory.events")
		if c.end != "" {
			if err := os.WriteFile(path, []byte(c.end), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var o oomWatch
		o.take([]byte(c.before))
		if got := o.killed(path, c.lost); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
	o := oomWatch{limit: true}
	if o.killed("", true) {
		t.Error("without a cgroup")
	}
}

// A file that is none of cgroup v2 cannot be watched, and is not.
func TestOOMElsewhere(t *testing.T) {
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.ep)
	path := filepath.Join(t.TempDir(), "memory.events")
	if err := os.WriteFile(path, []byte("oom_kill 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var o oomWatch
	for _, p := range []string{path, path + "-not", ""} {
		if o.watch(l, p); o.fd != -1 {
			t.Errorf("%q is watched", p)
		}
	}
}

// A file of cgroup v2 is told of when it changes, once each time, and not for ever once the cgroup is gone.
func TestOOMWatch(t *testing.T) {
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			root = dir
		}
	}
	if root == "" || os.Getuid() != 0 {
		t.Skip("needs root and cgroup v2")
	}
	dir, err := os.MkdirTemp(root, "escale-test-oom-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.ep)
	var o oomWatch
	if o.watch(l, filepath.Join(dir, "cgroup.events")); o.fd < 0 {
		t.Fatal("not watched")
	}
	// wait has the events within ms handled and tells how many there were.
	wait := func(ms int) int {
		t.Helper()
		events := make([]unix.EpollEvent, 4)
		n, err := unix.EpollWait(l.ep, events, ms)
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		for _, ev := range events[:max(n, 0)] {
			l.slots[ev.Fd].h.ready(ev.Events)
		}
		return n
	}
	if n := wait(0); n != 0 {
		t.Errorf("%d events before any change", n)
	}
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if n := wait(5000); n != 1 {
		t.Fatalf("%d events of a change", n)
	}
	if n := wait(0); n != 0 {
		t.Errorf("%d events of a change that was read", n)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(5 * time.Second); os.Remove(dir) != nil && time.Now().Before(end); {
		wait(10)
	}
	told := 0
	for range 10 {
		told += wait(20)
	}
	if told > 1 { // of which the kernel need not tell at all
		t.Errorf("%d events of a cgroup that is gone", told)
	}
	if o.fd >= 0 && o.read(o.fd) == nil {
		t.Error("a cgroup that is gone can be read")
	}
}
