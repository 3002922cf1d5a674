package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/internal/sys/cgroup"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:100:Bob:/home/bob:/bin/sh\nweird:x:-5:0::/:\n"
	testGroup  = "root:x:0:\nusers:x:100:\naudio:x:29:bob,alice\nvideo:x:44:bob\n"
)

// testRootfs is a container's tree with accounts.
func testRootfs(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{"etc/passwd": testPasswd, "etc/group": testGroup, "file": "x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// v1Host and v2Host are machines as tests want them.
func v1Host() Host {
	return Host{
		CPUs: 4,
		Cgroup: cgroup.Info{Mode: cgroup.Hybrid, Namespaces: true, Features: cgroup.Features{
			MemoryLimit: true, SwapLimit: true, MemoryReservation: true, OOMKillDisable: true, MemorySwappiness: true,
			CPUShares: true, CPUCfs: true, CPURealtime: true, Cpuset: true, Cpus: "0-3", Mems: "0", PidsLimit: true,
			BlkioWeight: true, BlkioWeightDevice: true, BlkioReadBps: true, BlkioWriteBps: true, BlkioReadIOps: true, BlkioWriteIOps: true,
		}},
		Capabilities:      append(slices.Clone(defaultCapabilities), "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
		Seccomp:           true,
		RecursiveReadOnly: true, IPv4Forwarding: true, PingGroupRange: true, UnprivilegedPorts: true,
		HardLimits: map[string]uint64{"nofile": 1024, "nproc": 500},
	}
}

func v2Host() Host {
	h := v1Host()
	h.Cgroup.Mode = cgroup.Unified
	h.Cgroup.Features.OOMKillDisable, h.Cgroup.Features.MemorySwappiness, h.Cgroup.Features.CPURealtime = false, false, false
	h.RaiseLimits, h.HardLimits, h.MaxOpen = true, nil, 1048576
	h.AppArmor = true
	h.ThermalPaths = []string{"/sys/devices/system/cpu/cpu0/thermal_throttle"}
	return h
}

// testBuilder looks nothing up on the machine it runs on.
func testBuilder(h Host) *Builder {
	b := New(h)
	b.hostDevices = func() ([]specs.LinuxDevice, error) {
		return []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}, nil
	}
	b.readMounts = func() ([]*mountinfo.Info, error) {
		return []*mountinfo.Info{{Mountpoint: "/", Optional: "shared:1"}, {Mountpoint: "/proc"}, {Mountpoint: "/dev", Optional: "master:7"}}, nil
	}
	return b
}

const testID = "4c1b0f1a2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f5061728394a5b6c7d8"

// options are those of the simplest container.
func options(root string) Options {
	return Options{
		ID: testID, Rootfs: root, Path: "/bin/sh", Args: []string{"-c", "true"},
		Config:       &container.Config{Hostname: testID[:12]},
		HostConfig:   &container.HostConfig{NetworkMode: "bridge"},
		HostnamePath: "/c/hostname", HostsPath: "/c/hosts", ResolvConfPath: "/c/resolv.conf",
		NetNS: "/run/escale/netns/x", CgroupsPath: CgroupsPath("", testID, ""),
	}
}

func ptr[T any](v T) *T { return &v }

func TestSpecGolden(t *testing.T) {
	cases := map[string]struct {
		host   func() Host
		change func(*Options)
	}{
		"default":    {v1Host, func(*Options) {}},
		"default-v2": {v2Host, func(o *Options) { o.AppArmorProfile = "escale-default" }},
		"privileged": {v1Host, func(o *Options) {
			o.HostConfig.Privileged = true
			o.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/null"}, {PathOnHost: "/dev/null", PathInContainer: "/dev/nil", CgroupPermissions: "r"}}
			o.HostConfig.CgroupnsMode = "host"
		}},
		"user": {v1Host, func(o *Options) {
			o.Config.User = "bob"
			o.Config.WorkingDir = "/home/bob"
			o.Config.Env = []string{"A=1", "PATH=/bin", "HOSTNAME", "A=2", "B="}
			o.HostConfig.GroupAdd = []string{"users", "4711"}
			o.HostConfig.CapAdd = []string{"net_admin", "CAP_NET_ADMIN"}
			o.HostConfig.CapDrop = []string{"MKNOD"}
			o.HostConfig.Umask = ptr[uint32](0o27)
		}},
		"limits": {v1Host, func(o *Options) {
			h := o.HostConfig
			h.Memory, h.MemorySwap, h.MemoryReservation, h.MemorySwappiness = 64<<20, 128<<20, 32<<20, ptr[int64](10)
			h.NanoCPUs, h.CPUShares, h.CpusetCpus, h.CpusetMems = 1500000000, 512, "0-1", "0"
			h.PidsLimit, h.OomKillDisable, h.OomScoreAdj = ptr[int64](77), ptr(false), 300
			h.BlkioWeight = 300
			h.BlkioDeviceReadBps = []*blkiodev.ThrottleDevice{{Path: "/dev/null", Rate: 1 << 20}, nil}
			h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 2000, Hard: 4000}, {Name: "core", Soft: -1, Hard: -1}}
			o.DefaultUlimits = map[string]*units.Ulimit{"nofile": {Name: "nofile", Soft: 1, Hard: 1}, "nproc": {Name: "nproc", Soft: 100, Hard: 200}}
		}},
		"mounts": {v1Host, func(o *Options) {
			h := o.HostConfig
			h.ReadonlyRootfs = true
			h.Init = ptr(true)
			o.InitPath = "/usr/bin/tini-static"
			h.Tmpfs = map[string]string{"/run": "size=64m,exec", "/a/b": ""}
			o.Mounts = []Mount{
				{Type: Bind, Source: "/srv/deep", Destination: "/a/b/c", ReadOnly: true},
				{Type: Bind, Source: "/srv/a", Destination: "/a/"},
				{Type: Bind, Source: "/srv/shm", Destination: "/dev/shm"},
				{Type: Bind, Source: "/srv/hosts", Destination: "/etc/hosts", ReadOnly: true, ReadOnlyNonRecursive: true},
				{Type: Bind, Source: "/", Destination: "/host", Propagation: "rshared", NonRecursive: true},
				{Type: Bind, Source: "/dev", Destination: "/hostdev", Propagation: "rslave"},
				{Type: Bind, Source: "/proc", Destination: "/hostproc", Propagation: "rslave", PropagationImplied: true},
				{Type: Tmpfs, Destination: "/scratch", Options: "mode=700", ReadOnly: true},
			}
		}},
		"host-namespaces": {v1Host, func(o *Options) {
			h := o.HostConfig
			h.NetworkMode, h.PidMode, h.IpcMode, h.UTSMode, h.CgroupnsMode = "host", "host", "host", "host", "host"
			h.Init = ptr(true) // without effect here
			o.Config.Domainname = "example.org"
		}},
		"container-namespaces": {v2Host, func(o *Options) {
			h := o.HostConfig
			h.NetworkMode, h.PidMode, h.IpcMode, h.CgroupnsMode = "container:x", "container:x", "container:x", "private"
			o.NetNS, o.PIDNS, o.IPCNS, o.ShmPath = "/proc/1/ns/net", "/proc/1/ns/pid", "/proc/1/ns/ipc", "/c/shm"
			o.CgroupsPath = CgroupsPath("", testID, "docker")
		}},
		"security": {v2Host, func(o *Options) {
			h := o.HostConfig
			h.SecurityOpt = []string{"no-new-privileges", "seccomp=unconfined", "apparmor:mine", "label=disable", "writable-cgroups=true"}
			h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{"/proc/sys"}
			h.DeviceCgroupRules = []string{"c 42:* rmw"}
			h.IpcMode = "none"
			h.CapDrop = []string{"ALL"}
			h.CapAdd = []string{"chown"}
		}},
		"tty": {v2Host, func(o *Options) {
			o.Config.Tty = true
			o.HostConfig.ConsoleSize = [2]uint{25, 80}
			o.Config.Domainname = "example.org"
			o.HostConfig.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "kernel.msgmax": "65536"}
			o.HostConfig.Annotations = map[string]string{"a": "b"}
			o.HostConfig.ShmSize = 1 << 20
			o.NoNewPrivileges = true
		}},
	}
	root := testRootfs(t)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := options(root)
			c.change(&o)
			before, _ := json.Marshal(o)
			spec, warnings, err := testBuilder(c.host()).Spec(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if after, _ := json.Marshal(o); !bytes.Equal(before, after) {
				t.Errorf("the options were changed\nfrom %s\n  to %s", before, after)
			}
			if s := spec.Linux.Seccomp; s != nil { // TestSeccomp looks into it
				s.Syscalls, s.Architectures = nil, nil
			}
			// The order in which extra groups' files, owners and such differ
			// between machines is left out.
			for i := range spec.Linux.Devices {
				d := &spec.Linux.Devices[i]
				d.FileMode, d.UID, d.GID = nil, nil, nil
			}
			golden(t, name, root, map[string]any{"spec": spec, "warnings": warnings})
		})
	}
}

