package native

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
)

// The first process of a container has gone into a cgroup below its own and hands
// controllers on from there (as systemd does in a container): an exec goes where it is.
func TestExecBesideMovedInit(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.detached("run", "-d", l.id)
	layout, err := cgroups.Detect()
	if err != nil {
		t.Fatal(err)
	}
	g, err := layout.Place(l.spec.Linux.CgroupsPath, l.id)
	if err != nil {
		t.Fatal(err)
	}
	if g.Unified == "" {
		t.Skip("no cgroups of version 2 here")
	}
	if _, err := g.Around(l.state().Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before it moves: %v", err)
	}
	// From the root down to the container's own: its controllers are those of version 2.
	hand := func(dir, controller string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
	b, err := os.ReadFile(filepath.Join(layout.Unified, "cgroup.controllers"))
	if err != nil || len(strings.Fields(string(b))) == 0 {
		t.Skip("no controllers of version 2 here: ", err)
	}
	controller := strings.Fields(string(b))[0]
	for _, dir := range []string{layout.Unified, filepath.Dir(g.Unified)} {
		if err := hand(dir, controller); err != nil {
			t.Skip("controllers cannot be handed down: ", err)
		}
	}
	lower := filepath.Join(g.Unified, "init")
	if err := os.Mkdir(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(l.state().Pid)
	if err := os.WriteFile(filepath.Join(lower, "cgroup.procs"), []byte(pid), 0); err != nil {
		t.Fatal(err)
	}
	if err := hand(g.Unified, controller); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.Unified, "cgroup.procs"), []byte(pid), 0); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("control: the container's own cgroup takes somebody: %v", err)
	}
	if got := l.must("exec", l.id, "cat", "/proc/self/cgroup"); !strings.Contains(got, "0::"+strings.TrimPrefix(lower, layout.Unified)) {
		t.Errorf("the exec is in\n%s", got)
	}
	if other, err := g.Around(os.Getpid()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a process elsewhere: %v, %v", other, err)
	}
	l.must("delete", "--force", l.id)
	l.nothingLeft()
}

// A container that covers its /proc says nothing about itself that an exec believes:
// the groups of who calls stay outside, and a file that never ends is not read.
func TestExecTakesNoGroupsIn(t *testing.T) {
	for name, made := range map[string]string{"file": "echo deny >/proc/self/setgroups", "fifo": "busybox mkfifo /proc/self/setgroups"} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "busybox mount -t tmpfs none /proc && busybox mkdir /proc/self && "+made+" && touch /covered; exec sleep 1000")
			may := []string{"CAP_SYS_ADMIN"}
			l.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: may, Effective: may, Permitted: may}
			l.detached("run", "-d", l.id)
			for deadline := time.Now().Add(10 * time.Second); !exists(filepath.Join(l.bundle, "root/covered")); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("/proc is not covered")
				}
			}
			for _, user := range []string{"0", "1000"} {
				cmd := l.command("exec", "--user", user, l.id, "id", "-G")
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4242, 4243}}}
				cmd.WaitDelay = time.Second
				hang := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() }) // it may have ended this moment
				out, err := cmd.CombinedOutput()
				if !hang.Stop() || err != nil || strings.TrimSpace(string(out)) != "0" {
					t.Errorf("user %s: groups %q, %v", user, out, err)
				}
			}
		})
	}
}

// The program's own name leads to nothing that the runtime has open: by the host's procfs
// it would lead anywhere.
func TestProgramIsNotOfTheHost(t *testing.T) {
	l := newLab(t, "")
	for fd := 3; fd < 24; fd++ {
		l.spec.Process.Args = []string{"/proc/self/fd/" + strconv.Itoa(fd) + "/self/root/bin/busybox", "echo", "came in"}
		l.write()
		if out, err := l.call("run", l.id); err == nil || strings.Contains(out, "came in") {
			t.Errorf("descriptor %d: %v: %s", fd, err, out)
		}
	}
	// Control: such a name leads to a program where it is one of the container's.
	l.spec.Process.Args[0] = "/proc/self/root/bin/busybox"
	if got := l.run(); got != "came in" {
		t.Errorf("control: %s", got)
	}
}

