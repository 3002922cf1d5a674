package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// secret stands in a file of the host that no container is given. Its appearing in a
// container's output is an escape.
const secret = "canary-of-the-host"

// rig is one runtime with a bundle that a test makes hostile, and with something on the
// host that no container may reach: a directory with a secret.
type rig struct {
	program
	t      *testing.T
	bundle string
	rootfs string
	canary string // the directory on the host
	state  string
	before string // what the canary looked like
	spec   *specs.Spec
	id     string
	stdout string // of the last call
	// inherited are files of whoever calls the runtime, at 3 and on; stdin is its input.
	inherited []*os.File
	stdin     *os.File
	original  string // the program, where path is a copy that may come to harm
}

var rigs atomic.Int64

// each runs a test on every runtime, with a rig each; several at a time.
func each(t *testing.T, attack func(t *testing.T, r *rig)) {
	t.Helper()
	alone(t, func(t *testing.T, r *rig) {
		t.Parallel()
		attack(t, r)
	})
}

// alone is each for attacks on what the host has one of: one runtime after the other.
func alone(t *testing.T, attack func(t *testing.T, r *rig)) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox (Debian: busybox-static): ", err)
	}
	for _, p := range programs(t) {
		t.Run(p.name, func(t *testing.T) {
			attack(t, newRig(t, p, busybox))
		})
	}
}

func newRig(t *testing.T, p program, busybox []byte) *rig {
	t.Helper()
	dir := open(t)
	r := &rig{
		program: p, original: p.path, t: t, bundle: filepath.Join(dir, "bundle"), canary: filepath.Join(dir, "canary"), state: filepath.Join(dir, "state"),
		id: fmt.Sprintf("escale-oci-%d-%d", os.Getpid(), rigs.Add(1)),
	}
	r.rootfs = filepath.Join(r.bundle, "rootfs")
	r.mkdir(".")
	r.file("busybox", string(busybox), 0o755)
	if err := errors.Join(os.Mkdir(r.state, 0o700), os.Mkdir(r.canary, 0o755), os.WriteFile(filepath.Join(r.canary, "secret"), []byte(secret+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	r.fresh()
	r.before = r.look()
	t.Cleanup(r.end)
	return r
}

// fresh makes image and specification anew: an attack leaves traces in both.
func (r *rig) fresh() {
	r.t.Helper()
	if err := os.RemoveAll(r.rootfs); err != nil {
		r.t.Fatal(err)
	}
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		r.mkdir("rootfs/" + d)
	}
	if err := os.Link(filepath.Join(r.bundle, "busybox"), filepath.Join(r.rootfs, "bin/busybox")); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat grep id ls mount umount stat sleep mkdir rmdir touch chmod kill readlink true echo head wc") {
		r.symlink("busybox", "rootfs/bin/"+name)
	}
	r.spec = defaultSpec(r.id)
}

// defaultSpec is a container much as Docker's are.
func defaultSpec(id string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	dev := []string{"nosuid", "noexec"}
	return &specs.Spec{
		Version: "1.2.0", Hostname: "box", Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: append(dev, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(dev, "nodev", "mode=1777", "size=65536k")},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: append(dev, "nodev")},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(dev, "nodev", "ro")},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(dev, "nodev", "relatime", "ro")},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/escale-oci-test/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func (r *rig) mkdir(name string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Join(r.bundle, name), 0o755); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) file(name, content string, mode os.FileMode) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.bundle, name), []byte(content), mode); err != nil {
		r.t.Fatal(err)
	}
}

// symlink puts a link into the bundle, in place of what was there.
func (r *rig) symlink(target, name string) {
	r.t.Helper()
	path := filepath.Join(r.bundle, name)
	if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
		r.t.Fatal(err)
	}
}

