package native

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container with clocks of its own, and an exec that sees the same.
func TestTimeOffsets(t *testing.T) {
	const ahead = 1_000_000 // s
	if !exists("/proc/self/ns/time") {
		t.Skip("no time namespaces here")
	}
	l := newLab(t, "exec sleep 1000")
	l.spec.Linux.Namespaces = append(l.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	l.spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: ahead, Nanosecs: 5}, "monotonic": {Secs: ahead}}
	l.detached("run", "-d", l.id)
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := strconv.ParseFloat(strings.Fields(string(up))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := strconv.ParseFloat(strings.Fields(l.must("exec", l.id, "cat", "/proc/uptime"))[0], 64)
	if ahead := theirs - ours; err != nil || ahead < 1_000_000 || ahead > 1_000_100 {
		t.Errorf("ahead by %f s, %v", ahead, err)
	}
	own, err := os.ReadFile("/proc/" + strconv.Itoa(l.state().Pid) + "/timens_offsets")
	if got := strings.Join(strings.Fields(string(own)), " "); err != nil || got != "monotonic 1000000 0 boottime 1000000 5" {
		t.Errorf("offsets %s, %v", got, err)
	}
	l.spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
	l.must("delete", "--force", l.id)
	l.write()
	if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, "time namespace: offsets") {
		t.Errorf("a clock that has none: %v: %s", err, out)
	}
	l.nothingLeft()
}

// How a process gets processors, disks and memory, asked of the kernel.
func TestScheduling(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
	l.spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	l.spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
	l.detached("run", "-d", l.id)
	pid := l.state().Pid
	attr, err := unix.SchedGetAttr(pid, 0)
	if err != nil || attr.Policy != unix.SCHED_BATCH || attr.Nice != 5 || attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
		t.Errorf("scheduler %+v, %v", attr, err)
	}
	const whoProcess = 1 // ioprio_get(2)
	if prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(pid), 0); errno != 0 || prio != 2<<13|6 {
		t.Errorf("io priority %#x, %v", prio, errno)
	}
	if maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/numa_maps"); err != nil {
		t.Log("no memory policies here: ", err)
	} else if !strings.Contains(string(maps), " bind") || !strings.Contains(string(maps), ":0 ") {
		t.Errorf("memory of\n%s", maps)
	}
	l.must("delete", "--force", l.id)
	l.spec.Process.Args = []string{"true"}
	for words, change := range map[string]func(){
		"ioPriority.Priority: 8200": func() { l.spec.Process.IOPriority.Priority = 8200 }, // would be another class
		"nodes \\\"0-":              func() { l.spec.Linux.MemoryPolicy.Nodes = "0-" },
		"policy \\\"x":              func() { l.spec.Linux.MemoryPolicy.Mode = "x" },
		"scheduler policy":          func() { l.spec.Process.Scheduler.Policy = "x" },
	} {
		io, memory, scheduler := *l.spec.Process.IOPriority, *l.spec.Linux.MemoryPolicy, *l.spec.Process.Scheduler
		change()
		l.write()
		if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, words) {
			t.Errorf("%s: %v: %s", words, err, out)
		}
		*l.spec.Process.IOPriority, *l.spec.Linux.MemoryPolicy, *l.spec.Process.Scheduler = io, memory, scheduler
	}
}

// A tmpfs that begins with what the image has there, and leaves the image as it is.
func TestCopyUp(t *testing.T) {
	l := newLab(t, "cd /etc/x; stat -c '%a %u' . f d d/g; cat d/g; readlink l; echo more >d/g; touch new")
	l.image("etc/x/f", "etc/x/d/g")
	root := l.bundle + "/root/etc/x"
	for _, err := range []error{os.Symlink("/nowhere", root+"/l"), os.Chown(root+"/f", 7, 7), os.Chmod(root+"/f", 0o750|os.ModeSetuid), os.Chmod(root+"/d", 0o701), os.Chmod(root, 0o750)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: "/etc/x", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}})
	if got := l.run(); got != "750 0\n4750 7\n701 0\n644 0\netc/x/d/g\n/nowhere" {
		t.Errorf("got %s", got)
	}
	if b, err := os.ReadFile(root + "/d/g"); err != nil || string(b) != "etc/x/d/g\n" || exists(root+"/new") {
		t.Errorf("the image was written to: %q, %v", b, err)
	}
}

// A tmpfs has the mode that it is given, or of the directory it lies over, or tmpfs' own.
func TestTmpfsMode(t *testing.T) {
	l := newLab(t, "stat -c %a /etc/x /etc/y /etc/none")
	l.image("etc/x/f", "etc/y/f")
	if err := os.Chmod(l.bundle+"/root/etc/x", 0o711); err != nil {
		t.Fatal(err)
	}
	for dest, options := range map[string][]string{"/etc/x": nil, "/etc/y": {"mode=750"}, "/etc/none": nil} {
		l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	if got := l.run(); got != "711\n750\n1777" {
		t.Errorf("modes %s", got)
	}
}

// What runc has and is not here is refused, not passed over.
func TestRefusedOptions(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.write()
	if out, err := l.call("run", "--pidfd-socket", "x", l.id); err == nil || !strings.Contains(out, "--pidfd-socket: not supported") {
		t.Errorf("%v: %s", err, out)
	}
	l.nothingLeft()
	l.detached("run", "-d", l.id)
	if out, err := l.call("exec", "--cgroup", "x", l.id, "true"); err == nil || !strings.Contains(out, "--cgroup: not supported") {
		t.Errorf("%v: %s", err, out)
	}
}

// image puts files into the image, each with its name in it.
func (l *lab) image(names ...string) {
	l.t.Helper()
	for _, name := range names {
		path := l.bundle + "/root/" + name
		if err := os.MkdirAll(path[:strings.LastIndexByte(path, '/')], 0o755); err != nil {
			l.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name+"\n"), 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
}

// The working directory is made, if the image has none, below a root that is read-only too.
func TestWorkplaceOfReadOnlyRoot(t *testing.T) {
	l := newLab(t, "busybox pwd; touch x || echo denied")
	l.spec.Root.Readonly, l.spec.Process.Cwd = true, "/not/there"
	l.write()
	if got := l.run(); !strings.HasPrefix(got, "/not/there\n") || !strings.HasSuffix(got, "denied") {
		t.Errorf("it says %q", got)
	}
}

// A mount over the root, which nobody would see, is refused: by its name, and by a link
// of the image.
func TestMountOverRoot(t *testing.T) {
	l := newLab(t, "true")
	if err := os.Symlink("/", filepath.Join(l.bundle, "root/link")); err != nil {
		t.Fatal(err)
	}
	for _, dest := range []string{"/", "/link", "/dev/.."} {
		l.spec.Mounts = append(l.spec.Mounts[:3:3], specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs"})
		l.write()
		if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, "is on the top of rootfs") {
			t.Errorf("%s: %v: %s", dest, err, out)
		}
		l.nothingLeft()
	}
}
