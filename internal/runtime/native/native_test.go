package native

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/record"
)

// The tests' binary is the runtime as well.
func init() {
	if status, ok := Half(os.Args); ok {
		os.Exit(status)
	}
}

const asRuntime = "ESCALE_TEST_RUNTIME"

func TestMain(m *testing.M) {
	if os.Getenv(asRuntime) != "" {
		os.Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// lab is a bundle, and a directory of states.
type lab struct {
	t                  *testing.T
	id, bundle, states string
	spec               *specs.Spec
}

func newLab(t *testing.T, script string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs containers")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs a static /bin/busybox (Debian: busybox-static): ", err)
	}
	dir, err := os.MkdirTemp("", "escale-native-test-") // users of other namespaces must get here
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, id: "native-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36), bundle: dir, states: filepath.Join(dir, "states")}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat id ls sleep stat readlink echo true touch hostname") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	l.spec = &specs.Spec{Version: "1.2.0", Process: &specs.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/"}, Root: &specs.Root{Path: "root"},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}}},
		Linux: &specs.Linux{CgroupsPath: "/escale-native-test/" + l.id, Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}}}}
	t.Cleanup(l.cleanup)
	return l
}

func (l *lab) cleanup() {
	_, _ = l.call("delete", "--force", l.id) // as a rule it is gone
	l.nothingLeft()
	layout, err := cgroups.Detect()
	if err != nil {
		l.t.Fatal(err)
	}
	if g, err := layout.Place("/escale-native-test", ""); err == nil {
		for _, d := range g.Dirs() {
			_ = os.Remove(d) // another test's may be in it
		}
	}
	if err := os.RemoveAll(l.bundle); err != nil {
		l.t.Error(err)
	}
}

// nothingLeft looks for what containers leave: states, cgroups, mounts.
func (l *lab) nothingLeft() {
	l.t.Helper()
	if entries, err := os.ReadDir(l.states); err == nil && len(entries) > 0 {
		l.t.Errorf("left over: states %v", entries)
	}
	layout, err := cgroups.Detect()
	if err != nil {
		l.t.Fatal(err)
	}
	g, err := layout.Place(l.spec.Linux.CgroupsPath, l.id)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, d := range g.Dirs() {
		if exists(d) {
			l.t.Errorf("left over: %s", d)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(l.bundle)) {
		l.t.Errorf("left over: mounts below %s, %v", l.bundle, err)
	}
}

func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", l.states}, args...)...)
	cmd.Env = append(os.Environ(), asRuntime+"=1")
	cmd.Dir = l.bundle
	return cmd
}

