package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// lab runs bundles with the OCI runtime.
type lab struct {
	runc, state, parent string
	root                string // a container's tree from busybox
	builder             *Builder
	host                Host
}

// labs runs a test with each of the runtimes.
func labs(t *testing.T, test func(*testing.T, *lab)) {
	for _, name := range []string{"runc", "escale-runtime"} {
		t.Run(name, func(t *testing.T) { test(t, newLab(t, name)) })
	}
}

func newLab(t *testing.T, name string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs containers")
	}
	runc, err := filepath.Abs("../../../bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(runc); err != nil {
		if runc, err = exec.LookPath(name); err != nil {
			t.Skipf("needs %s: make build makes it in bin", name)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox (Debian: busybox-static): ", err)
	}
	l := &lab{runc: runc, state: t.TempDir(), root: t.TempDir(), parent: fmt.Sprintf("/escale-oci-test-%d", os.Getpid())}
	if l.host, err = DetectHost(); err != nil {
		t.Fatal(err)
	}
	l.builder = New(l.host)
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root"} {
		if err := os.Mkdir(filepath.Join(l.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"bin/busybox": string(busybox), "etc/passwd": testPasswd, "etc/group": testGroup} {
		if err := os.WriteFile(filepath.Join(l.root, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range strings.Fields("sh cat grep id ls mount umount stat sleep mkdir touch hostname chmod df env ps sort head") {
		if err := os.Symlink("busybox", filepath.Join(l.root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, dir := range l.host.Cgroup.Dirs(l.parent) {
			if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
				t.Errorf("left over: %s: %v", dir, err)
			}
		}
	})
	return l
}

func (l *lab) options(script string) Options {
	id := fmt.Sprintf("escale-oci-%d-%d", os.Getpid(), time.Now().UnixNano())
	return Options{
		ID: id, Rootfs: l.root, Path: "/bin/sh", Args: []string{"-c", script},
		Config:      &container.Config{Hostname: "box"},
		HostConfig:  &container.HostConfig{NetworkMode: "none"},
		CgroupsPath: CgroupsPath(l.parent, id, ""),
	}
}

// bundle writes a bundle and undoes all of it.
func (l *lab) bundle(t *testing.T, o Options) string {
	t.Helper()
	if w, err := l.builder.Validate(o.HostConfig, o.Config); err != nil {
		t.Fatalf("%q, %v", w, err)
	}
	l.builder.Complete(o.HostConfig)
	spec, _, err := l.builder.Spec(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command(l.runc, "--root", l.state, "delete", "-f", o.ID).Run()
		for _, d := range l.host.Cgroup.Dirs(o.CgroupsPath) {
			if _, err := os.Stat(d); err == nil {
				t.Errorf("left over: %s", d)
			}
		}
	})
	return dir
}

func (l *lab) run(t *testing.T, o Options) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), l.runc, "--root", l.state, "run", "-b", l.bundle(t, o), o.ID)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// TestRunc looks at containers from the inside.
func TestRunc(t *testing.T) { labs(t, inSight) }

func inSight(t *testing.T, l *lab) {
	bounding := uint64(0)
	names := map[string]bool{}
	for _, c := range l.host.Capabilities {
		names[c] = true
	}
	for _, c := range defaultCapabilities {
		if names[c] {
			bounding |= 1 << map[string]int{"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8,
				"CAP_NET_BIND_SERVICE": 10, "CAP_NET_RAW": 13, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27, "CAP_AUDIT_WRITE": 29, "CAP_SETFCAP": 31}[c]
		}
	}
	const status = `grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status`
	shared := t.TempDir()
	if err := os.MkdirAll(shared+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		script string
		change func(*Options)
		want   string
	}{
		"capabilities and seccomp": {status, nil,
			fmt.Sprintf("CapEff:\t%016x\nCapBnd:\t%016x\nNoNewPrivs:\t0\nSeccomp:\t2", bounding, bounding)},
		"not root": {status + `; id -u; id -G; echo $HOME; pwd; echo x 2>/dev/null >/root/x || echo denied`, func(o *Options) {
			o.Config.User, o.Config.WorkingDir = "bob", "/new/dir"
			o.HostConfig.GroupAdd = []string{"4711"}
			o.HostConfig.SecurityOpt = []string{"no-new-privileges"}
		}, fmt.Sprintf("CapEff:\t%016x\nCapBnd:\t%016x\nNoNewPrivs:\t1\nSeccomp:\t2\n1000\n100 29 44 4711\n/home/bob\n/new/dir\ndenied", 0, bounding)},
		"unconfined": {`grep ^Seccomp: /proc/self/status`, func(o *Options) { o.HostConfig.SecurityOpt = []string{"seccomp=unconfined"} }, "Seccomp:\t0"},
		"own profile": {`chmod 700 /tmp 2>&1; echo $?`, func(o *Options) {
			o.HostConfig.SecurityOpt = []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}]}`}
		}, "chmod: /tmp: Operation not permitted\n1"},
		"masks":      {`cat /proc/interrupts; ls /sys/firmware; echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo ro; touch /sys/x 2>/dev/null || echo ro`, nil, "ro\nro"},
		"privileged": {`mkdir -p /mnt && mount -t tmpfs none /mnt && umount /mnt && echo mounted; echo box2 >/proc/sys/kernel/domainname && cat /proc/sys/kernel/domainname; ls /dev/kmsg; grep ^Seccomp: /proc/self/status`, func(o *Options) { o.HostConfig.Privileged = true }, "mounted\nbox2\n/dev/kmsg\nSeccomp:\t0"},
		"read-only": {`touch /x 2>/dev/null || echo ro; touch /tmp/x && echo rw; touch /dev/shm/x && echo rw`, func(o *Options) {
			o.HostConfig.ReadonlyRootfs = true
			o.HostConfig.Tmpfs = map[string]string{"/tmp": "size=1m"}
		}, "ro\nrw\nrw"},
		"binds": {`touch /v/a && echo rw; touch /v/sub/b 2>/dev/null || echo ro; ls /v/sub`, func(o *Options) {
			o.Mounts = []Mount{{Type: Bind, Source: shared, Destination: "/v/sub", ReadOnly: true}, {Type: Bind, Source: shared, Destination: "/v"}}
		}, "rw\nro\na\nsub"},
		"shm":    {`df -k /dev/shm | grep -o '2048 ' | head -n 1`, func(o *Options) { o.HostConfig.ShmSize = 2 << 20 }, "2048"},
		"no shm": {`touch /dev/shm/x 2>/dev/null || echo none`, func(o *Options) { o.HostConfig.IpcMode = "none" }, "none"},
		"ulimits": {`ulimit -n; ulimit -Hn`, func(o *Options) {
			o.DefaultUlimits = map[string]*units.Ulimit{"nofile": {Name: "nofile", Soft: 77, Hard: 99}}
		}, "77\n99"},
		"beyond the engine's limits": {`ulimit -c`, func(o *Options) {
			o.HostConfig.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: -1, Hard: -1}, {Name: "core", Soft: 0, Hard: 0}}
			o.HostConfig.OomScoreAdj = -1000
		}, "0"},
		"environment": {`env | grep -vE '^(SHLVL|PWD|HOME)=' | sort; hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax /proc/self/oom_score_adj; umask`, func(o *Options) {
			o.Config.Env = []string{"A=b"}
			o.Config.Domainname = "example.org"
			o.HostConfig.Sysctls = map[string]string{"kernel.msgmax": "4096"}
			o.HostConfig.OomScoreAdj = 500
			o.HostConfig.Umask = ptr[uint32](0o27)
		}, "A=b\nHOSTNAME=box\nPATH=" + defaultPath + "\nbox\nexample.org\n0\n4096\n500\n0027"},
		"devices": {`ls -l /dev/nil | grep -o '1, *3'; cat /dev/nil && echo read; echo x 2>/dev/null >/dev/nil || echo denied`, func(o *Options) {
			o.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nil", CgroupPermissions: "rwm"}}
			o.HostConfig.CapDrop = []string{"MKNOD"}
		}, "1,   3\nread"},
		"host namespaces": {`hostname; ls /proc/` + fmt.Sprint(os.Getpid()) + `/comm >/dev/null && echo sees`, func(o *Options) { o.HostConfig.PidMode, o.HostConfig.UTSMode = "host", "host" }, hostname(t) + "\nsees"},
	} {
		t.Run(name, func(t *testing.T) {
			o := l.options(c.script)
			if c.change != nil {
				c.change(&o)
			}
			got, err := l.run(t, o)
			if got != c.want {
				t.Errorf("got (%v):\n%s\nwant:\n%s", err, got, c.want)
			}
		})
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	h, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Tescgroup reads the limits of a running container in the kernel, and
// runs execs in it.
func TestRuncCgroup(t *testing.T) { labs(t, inCgroup) }

func inCgroup(t *testing.T, l *lab) {
	o := l.options("sleep 60")
	o.HostConfig.Memory, o.HostConfig.PidsLimit = 64<<20, ptr[int64](77)
	o.HostConfig.NanoCPUs, o.HostConfig.CPUShares, o.HostConfig.CpusetCpus = 5e8, 512, "0"
	dir := l.bundle(t, o)
	runc := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), l.runc, append([]string{"--root", l.state}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("runc %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	detached := exec.CommandContext(t.Context(), l.runc, "--root", l.state, "run", "-d", "-b", dir, o.ID)
	if err := detached.Run(); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{
		"1": {"memory/memory.limit_in_bytes": "67108864", "pids/pids.max": "77", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.shares": "512", "cpuset/cpuset.cpus": "0"},
		"2": {"memory/memory.max": "67108864", "pids/pids.max": "77", "cpu/cpu.max": "50000 100000", "cpuset/cpuset.cpus": "0"},
	}[l.host.Cgroup.Version()]
	if l.host.Cgroup.Features.SwapLimit && l.host.Cgroup.Version() == "1" {
		want["memory/memory.memsw.limit_in_bytes"] = "134217728"
	}
	for file, value := range want {
		controller, name, _ := strings.Cut(file, "/")
		path, ok := l.host.Cgroup.Dir(controller, o.CgroupsPath)
		if !ok {
			t.Logf("no controller %s here", controller)
			continue
		}
		got, err := os.ReadFile(filepath.Join(path, name))
		if err != nil || strings.TrimSpace(string(got)) != value {
			t.Errorf("%s: %q, %v; want %s", file, got, err, value)
		}
	}

	spec, _, err := l.builder.Spec(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	do := func(e ExecOptions) string {
		t.Helper()
		e.Config, e.HostConfig = o.Config, o.HostConfig
		p, err := l.builder.Process(spec, l.root, e)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "process.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return runc("exec", "--process", file, o.ID)
	}
	sh := func(s string) []string { return []string{"/bin/sh", "-c", s} }
	if got := do(ExecOptions{Args: sh("id -u; id -G; echo $HOME $A; pwd; grep ^CapEff /proc/self/status"), User: "bob", Env: []string{"A=1"}, WorkingDir: "/tmp"}); got != "1000\n100 29 44\n/home/bob 1\n/tmp\nCapEff:\t0000000000000000" {
		t.Errorf("exec as a user: %s", got)
	}
	if got := do(ExecOptions{Args: sh("grep ^CapEff /proc/self/status"), Privileged: true}); got == do(ExecOptions{Args: sh("grep ^CapEff /proc/self/status")}) {
		t.Errorf("a privileged exec has no more than another: %s", got)
	}
}

// TeswithInit: with an init, the command is not the first process.
func TestRuncInit(t *testing.T) { labs(t, withInit) }

func withInit(t *testing.T, l *lab) {
	path, err := LookupInit("")
	if err != nil {
		t.Skip("needs an init (Debian: tini): ", err)
	}
	o := l.options("cat /proc/1/comm; exit 7")
	o.HostConfig.Init, o.InitPath = ptr(true), path
	got, err := l.run(t, o)
	if exit, ok := err.(*exec.ExitError); got != "docker-init" || !ok || exit.ExitCode() != 7 {
		t.Errorf("%s, %v", got, err)
	}
}

// TesunknownSystemCall: a C library has to learn that a call newer than
// the profile does not exist, not that it is forbidden.
func TestRuncUnknownSystemCall(t *testing.T) { labs(t, unknownCall) }

func unknownCall(t *testing.T, l *lab) {
	src := filepath.Join(t.TempDir(), "probe.go")
	if err := os.WriteFile(src, []byte(`package main

import "syscall"

func main() {
	for _, nr := range []uintptr{9999, syscall.SYS_ACCT, syscall.SYS_GETPID} {
		_, _, errno := syscall.RawSyscall(nr, 0, 0, 0)
		println(int(errno))
	}
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(l.root, "bin", "probe"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("needs the go command: %v: %s", err, out)
	}
	got, err := l.run(t, l.options("/bin/probe 2>&1"))
	if want := fmt.Sprintf("%d\n%d\n0", unix.ENOSYS, unix.EPERM); err != nil || got != want {
		t.Errorf("%v: %s, want %s", err, got, want)
	}
}