// Limits below what the runtime itself needs are those of the program, not the runtime's.
func TestSmallLimits(t *testing.T) {
	l := newLab(t, "ulimit -n; ulimit -v; ulimit -d")
	l.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 9, Hard: 10}, {Type: "RLIMIT_AS", Soft: 64 << 20, Hard: 64 << 20}, {Type: "RLIMIT_DATA", Soft: 8 << 20, Hard: 8 << 20}}
	if got := l.run(); got != "9\n65536\n8192" {
		t.Errorf("limits %s", got)
	}
}

// What the caller has open comes in as far as it is told to, by every way in, and no more.
func TestPreserveFDs(t *testing.T) {
	for name, users := range map[string]bool{"plain": false, "with users": true} {
		t.Run(name, func(t *testing.T) {
			const show = "cat <&3; cat <&4; busybox find /proc/self/fd -type l | busybox wc -l"
			l := newLab(t, show)
			if users {
				withUsers(l)
			}
			l.write()
			call := func(args ...string) (string, error) {
				cmd := l.command(args...)
				for _, word := range []string{"first", "second", "third"} {
					r, w, err := os.Pipe()
					if err != nil {
						t.Fatal(err)
					}
					defer r.Close()
					if _, err := w.WriteString(word + "\n"); err != nil {
						t.Fatal(err)
					}
					w.Close()
					cmd.ExtraFiles = append(cmd.ExtraFiles, r)
				}
				out, err := cmd.CombinedOutput()
				return strings.TrimSpace(string(out)), err
			}
			// Three streams, two of the caller's, and the directory that is read.
			const want = "first\nsecond\n6"
			if got, err := call("run", "--preserve-fds", "2", l.id); err != nil || got != want {
				t.Errorf("run: %v: %s", err, got)
			}
			for _, n := range []string{"4", "-1", "x", "1000"} {
				if out, err := call("run", "--preserve-fds", n, l.id); err == nil || !strings.Contains(out, "preserve") {
					t.Errorf("%s of three: %v: %s", n, err, out)
				}
			}
			l.spec.Process.Args = []string{"sleep", "1000"}
			l.detached("run", "-d", l.id)
			if got, err := call("exec", "--preserve-fds", "2", l.id, "sh", "-c", show); err != nil || got != want {
				t.Errorf("exec: %v: %s", err, got)
			}
			l.must("delete", "--force", l.id)
			l.nothingLeft()
		})
	}
}

// A relative path of cgroups is below those of who made the container, wherever they are
// who exec and delete.
func TestRelativeCgroupsPath(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.spec.Linux.CgroupsPath = "escale-native-relative/" + l.id
	l.detached("run", "-d", l.id)
	layout, err := cgroups.Detect()
	if err != nil {
		t.Fatal(err)
	}
	parent, err := layout.Place("escale-native-relative", l.id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cgroups.RemoveEmpty(parent.Dirs()) })
	away, err := layout.Place("/escale-native-away-"+l.id, l.id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := away.Make(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := away.Remove(); err != nil {
			t.Error(err)
		}
	})
	script := "for f in \"$@\"; do echo $$ >$f/cgroup.procs || exit 9; done; exec $ARGS"
	elsewhere := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, away.Dirs()...)...)
		cmd.Dir = l.bundle
		cmd.Env = append(os.Environ(), asRuntime+"=1", "ARGS=/proc/"+strconv.Itoa(os.Getpid())+"/exe --root "+l.states+" "+strings.Join(args, " "))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	if got := elsewhere("exec", l.id, "cat", "/proc/self/cgroup"); strings.Contains(got, "away") || !strings.Contains(got, "escale-native-relative/"+l.id) {
		t.Errorf("the exec is in\n%s", got)
	}
	elsewhere("delete", "--force", l.id)
	l.nothingLeft()
}