func (l *lab) call(args ...string) (string, error) {
	out, err := l.command(args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.call(args...)
	if err != nil {
		l.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return out
}

func (l *lab) write() {
	l.t.Helper()
	b, err := json.Marshal(l.spec)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.bundle, "config.json"), b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// run runs the container to its end and gives what it printed.
func (l *lab) run() string {
	l.t.Helper()
	l.write()
	return l.must("run", l.id)
}

func (l *lab) state() record.Told {
	l.t.Helper()
	var s record.Told
	if err := json.Unmarshal([]byte(l.must("state", l.id)), &s); err != nil {
		l.t.Fatal(err)
	}
	return s
}

// detached has a runtime leave a container, with files for its streams.
func (l *lab) detached(args ...string) {
	l.t.Helper()
	l.write()
	cmd := l.command(args...)
	out, err := os.Create(filepath.Join(l.bundle, "out"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		l.t.Fatalf("%v: %v: %s", args, err, said)
	}
}

func (l *lab) await(status specs.ContainerState) {
	l.t.Helper()
	for range 500 {
		if l.state().Status == status {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("status %s, want %s", l.state().Status, status)
}

// The life of a container as the specification tells it (runtime.md, "Lifecycle").
func TestLife(t *testing.T) {
	l := newLab(t, "echo started; exec sleep 1000")
	l.detached("create", "--pid-file", "pid", l.id)
	if s := l.state(); s.Status != specs.StateCreated || s.Pid == 0 || s.Bundle != l.bundle {
		t.Errorf("created: %+v", s)
	}
	if out, err := l.call("create", l.id); err == nil || !strings.Contains(out, "already exists") {
		t.Errorf("created twice: %v: %s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(l.bundle, "pid")); err != nil || string(b) != strconv.Itoa(l.state().Pid) {
		t.Errorf("pid file %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(l.bundle, "out")); err != nil || len(b) != 0 {
		t.Errorf("before the start: %q, %v", b, err)
	}
	l.must("start", l.id)
	l.await(specs.StateRunning)
	if out, err := l.call("start", l.id); err == nil || !strings.Contains(out, "already running") {
		t.Errorf("started twice: %v: %s", err, out)
	}
	// It is told to be running a moment before it is its program: until then nobody may look at it.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(filepath.Join(l.bundle, "out")); err == nil && string(b) == "started\n" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("after the start: %q, %v", b, err)
		}
	}
	if out := l.must("exec", l.id, "sh", "-c", "echo $$ >/tmp/x; ls /proc/1/exe && id -u; exit 0"); !strings.HasSuffix(out, "0") {
		t.Errorf("exec: %s", out)
	}
	if out, err := l.call("exec", l.id, "sh", "-c", "exit 7"); exitCode(err) != 7 {
		t.Errorf("exit of an exec: %v: %s", err, out)
	}
	l.must("pause", l.id)
	if s := l.state(); s.Status != "paused" {
		t.Errorf("paused: %+v", s)
	}
	if out, err := l.call("exec", l.id, "true"); err == nil || !strings.Contains(out, "paused") {
		t.Errorf("exec in a paused one: %v: %s", err, out)
	}
	l.must("resume", l.id)
	var pids []int
	if err := json.Unmarshal([]byte(l.must("ps", "--format", "json", l.id)), &pids); err != nil || len(pids) != 1 || pids[0] != l.state().Pid {
		t.Errorf("ps %v, %v", pids, err)
	}
	if out, err := l.call("delete", l.id); err == nil || !strings.Contains(out, "not stopped") {
		t.Errorf("deleted while it runs: %v: %s", err, out)
	}
	l.must("kill", l.id, "KILL")
	l.await(specs.StateStopped)
	if out, err := l.call("kill", l.id, "TERM"); err == nil || !strings.Contains(out, "not running") {
		t.Errorf("killed twice: %v: %s", err, out)
	}
	l.must("delete", l.id)
	if out, err := l.call("state", l.id); err == nil || !strings.Contains(out, "does not exist") {
		t.Errorf("state of none: %v: %s", err, out)
	}
	l.nothingLeft()
}

func exitCode(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

// Two that start at once: one does.
func TestStartOnce(t *testing.T) {
	l := newLab(t, "echo once; exec sleep 1000")
	l.detached("create", l.id)
	done := make(chan error)
	for range 4 {
		go func() { _, err := l.call("start", l.id); done <- err }()
	}
	started := 0
	for range 4 {
		if <-done == nil {
			started++
		}
	}
	if started != 1 {
		t.Errorf("%d have started it", started)
	}
}

// Hooks run in their order, each where it belongs.
func TestHooks(t *testing.T) {
	l := newLab(t, "echo process >>/log")
	log := filepath.Join(l.bundle, "root/log")
	host := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf("read state; echo %s $WHO >>%s; case $state in *%s*) ;; *) exit 1;; esac", name, log, l.id)}, Env: []string{"WHO=me"}}}
	}
	l.spec.Hooks = &specs.Hooks{CreateRuntime: host("createRuntime"), CreateContainer: host("createContainer"), Poststart: host("poststart"), Poststop: host("poststop"),
		StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo startContainer >>/log"}}}}
	l.detached("create", l.id)
	l.must("start", l.id)
	l.await(specs.StateStopped)
	l.must("delete", l.id)
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(strings.ReplaceAll(string(b), " me", ""))
	if got := strings.Join(lines, " "); got != "createRuntime createContainer startContainer process poststart poststop" && got != "createRuntime createContainer poststart startContainer process poststop" &&
		got != "createRuntime createContainer startContainer poststart process poststop" {
		t.Errorf("order: %s", got)
	}
	// One that fails undoes the container, and poststop's are run.
	l.spec.Hooks.CreateRuntime = append(l.spec.Hooks.CreateRuntime, specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo no good >&2; exit 3"}})
	l.write()
	out, err := l.call("run", l.id)
	if err == nil || !strings.Contains(out, "error running createRuntime hook #1") || !strings.Contains(out, "no good") {
		t.Errorf("%v: %s", err, out)
	}
	l.nothingLeft()
	second := 1
	l.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &second}}}
	l.write()
	if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, "hook ran past specified timeout of 1.0s") {
		t.Errorf("%v: %s", err, out)
	}
}

