package native

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// honoured are fields of the specification that have their effect, by type.
var honoured = map[string]string{
	"Spec":         "Process Root Hostname Domainname Mounts Hooks Annotations Linux",
	"Process":      "Terminal ConsoleSize User Args Env Cwd Capabilities Rlimits NoNewPrivileges ApparmorProfile OOMScoreAdj Scheduler SelinuxLabel IOPriority ExecCPUAffinity",
	"Box":          "Height Width",
	"User":         "UID GID Umask AdditionalGids",
	"Scheduler":    "Policy Nice Priority Flags Runtime Deadline Period",
	"CPUAffinity":  "Initial Final",
	"Root":         "Path Readonly",
	"Mount":        "Destination Type Source Options UIDMappings GIDMappings",
	"Hooks":        "Prestart CreateRuntime CreateContainer StartContainer Poststart Poststop",
	"Hook":         "Path Args Env Timeout",
	"POSIXRlimit":  "Type Hard Soft",
	"Linux":        "UIDMappings GIDMappings Sysctl Resources CgroupsPath Namespaces Devices Seccomp RootfsPropagation MaskedPaths ReadonlyPaths MountLabel MemoryPolicy Personality TimeOffsets",
	"LinuxSeccomp": "DefaultAction DefaultErrnoRet Architectures Flags Syscalls",

	"LinuxBlockIO":           "Weight LeafWeight WeightDevice ThrottleReadBpsDevice ThrottleWriteBpsDevice ThrottleReadIOPSDevice ThrottleWriteIOPSDevice",
	"LinuxBlockIODevice":     "Major Minor",
	"LinuxCPU":               "Shares Quota Burst Period RealtimeRuntime RealtimePeriod Cpus Mems Idle",
	"LinuxCapabilities":      "Bounding Effective Inheritable Permitted Ambient",
	"LinuxDevice":            "Path Type Major Minor FileMode UID GID",
	"LinuxDeviceCgroup":      "Allow Type Major Minor Access",
	"LinuxHugepageLimit":     "Pagesize Limit",
	"LinuxIDMapping":         "ContainerID HostID Size",
	"LinuxIOPriority":        "Class Priority",
	"LinuxInterfacePriority": "Name Priority",
	"LinuxMemory":            "Limit Reservation Swap KernelTCP Swappiness DisableOOMKiller CheckBeforeUpdate",
	"LinuxMemoryPolicy":      "Mode Nodes Flags",
	"LinuxNamespace":         "Type Path",
	"LinuxNetwork":           "ClassID Priorities",
	"LinuxPersonality":       "Domain",
	"LinuxPids":              "Limit",
	"LinuxRdma":              "HcaHandles HcaObjects",
	"LinuxResources":         "Devices Memory CPU Pids BlockIO HugepageLimits Network Rdma Unified",
	"LinuxSeccompArg":        "Index Value ValueTwo Op",
	"LinuxSyscall":           "Names Action ErrnoRet Args",
	"LinuxThrottleDevice":    "LinuxBlockIODevice Rate",
	"LinuxTimeOffset":        "Secs Nanosecs",
	"LinuxWeightDevice":      "LinuxBlockIODevice Weight LeafWeight",
}

// refused are those without, and words of what is said then.
var refused = map[string]struct {
	set   func(*specs.Spec)
	words string
}{
	"Linux.NetDevices":       {func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"lo": {Name: "x"}} }, "netDevices: not supported"},
	"Linux.IntelRdt":         {func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, "intelRdt: not supported"},
	"LinuxPersonality.Flags": {func(s *specs.Spec) { s.Linux.Personality.Flags = []specs.LinuxPersonalityFlag{"X"} }, "personality flag"},
}

