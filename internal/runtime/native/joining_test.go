package native

import (
	"encoding/json"
	"errors"
	"fmt"
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

// joinsPIDs has a container join the pid namespace of another, and its user namespace if
// it has one.
func joinsPIDs(t *testing.T, b, other *lab, users bool) {
	t.Helper()
	pid := other.state().Pid
	b.spec.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pid)
	if users {
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: fmt.Sprintf("/proc/%d/ns/user", pid)})
	}
}

// A container that joins the pid namespace of another lives as any other does.
func TestJoinPIDs(t *testing.T) {
	for name, c := range map[string]struct{ theirs, own bool }{"plain": {}, "with their users": {theirs: true}, "with users": {own: true}} {
		t.Run(name, func(t *testing.T) {
			a := newLab(t, "exec sleep 1000")
			if c.theirs {
				withUsers(a)
			}
			a.detached("run", "-d", a.id)
			b := newLab(t, "readlink /proc/self/ns/pid; readlink /proc/self; echo $$; readlink /proc/1/ns/pid || echo denied; exec sleep 1000")
			joinsPIDs(t, b, a, c.theirs)
			if c.own {
				withUsers(b)
			}
			b.detached("create", "--pid-file", "pid", b.id)
			s := b.state()
			if written, err := os.ReadFile(filepath.Join(b.bundle, "pid")); err != nil || string(written) != strconv.Itoa(s.Pid) || s.Status != specs.StateCreated {
				t.Errorf("created: %+v, pid file %q, %v", s, written, err)
			}
			b.must("start", b.id)
			b.await(specs.StateRunning)
			said := func() []string {
				out, err := os.ReadFile(filepath.Join(b.bundle, "out"))
				if err != nil {
					t.Fatal(err)
				}
				return strings.Fields(string(out))
			}
			for deadline := time.Now().Add(10 * time.Second); len(said()) < 4 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			}
			want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", a.state().Pid))
			if err != nil {
				t.Fatal(err)
			}
			// Its procfs is that namespace's, in which it is not the first.
			if got := said(); len(got) != 4 || got[0] != want || got[1] == "1" || got[2] == "1" || c.theirs && got[3] != want {
				t.Errorf("it says %v, want it in %s", got, want)
			}
			if got := b.must("exec", b.id, "sh", "-c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/user; id -u"); !strings.HasPrefix(got, want+"\n") || !strings.HasSuffix(got, "\n0") {
				t.Errorf("an exec says %s", got)
			}
			if got := a.must("exec", a.id, "sh", "-c", "ls /proc | busybox grep -c '^[0-9]'"); got == "1" {
				t.Errorf("the other sees %s processes", got)
			}
			b.must("kill", b.id, "KILL")
			b.await(specs.StateStopped)
			b.must("delete", b.id)
			b.nothingLeft()
			if s := a.state(); s.Status != specs.StateRunning {
				t.Errorf("the other is %s", s.Status)
			}
			// The exit status is the process', and a second one takes the first one's place.
			b.spec.Process.Args[2] = "exit 7"
			b.write()
			if out, err := b.call("run", b.id); exitCode(err) != 7 {
				t.Errorf("run: %v: %s", err, out)
			}
			b.spec.Process.Args[0] = "nosuch"
			b.write()
			if out, err := b.call("run", b.id); err == nil || !strings.Contains(out, "executable file not found in $PATH") {
				t.Errorf("no program: %v: %s", err, out)
			}
			b.nothingLeft()
		})
	}
}

// What such a container leaves running ends with it, and it ends with the namespace.
func TestJoinedPIDsEnd(t *testing.T) {
	a := newLab(t, "exec sleep 1000")
	a.detached("run", "-d", a.id)
	b := newLab(t, "busybox setsid sleep 1000 & exec sleep 1000")
	joinsPIDs(t, b, a, false)
	b.detached("run", "-d", b.id)
	pids := func() (list []int) {
		if err := json.Unmarshal([]byte(b.must("ps", "--format", "json", b.id)), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	for deadline := time.Now().Add(10 * time.Second); len(pids()) < 2 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	// As with runc: nobody else would end the others.
	b.must("kill", b.id, "KILL")
	for deadline := time.Now().Add(10 * time.Second); len(pids()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v live on", pids())
		}
	}
	b.must("delete", b.id)
	b.detached("create", b.id)
	held, err := os.Open(b.spec.Linux.Namespaces[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	a.must("kill", a.id, "KILL")
	a.await(specs.StateStopped)
	b.await(specs.StateStopped)
	b.must("delete", b.id)
	for path, words := range map[string]string{b.spec.Linux.Namespaces[0].Path: "namespace", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), held.Fd()): "the pid namespace may have ended"} {
		b.spec.Linux.Namespaces[0].Path = path
		b.write()
		if out, err := b.call("run", b.id); err == nil || !strings.Contains(out, words) {
			t.Errorf("with a namespace that has ended: %v: %s, want %s", err, out, words)
		}
		b.nothingLeft()
	}
	b.nothingLeft()
}

// Hooks, a terminal's place, sysctls, a filter and limits are those of any container.
func TestJoinedPIDsWhole(t *testing.T) {
	a := newLab(t, "exec sleep 1000")
	a.detached("run", "-d", a.id)
	b := newLab(t, "echo process >>/log; hostname; cat /proc/sys/net/core/somaxconn; ulimit -n; cat /proc/self/oom_score_adj; busybox grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status; pwd; id -u; touch /ro 2>/dev/null || echo read-only; ls /proc/fs | busybox wc -l")
	joinsPIDs(t, b, a, false)
	score, log := 321, filepath.Join(b.bundle, "root/log")
	b.spec.Linux.MaskedPaths = []string{"/proc/fs"}
	b.spec.Hostname, b.spec.Linux.Sysctl = "joined", map[string]string{"net.core.somaxconn": "77"}
	b.spec.Process.OOMScoreAdj, b.spec.Process.NoNewPrivileges, b.spec.Process.Cwd = &score, true, "/tmp"
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"}, Effective: []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"}, Permitted: []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"}}
	b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 100}}
	b.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"swapon"}, Action: specs.ActErrno}}}
	host := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf("read state; echo %s >>%s; case $state in *%s*) ;; *) exit 1;; esac", name, log, b.id)}}}
	}
	b.spec.Hooks = &specs.Hooks{CreateRuntime: host("createRuntime"), CreateContainer: host("createContainer"), Poststop: host("poststop"),
		StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo startContainer >>/log"}}}}
	if got, want := b.run(), "joined\n77\n99\n321\nCapEff:\t0000000000000003\nNoNewPrivs:\t1\nSeccomp:\t2\n/tmp\n0\n0"; got != want {
		t.Errorf("it says %s\nwant %s", got, want)
	}
	if said, err := os.ReadFile(log); err != nil || strings.Join(strings.Fields(string(said)), " ") != "createRuntime createContainer startContainer process poststop" {
		t.Errorf("hooks: %q, %v", said, err)
	}
	// With the host's mounts its root is by chroot, in what is seen there too.
	b.spec.Linux.Namespaces[1], b.spec.Hooks, b.spec.Linux.MaskedPaths = b.spec.Linux.Namespaces[2], nil, nil
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces[:2], b.spec.Linux.Namespaces[3:]...)
	b.spec.Mounts = b.spec.Mounts[:1]
	b.spec.Process.Args[2] = "ls /proc/self/root/bin/busybox; readlink /proc/1/exe; echo $(ls /proc | busybox grep -c '^[0-9]')"
	if got := b.run(); got != "/proc/self/root/bin/busybox\n/bin/busybox\n4" && !strings.HasPrefix(got, "/proc/self/root/bin/busybox") {
		t.Errorf("with a root by chroot: %s", got)
	}
	b.nothingLeft()
}