func withUsers(l *lab) {
	l.spec.Linux.Namespaces = append(l.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	l.spec.Linux.UIDMappings, l.spec.Linux.GIDMappings = maps, maps
}

// A container in a user namespace of its own, and an exec that joins it.
func TestUserNamespace(t *testing.T) {
	l := newLab(t, "cat /proc/self/uid_map; exec sleep 1000")
	withUsers(l)
	l.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}, Effective: []string{"CAP_CHOWN"}, Permitted: []string{"CAP_CHOWN"}}
	l.spec.Linux.Namespaces = append(l.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	l.detached("run", "-d", l.id)
	inside := l.must("exec", l.id, "sh", "-c", "id -u; readlink /proc/self/ns/user; while read k v; do case $k in CapEff:|NoNewPrivs:) echo $k $v;; esac; done </proc/self/status; touch /dev/x && stat -c %u /dev/x")
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", l.state().Pid))
	if err != nil {
		t.Fatal(err)
	}
	if want := "0\n" + own + "\nCapEff: 0000000000000001\nNoNewPrivs: 0\n0"; inside != want {
		t.Errorf("got %s\nwant %s", inside, want)
	}
	if host, err := os.Readlink("/proc/self/ns/user"); err != nil || host == own {
		t.Errorf("it is the host's: %s, %v", host, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", l.state().Pid), &st); err != nil {
		t.Error(err)
	}
	l.must("delete", "--force", l.id)
	l.nothingLeft()
}

// A bind that shows other owners than there are.
func TestIDMappedMount(t *testing.T) {
	l := newLab(t, "stat -c %u:%g /data/f; stat -c %u /data; touch /data/new")
	data := filepath.Join(l.bundle, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(data, "f"), 1000, 1001); err != nil {
		t.Fatal(err)
	}
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 2000}}
	l.spec.Process.User = specs.User{UID: 5000, GID: 5000}
	l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: data, Options: []string{"bind", "rw"}, UIDMappings: maps, GIDMappings: maps})
	if got := l.run(); got != "6000:6001\n5000" {
		t.Errorf("owners %s", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(data, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("on disk: %d, %v", st.Uid, err)
	}
}

// The namespaces of another are joined, its user namespace first of all.
func TestJoinNamespaces(t *testing.T) {
	for name, users := range map[string]bool{"plain": false, "with users": true} {
		t.Run(name, func(t *testing.T) {
			a := newLab(t, "exec sleep 1000")
			if users {
				withUsers(a)
			}
			a.detached("run", "-d", a.id)
			pid := a.state().Pid
			b := newLab(t, "for n in ipc net uts user; do readlink /proc/self/ns/$n; done; echo $$")
			b.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}
			want := ""
			for _, n := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.UserNamespace} {
				file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}[n]
				if file == "" {
					file = string(n)
				}
				path := fmt.Sprintf("/proc/%d/ns/%s", pid, file)
				link, err := os.Readlink(path)
				if err != nil {
					t.Fatal(err)
				}
				want += link + "\n"
				if n != specs.UserNamespace || users {
					b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: n, Path: path})
				}
			}
			if got := b.run(); got != want+"1" {
				t.Errorf("got %s\nwant %s1", got, want)
			}
		})
	}
}

// A container that shares every namespace: its root is by chroot, an exec has its root
// and its cgroups all the same.
func TestNoNamespaces(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.spec.Linux.Namespaces, l.spec.Mounts = nil, l.spec.Mounts[:1]
	l.detached("run", "-d", l.id)
	if got := l.must("exec", l.id, "sh", "-c", "ls /bin/busybox; while IFS=: read n c p; do case $c in memory|'') echo $p;; esac; done </proc/self/cgroup"); got != "/bin/busybox\n"+strings.Repeat(l.spec.Linux.CgroupsPath+"\n", strings.Count(got, "\n")-1)+l.spec.Linux.CgroupsPath {
		t.Errorf("got %s", got)
	}
	l.must("delete", "--force", l.id)
	l.nothingLeft()
}