// idle are those that have none, and why none is missed.
var idle = map[string]string{
	"Spec.Version":                  "within 1.x no version takes anything away",
	"Spec.Solaris":                  "another platform's",
	"Spec.Windows":                  "another platform's",
	"Spec.VM":                       "another platform's",
	"Spec.ZOS":                      "another platform's",
	"Spec.FreeBSD":                  "another platform's",
	"Process.CommandLine":           "another platform's",
	"User.Username":                 "another platform's",
	"LinuxNetDevice.Name":           "of what is refused",
	"LinuxIntelRdt.*":               "of what is refused",
	"LinuxMemory.Kernel":            "deprecated, since Linux 5.4 without effect: the specification lets runtimes ignore it, and old bundles have it",
	"LinuxMemory.UseHierarchy":      "always so in version 2, and since Linux 5.11 in version 1",
	"LinuxSeccomp.ListenerPath":     "only with SCMP_ACT_NOTIFY, which is refused",
	"LinuxSeccomp.ListenerMetadata": "only with SCMP_ACT_NOTIFY, which is refused",
}

// Every field of the specification's types is honoured, refused, or has a reason for
// being neither. One that a later version adds fails here.
func TestFields(t *testing.T) {
	known := map[string]bool{}
	for name, fields := range honoured {
		for f := range strings.FieldsSeq(fields) {
			known[name+"."+f] = false
		}
	}
	for name := range maps.Keys(refused) {
		known[name] = false
	}
	for name := range maps.Keys(idle) {
		known[name] = false
	}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || seen[typ] {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			name := typ.Name() + "." + f.Name
			if _, ok := known[typ.Name()+".*"]; ok {
				name = typ.Name() + ".*"
			}
			if _, ok := known[name]; !ok {
				t.Errorf("%s: neither honoured nor refused", name)
			}
			known[name] = true
			if idle[name] == "another platform's" {
				continue
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[specs.Spec]())
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if !known[name] {
			t.Errorf("%s: the specification has no such field", name)
		}
	}
}

// What is refused says what it is, and nothing is left of the attempt.
func TestRefusedFields(t *testing.T) {
	for name, c := range refused {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "true")
			l.spec.Linux.Resources, l.spec.Linux.Personality = &specs.LinuxResources{Memory: &specs.LinuxMemory{}}, &specs.LinuxPersonality{Domain: specs.PerLinux}
			l.write()
			l.must("run", l.id)
			c.set(l.spec)
			l.write()
			if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, c.words) {
				t.Errorf("%v: %s, want %s", err, out, c.words)
			}
			l.nothingLeft()
		})
	}
}

// Values that the kernel would pass over, or only some kernels take, are refused too.
func TestRefusedValues(t *testing.T) {
	seconds := 0
	for words, set := range map[string]func(*specs.Spec){
		"scheduler policy is required": func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} },
		"SCHED_X":                      func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_X"} },
		"SCHED_FLAG_X": func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"SCHED_FLAG_X"}}
		},
		"invalid scheduler.nice: 20": func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 20} },
		"scheduler.nice can only": func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO, Nice: 2, Priority: 1}
		},
		"scheduler.priority can only": func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedIdle, Priority: 2} },
		"runtime/deadline/period": func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedRR, Priority: 2, Runtime: 7}
		},
		"invalid ioPriority.Priority": func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		},
		"invalid ioPriority.Class": func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} },
		"CPU affinity":             func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0-"} },
		"memory policy":            func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_X"} },
		"personality":              func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "X"} },
		"mount label":              func(s *specs.Spec) { s.Linux.MountLabel = "system_u:object_r:container_file_t:s0" },
		"rootfsPropagation":        func(s *specs.Spec) { s.Linux.RootfsPropagation = "public" },
		"path must be absolute":    func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "true"}}} },
		"greater than zero": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true", Timeout: &seconds}}}
		},
		"parameters of a file system cannot be changed": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"remount", "size=4k"}})
		},
		"id-mapped mounts are only supported for bind-mounts": func(s *specs.Spec) { s.Mounts[1].Options = append(s.Mounts[1].Options, "idmap") },
		"the host has another one by that name": func(s *specs.Spec) {
			maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.Namespaces, s.Linux.UIDMappings, s.Linux.GIDMappings = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}), maps, maps
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/zero", Type: "c", Major: 1, Minor: 3}}
		},
		"listeners are not supported": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify, ListenerPath: "/x"}
		},
	} {
		t.Run(words, func(t *testing.T) {
			if words == "mount label" && exists("/sys/fs/selinux/enforce") {
				t.Skip("SELinux is here")
			}
			l := newLab(t, "true")
			set(l.spec)
			l.write()
			if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, words) {
				t.Errorf("%v: %s, want %s", err, out, words)
			}
			l.nothingLeft()
		})
	}
}