// An exec whose container ends while it begins says so, and not what it missed then,
// whether it has come into the cgroup, which stands still, before the end or after it. One
// that has begun, since what is killed goes on for a moment, is killed without a word.
func TestExecInEndingContainer(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 50 * time.Millisecond} {
		l := newLab(t, "exec sleep 1000")
		l.detached("run", "-d", l.id)
		l.must("pause", l.id)
		cmd := l.command("exec", "--ignore-paused", l.id, "sleep", "1000")
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		l.must("kill", l.id, "KILL")
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() }) // it may be over
		err := cmd.Wait()
		begun := exitCode(err) == 128+int(unix.SIGKILL) && said.String() == ""
		if !begun && (err == nil || strings.TrimSpace(said.String()) != `level=error msg="exec failed: cannot exec in a stopped container"`) {
			t.Errorf("killed after %s: %v: %s", wait, err, said.String())
		}
		timer.Stop()
		l.must("delete", "--force", l.id)
	}
}

// Who does not accept terminals is not waited for, and holds up no container's end.
func TestConsoleSocketFull(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.detached("run", "-d", l.id)
	address := &unix.SockaddrUnix{Name: filepath.Join(l.bundle, "console")}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	full := socket()
	defer unix.Close(full)
	if err := errors.Join(unix.Bind(full, address), unix.Listen(full, 0)); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; {
		fd := socket()
		defer unix.Close(fd)
		err = unix.Connect(fd, address)
	}
	cmd := l.command("exec", "--tty", "--console-socket", address.Name, l.id, "true")
	timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() }) // it may be over
	defer timer.Stop()
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "resource temporarily unavailable") {
		t.Errorf("%v: %s", err, out)
	}
	l.must("delete", "--force", l.id)
}

// A standard stream that is the null device is the container's own, by its name, however
// the container comes about.
func TestOwnNull(t *testing.T) {
	a := newLab(t, "readlink /proc/self/fd/0; exec sleep 1000")
	a.detached("run", "-d", a.id)
	plain, users, joining := newLab(t, ""), newLab(t, ""), newLab(t, "")
	withUsers(users)
	joinsPIDs(t, joining, a, false)
	for name, l := range map[string]*lab{"plain": plain, "users": users, "joining": joining} {
		l.spec.Process.Args[2] = "readlink -f /dev/stdin; readlink /proc/self/fd/0; cat </proc/self/fd/0 && echo x >/proc/self/fd/0 && echo ok"
		if got := l.run(); got != "/dev/null\n/dev/null\nok" {
			t.Errorf("%s: %s", name, got)
		}
		l.nothingLeft()
	}
}

// Whatever the moment at which the runtime is killed, delete --force leaves nothing.
func TestJoinedPIDsKilled(t *testing.T) {
	a := newLab(t, "exec sleep 1000")
	a.detached("run", "-d", a.id)
	for delay := time.Duration(0); delay < 36*time.Millisecond; delay += 1500 * time.Microsecond {
		b := newLab(t, "exec sleep 1000")
		joinsPIDs(t, b, a, false)
		b.write()
		cmd := b.command("run", "-d", b.id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed, or not
		b.must("delete", "--force", b.id)
		b.nothingLeft()
	}
	// Nor is any half left in the namespace.
	var there string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if there = a.must("exec", a.id, "sh", "-c", "busybox grep -H State: /proc/[0-9]*/status; busybox ps"); strings.Count(there, "State:") == 2 {
			break
		}
	}
	if strings.Count(there, "State:") != 2 { // the first one's and the shell's
		t.Errorf("there are\n%s", there)
	}
}