// without removes the mount at a place, not those below.
func (r *rig) without(destination string) {
	r.spec.Mounts = slices.DeleteFunc(r.spec.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
}

// instead puts another mount in the place of one.
func (r *rig) instead(destination string, mount specs.Mount) {
	i := slices.IndexFunc(r.spec.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
	r.spec.Mounts[i] = mount
}

// may gives the container capabilities beside those it has.
func (r *rig) may(capabilities ...string) {
	c := r.spec.Process.Capabilities
	c.Bounding, c.Effective, c.Permitted = append(c.Bounding, capabilities...), append(c.Effective, capabilities...), append(c.Permitted, capabilities...)
}

// config writes config.json.
func (r *rig) config() {
	r.t.Helper()
	b, err := json.Marshal(r.spec)
	if err != nil {
		r.t.Fatal(err)
	}
	r.file("config.json", string(b), 0o600)
}

// outcome is how a call of the runtime ended.
type outcome struct {
	output string // both streams, and the runtime's log
	err    error
}

// call runs the runtime, at most for a minute. What a container that goes on says is
// said reads later.
func (r *rig) call(args ...string) outcome {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n := rigs.Add(1)
	log := filepath.Join(r.bundle, fmt.Sprintf("log-%d", n))
	// A file: nobody has to wait until all writers are gone.
	out, err := os.Create(filepath.Join(r.bundle, fmt.Sprintf("out-%d", n)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	r.stdout = out.Name()
	cmd := exec.CommandContext(ctx, r.path, append([]string{"--root", r.state, "--log", log}, args...)...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, r.inherited
	if r.stdin != nil {
		cmd.Stdin = r.stdin
	}
	err = cmd.Run()
	said, logged := r.said(), ""
	if b, err := os.ReadFile(log); err == nil {
		logged = string(b)
	}
	if ctx.Err() != nil {
		r.t.Errorf("%s %s: still busy after a minute: %s%s", r.name, args, said, logged)
	}
	return outcome{said + logged, err}
}

// said is what the last call, and a container that it started, wrote until now.
func (r *rig) said() string {
	b, _ := os.ReadFile(r.stdout)
	return string(b)
}

// execute runs a process in the running container.
func (r *rig) execute(change func(*specs.Process), args ...string) outcome {
	r.t.Helper()
	p := *r.spec.Process
	caps := *p.Capabilities
	p.Capabilities, p.Args, p.Env = &caps, args, []string{"PATH=/bin"}
	if change != nil {
		change(&p)
	}
	b, err := json.Marshal(p)
	if err != nil {
		r.t.Fatal(err)
	}
	name := fmt.Sprintf("process-%d.json", rigs.Add(1))
	r.file(name, string(b), 0o600)
	return r.call("exec", "--process", filepath.Join(r.bundle, name), r.id)
}

// run runs a script in a new container, to its end.
func (r *rig) run(script string) outcome {
	r.t.Helper()
	if script != "" {
		r.spec.Process.Args = []string{"/bin/sh", "-c", script}
	}
	r.config()
	o := r.call("run", "--bundle", r.bundle, r.id)
	r.call("delete", "--force", r.id)
	return o
}

// start leaves a container running.
func (r *rig) start(args ...string) {
	r.t.Helper()
	r.spec.Process.Args = args
	r.config()
	if o := r.call("run", "--detach", "--bundle", r.bundle, r.id); o.err != nil {
		r.t.Fatal(o.err, o.output)
	}
}

// pid is that of the container's process.
func (r *rig) pid() int {
	r.t.Helper()
	var state specs.State
	if err := json.Unmarshal([]byte(r.must(r.call("state", r.id))), &state); err != nil {
		r.t.Fatal(err)
	}
	return state.Pid
}

// me puts this test's program into the image, to play a part there.
func (r *rig) me(name string) {
	r.t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		r.t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		r.t.Fatal(err)
	}
	if libs, _ := f.ImportedLibraries(); len(libs) > 0 {
		r.t.Skip("needs a static test program: CGO_ENABLED=0")
	}
	r.file("rootfs/"+name, string(b), 0o755)
}

// must is run for a control or an attack that begins with an ordinary container.
func (r *rig) must(o outcome) string {
	r.t.Helper()
	if o.err != nil {
		r.t.Fatalf("%v: %s", o.err, o.output)
	}
	return o.output
}

// look describes the canary: names, kinds, modes, contents.
func (r *rig) look() string {
	var b strings.Builder
	_ = filepath.WalkDir(r.canary, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintln(&b, path, err)
			return nil
		}
		info, _ := d.Info()
		content, _ := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %v %x\n", path, info.Mode(), sha256.Sum256(content))
		return nil
	})
	return b.String()
}

// safe checks that nothing came out: the canary is as it was, its secret is not in the
// output, and nothing is mounted on the host that was not.
func (r *rig) safe(o outcome) {
	r.t.Helper()
	if now := r.look(); now != r.before {
		r.t.Errorf("escape: the host's directory was changed:\n%s\nbefore:\n%s\n%v %s", now, r.before, o.err, o.output)
	}
	if strings.Contains(o.output, secret) {
		r.t.Errorf("escape: a file of the host was read: %s", o.output)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	if strings.Contains(string(mounts), filepath.Dir(r.bundle)) {
		r.t.Errorf("escape: mounted on the host:\n%s", mounts)
	}
}

// end removes what is left, and says so if there is something that deleting did not take.
func (r *rig) end() {
	r.path = r.original
	r.call("delete", "--force", r.id)
	if left, _ := os.ReadDir(r.state); len(left) > 0 {
		r.t.Errorf("left over: %v", left)
	}
	for _, pattern := range []string{"escale-oci-test/", "*/escale-oci-test/"} {
		dirs, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern+r.id))
		for _, dir := range dirs {
			r.t.Errorf("left over: %s", dir)
			_ = unix.Rmdir(dir)
		}
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/escale-oci-test")
	for _, dir := range append(parents, "/sys/fs/cgroup/escale-oci-test") {
		_ = unix.Rmdir(dir) // fails while another test has something in it
	}
}