// A process of --process has what it says nothing about from the container; where an
// exec may run is no matter of the container's own process.
func TestExecInherits(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	may := []string{"CAP_CHOWN"}
	l.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: may, Effective: may, Permitted: may}
	l.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 100}}
	l.spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
	l.spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
	l.detached("run", "-d", l.id)
	const show = "ulimit -n; busybox grep -E '^(CapEff|Cpus_allowed_list):' /proc/self/status; set -- $(cat /proc/self/stat); echo ${19}"
	l.process("p.json", &specs.Process{Args: []string{"sh", "-c", show}, Cwd: "/", Env: []string{"PATH=/bin"}})
	if got := l.must("exec", "--process", l.bundle+"/p.json", l.id); got != "99\nCapEff:\t0000000000000001\nCpus_allowed_list:\t0\n3" {
		t.Errorf("an exec that says nothing: %s", got)
	}
	l.process("p.json", &specs.Process{Args: []string{"sh", "-c", show}, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 100}}, Scheduler: &specs.Scheduler{Policy: specs.SchedOther}})
	if got := l.must("exec", "--process", l.bundle+"/p.json", l.id); got != "77\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0\n0" {
		t.Errorf("an exec that says otherwise: %s", got)
	}
	if own := l.must("exec", l.id, "busybox", "grep", "Cpus_allowed_list", "/proc/1/status"); strings.HasSuffix(own, "\t0") && !strings.HasSuffix(cpusOf(t), "\t0") {
		t.Errorf("the first process: %s", own)
	}
}

// process writes a file for --process.
func (l *lab) process(name string, p *specs.Process) {
	l.t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.bundle, name), b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// cpusOf are the processors that this test may run on.
func cpusOf(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "Cpus_allowed_list:")
	line, _, _ := strings.Cut(after, "\n")
	return line
}

// Every policy of the scheduler, asked of the kernel.
func TestPolicies(t *testing.T) {
	const ms = 1_000_000
	for _, s := range []specs.Scheduler{{Policy: specs.SchedOther, Nice: -3}, {Policy: specs.SchedFIFO, Priority: 3}, {Policy: specs.SchedRR, Priority: 4, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}},
		{Policy: specs.SchedBatch, Nice: 19}, {Policy: specs.SchedIdle}, {Policy: specs.SchedDeadline, Runtime: 5 * ms, Deadline: 50 * ms, Period: 100 * ms, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagReclaim}}} {
		t.Run(string(s.Policy), func(t *testing.T) {
			l := newLab(t, "exec sleep 1000")
			l.spec.Process.Scheduler = &s
			if s.Priority != 0 && exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us") {
				// What a cgroup may use of the processors in real time comes out of its parent's.
				share := int64(1000) // µs
				l.spec.Linux.CgroupsPath, l.spec.Linux.Resources = "/escale-native-real-"+l.id, &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: &share}}
			}
			l.detached("run", "-d", l.id)
			a, err := unix.SchedGetAttr(l.state().Pid, 0)
			if err != nil || a.Policy != policies[s.Policy] || s.Policy != specs.SchedIdle && a.Nice != s.Nice || int32(a.Priority) != s.Priority || s.Runtime != 0 && (a.Runtime != s.Runtime || a.Deadline != s.Deadline || a.Period != s.Period) {
				t.Errorf("the kernel says %+v, %v", a, err)
			}
			l.must("delete", "--force", l.id)
			l.nothingLeft()
		})
	}
	l := newLab(t, "true")
	l.spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedISO}
	l.write()
	if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, "error setting scheduler: invalid argument") {
		t.Errorf("one that no kernel has: %v: %s", err, out)
	}
	l.nothingLeft()
}