func golden(t *testing.T, name, root string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(bytes.ReplaceAll(got, []byte(root), []byte("/rootfs")), '\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it anew), got:\n%s", path, got)
	}
}

// TestSpecErrors holds refusals against Docker's words.
func TestSpecErrors(t *testing.T) {
	root := testRootfs(t)
	for _, c := range []struct {
		words  string
		bad    bool // of kind ErrInvalidArgument
		change func(*Options)
	}{
		{"unable to find user eve: no matching entries in passwd file", false, func(o *Options) { o.Config.User = "eve" }},
		{"unable to find group eve: no matching entries in group file", false, func(o *Options) { o.Config.User = "bob:eve" }},
		{"unable to find group g: no matching entries in group file", false, func(o *Options) { o.HostConfig.GroupAdd = []string{"g"} }},
		{"unable to find group : no matching entries in group file", false, func(o *Options) { o.HostConfig.GroupAdd = []string{""} }},
		{"uids and gids must be in range 0-2147483647", false, func(o *Options) { o.Config.User = "4294967295" }},
		{"uids and gids must be in range 0-2147483647", false, func(o *Options) { o.Config.User = "weird" }},
		{`unknown capability: "CAP_FOO"`, true, func(o *Options) { o.HostConfig.CapAdd = []string{"foo"} }},
		{`capability not supported by your kernel or not available in the current environment: "CAP_SYS_RESOURCE"`, true, func(o *Options) { o.HostConfig.CapAdd = []string{"SYS_RESOURCE"} }},
		{`invalid --security-opt 1: "foo"`, true, func(o *Options) { o.HostConfig.SecurityOpt = []string{"foo"} }},
		{`invalid --security-opt 2: "foo=bar"`, true, func(o *Options) { o.HostConfig.SecurityOpt = []string{"foo=bar"} }},
		{`invalid --security-opt 2: "no-new-privileges=x"`, true, func(o *Options) { o.HostConfig.SecurityOpt = []string{"no-new-privileges=x"} }},
		{"Decoding seccomp profile failed: invalid character 'h' in literal true (expecting 'r')", true, func(o *Options) { o.HostConfig.SecurityOpt = []string{"seccomp=this"} }},
		{`error gathering device information while adding custom device "/nope": no such file or directory`, false, func(o *Options) { o.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/nope"}} }},
		{`error gathering device information while adding custom device "/etc/passwd": not a device node`, false, func(o *Options) { o.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/etc/passwd"}} }},
		{`could not select device driver "" with capabilities: [[gpu]]`, true, func(o *Options) {
			o.HostConfig.DeviceRequests = []container.DeviceRequest{{Capabilities: [][]string{{"gpu"}}}}
		}},
		{"invalid device cgroup rule format: 'x'", true, func(o *Options) { o.HostConfig.DeviceCgroupRules = []string{"x"} }},
		{`invalid tmpfs option "foo"`, true, func(o *Options) { o.HostConfig.Tmpfs = map[string]string{"/x": "foo"} }},
		{"path /proc is mounted on /proc but it is not a shared mount", false, func(o *Options) {
			o.Mounts = []Mount{{Type: Bind, Source: "/proc", Destination: "/x", Propagation: "shared"}}
		}},
		{"path /proc is mounted on /proc but it is not a shared or slave mount", false, func(o *Options) {
			o.Mounts = []Mount{{Type: Bind, Source: "/proc", Destination: "/x", Propagation: "slave"}}
		}},
		{"mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive", true, func(o *Options) {
			o.Mounts = []Mount{{Type: Bind, Source: "/x", Destination: "/x", ReadOnly: true, ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true}}
		}},
		{"Cannot mkdir: /file is not a directory", false, func(o *Options) { o.Config.WorkingDir = "/file" }},
		{"Cannot mkdir: /file/x is not a directory", false, func(o *Options) { o.Config.WorkingDir = "/file/x" }},
		{`exec: "docker-init": executable file not found in $PATH`, false, func(o *Options) { o.InitByDefault = true }},
		{"invalid IPC mode: foo", true, func(o *Options) { o.HostConfig.IpcMode = "foo" }},
		{"container " + testID + ": no network namespace given for mode container:x", false, func(o *Options) { o.HostConfig.NetworkMode, o.NetNS = "container:x", "" }},
	} {
		o := options(root)
		c.change(&o)
		_, _, err := testBuilder(v1Host()).Spec(t.Context(), o)
		if err == nil || err.Error() != c.words {
			t.Errorf("got  %v\nwant %s", err, c.words)
		} else if errdefs.IsInvalidArgument(err) != c.bad {
			t.Errorf("%v: invalid argument %v, want %v", err, !c.bad, c.bad)
		}
	}
	o := options(root + "/missing")
	if _, _, err := testBuilder(v1Host()).Spec(t.Context(), o); err == nil || errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing root: %v", err)
	}
}

func TestProcess(t *testing.T) {
	root := testRootfs(t)
	b := testBuilder(v1Host())
	o := options(root)
	o.Config.Env = []string{"A=1"}
	o.Config.Tty = true
	o.Config.WorkingDir = "/etc"
	spec, _, err := b.Spec(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	e := ExecOptions{Config: o.Config, HostConfig: o.HostConfig, Args: []string{"id"}, User: "bob:audio", Env: []string{"B=2"}}
	p, err := b.Process(spec, root, e)
	if err != nil {
		t.Fatal(err)
	}
	if p.User.UID != 1000 || p.User.GID != 29 || p.Terminal || p.Cwd != "/etc" ||
		strings.Join(p.Env, " ") != "PATH="+defaultPath+" HOSTNAME="+testID[:12]+" A=1 B=2" {
		t.Errorf("process %+v", p)
	}
	if len(p.Capabilities.Effective) != 0 || len(p.Capabilities.Bounding) != 14 {
		t.Errorf("capabilities %+v", p.Capabilities)
	}
	if !spec.Process.Terminal || len(spec.Process.Args) != 3 || len(spec.Process.Capabilities.Effective) != 14 {
		t.Errorf("the container's own process was changed: %+v", spec.Process)
	}
	e.Privileged, e.User, e.WorkingDir, e.Tty, e.ConsoleSize = true, "", "/x", true, [2]uint{5, 6}
	if p, err = b.Process(spec, root, e); err != nil {
		t.Fatal(err)
	}
	if p.Cwd != "/x" || !slices.Contains(p.Env, "TERM=xterm") || *p.ConsoleSize != (specs.Box{Height: 5, Width: 6}) ||
		!slices.Equal(p.Capabilities.Effective, b.host.Capabilities) {
		t.Errorf("privileged process %+v, capabilities %+v", p, p.Capabilities)
	}
	e.User = "eve"
	if _, err := b.Process(spec, root, e); !errdefs.IsInvalidArgument(err) || err.Error() != "unable to find user eve: no matching entries in passwd file" {
		t.Errorf("unknown user: %v", err)
	}
	e.User, e.Args = "", nil
	if _, err := b.Process(spec, root, e); err == nil || err.Error() != "No exec command specified" {
		t.Errorf("no command: %v", err)
	}
}

func TestComplete(t *testing.T) {
	hc := &container.HostConfig{}
	hc.Memory = 10 << 20
	New(v2Host()).Complete(hc)
	if hc.MemorySwap != 20<<20 || hc.ShmSize != 64<<20 || hc.IpcMode != "private" || hc.CgroupnsMode != "private" || hc.OomKillDisable != nil {
		t.Errorf("v2: %+v", hc)
	}
	if !slices.Contains(hc.MaskedPaths, "/proc/kcore") || !slices.Contains(hc.MaskedPaths, "/sys/devices/system/cpu/cpu0/thermal_throttle") || len(hc.ReadonlyPaths) != 5 {
		t.Errorf("paths %v %v", hc.MaskedPaths, hc.ReadonlyPaths)
	}
	hc = &container.HostConfig{Privileged: true}
	New(v1Host()).Complete(hc)
	if hc.MemorySwap != 0 || hc.CgroupnsMode != "host" || hc.OomKillDisable == nil || hc.MaskedPaths != nil || hc.ReadonlyPaths != nil {
		t.Errorf("v1 privileged: %+v", hc)
	}
}

func TestCgroupsPath(t *testing.T) {
	for _, c := range []struct {
		parent, scopes, want string
	}{
		{"", "", "/docker/ID"},
		{"/a/b", "", "/a/b/ID"},
		{"a", "", "/a/ID"},
		{"../../etc", "", "/etc/ID"},
		{"", "docker", "system.slice:docker:ID"},
		{"my.slice", "escale-x", "my.slice:escale-x:ID"},
	} {
		if got := CgroupsPath(c.parent, "ID", c.scopes); got != c.want {
			t.Errorf("%q %q: %s, want %s", c.parent, c.scopes, got, c.want)
		}
	}
}

func BenchmarkSpec(b *testing.B) {
	root := testRootfs(b)
	host, err := DetectHost()
	if err != nil {
		b.Fatal(err)
	}
	builder := New(host)
	o := options(root)
	b.Run("spec", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := builder.Spec(b.Context(), o); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("spec+json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			spec, _, err := builder.Spec(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := json.Marshal(spec); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("spec-cold-profile", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := New(host).Spec(b.Context(), o); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("detect-host", func(b *testing.B) {
		for b.Loop() {
			if _, err := DetectHost(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