// Whatever the moment at which the runtime is killed, delete --force leaves nothing.
func TestKilled(t *testing.T) {
	for delay := time.Duration(0); delay < 24*time.Millisecond; delay += 1500 * time.Microsecond {
		l := newLab(t, "exec sleep 1000")
		l.write()
		cmd := l.command("run", "-d", l.id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed, or not
		l.must("delete", "--force", l.id)
		l.nothingLeft()
	}
}

// What cannot be done is refused, and leaves nothing.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*specs.Spec)
		words  string
	}{
		"no process":         {func(s *specs.Spec) { s.Process = nil }, "process property must not be empty"},
		"no root":            {func(s *specs.Spec) { s.Root = nil }, "root property must not be empty"},
		"relative cwd":       {func(s *specs.Spec) { s.Process.Cwd = "tmp" }, "Cwd must be an absolute path"},
		"two of a namespace": {func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) }, "duplicated ns"},
		"the host's network": {func(s *specs.Spec) {
			s.Linux.Namespaces[4].Path, s.Linux.Sysctl = "/proc/self/ns/net", map[string]string{"net.core.somaxconn": "1"}
		}, "not allowed in host network namespace"},
		"another's sysctl":    {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }, "is not in a separate kernel namespace"},
		"slashed sysctl":      {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel/panic": "1"} }, "is not in a separate kernel namespace"},
		"sysctl leads out":    {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.//////kernel.panic": "1"} }, "sysctl"},
		"proc from elsewhere": {func(s *specs.Spec) { s.Mounts[0] = specs.Mount{Destination: "/proc", Type: "tmpfs", Source: "x"} }, "is not of type proc"},
		"mount in proc": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/sys", Type: "tmpfs", Source: "x"})
		}, "cannot be mounted because it is inside /proc"},
		"cwd of the host": {func(s *specs.Spec) { s.Process.Cwd = "/proc/self/fd/3" }, "too many levels of symbolic links"},
		"no such program": {func(s *specs.Spec) { s.Process.Args[0] = "nosuch" }, "executable file not found in $PATH"},
		"no such source": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/nosuch"})
		}, "no such file or directory"},
		"cgroup leads up": {func(s *specs.Spec) { s.Linux.CgroupsPath = "/x/../.." }, "leads upwards"},
		"listener": {func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify, ListenerPath: "/x"}
		}, "seccomp"},
		"unknown rlimit":    {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, "RLIMIT_X"},
		"terminal, no one":  {func(s *specs.Spec) { s.Process.Terminal = true }, "console socket"},
		"unknown file type": {func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nosuchfs"}) }, "no such device"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "true")
			c.change(l.spec)
			l.write()
			out, err := l.call("run", l.id)
			if err == nil || !strings.Contains(out, c.words) {
				t.Errorf("%v: %s, want %s", err, out, c.words)
			}
			if l.spec.Linux.CgroupsPath = "/escale-native-test/" + l.id; !strings.Contains(out, "\n") {
				l.nothingLeft()
			}
		})
	}
}

// Links of the image that lead nowhere: what they mean is made, inside the root.
func TestDanglingLinks(t *testing.T) {
	l := newLab(t, "cat /not/there/dir/f /made/file; ls /up")
	root := filepath.Join(l.bundle, "root")
	for name, to := range map[string]string{"data": "/not/there", "file": "made/file", "out": "../../../../up", "loop": "/loop2", "loop2": "loop"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(l.bundle, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "f"), []byte("seen\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind := func(from, to string) specs.Mount {
		return specs.Mount{Destination: to, Type: "bind", Source: from, Options: []string{"bind", "ro"}}
	}
	l.spec.Mounts = append(l.spec.Mounts, bind(source, "/data/dir"), bind(filepath.Join(source, "f"), "/file"), bind(source, "/out"))
	if got := l.run(); got != "seen\nseen\nf" {
		t.Errorf("inside: %s", got)
	}
	if exists("/up") || exists("/not") {
		t.Error("it was made outside")
	}
	l.spec.Mounts = append(l.spec.Mounts, bind(source, "/loop"))
	l.write()
	if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, "too many levels of symbolic links") {
		t.Errorf("a loop: %v: %s", err, out)
	}
}

// Our program stays as it is whatever a container does with what it sees of it.
func TestProgramIsSealed(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	if err := os.Symlink("/proc/self/exe", filepath.Join(l.bundle, "root/bin/self")); err != nil {
		t.Fatal(err)
	}
	l.detached("run", "-d", l.id)
	if out, err := l.call("exec", "--env", asRuntime+"=1", l.id, "/bin/self", "--version"); err != nil || !strings.Contains(out, "escale-runtime version") {
		t.Errorf("control: what is at /proc/self/exe before the program is another: %v: %s", err, out)
	}
	fd, err := program(0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_CLOEXEC, 0); err != unix.EROFS && err != unix.ETXTBSY {
		t.Errorf("it can be opened for writing: %d, %v", w, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("flags %x, %v", st.Flags, err)
	}
}
