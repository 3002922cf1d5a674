package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"escale.dev/escale/internal/sys/apparmor"
	"escale.dev/escale/internal/sys/cgroup"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Host is what a specification depends on of the machine and of the engine's
// own rights on it.
type Host struct {
	CPUs   int
	Cgroup cgroup.Info
	// SystemdCgroup: the runtime makes cgroups through systemd. Not detected:
	// the engine's configuration says so.
	SystemdCgroup bool

	// Capabilities are those that a container can be given, by number: what
	// the engine has in its bounding and permitted sets.
	Capabilities []string

	Seccomp           bool // the kernel filters system calls
	AppArmor          bool // the kernel has AppArmor on
	RecursiveReadOnly bool // the kernel can make a tree of mounts read-only (mount_setattr(2), 5.12)
	IPv4Forwarding    bool
	PingGroupRange    bool // net.ipv4.ping_group_range exists
	UnprivilegedPorts bool // net.ipv4.ip_unprivileged_port_start exists

	// RaiseLimits: the engine has CAP_SYS_RESOURCE and may raise hard limits
	// and lower OOM scores. Without it HardLimits and OOMScoreAdj bound both.
	RaiseLimits bool
	HardLimits  map[string]uint64 // by name without RLIMIT_, in lower case; no entry: no limit
	MaxOpen     uint64            // fs.nr_open, which binds everyone; 0: not known
	OOMScoreAdj int               // the engine's own

	ThermalPaths []string // per-processor paths to mask: they tell of the load of others
}

// DetectHost gathers the facts of this machine. Reads some 50 small files.
func DetectHost() (Host, error) {
	h := Host{CPUs: runtime.NumCPU(), HardLimits: map[string]uint64{}}
	var err error
	if h.Cgroup, err = cgroup.Detect(); err != nil {
		return Host{}, fmt.Errorf("cgroups: %w", err)
	}
	caps, err := capability.NewPid2(0)
	if err != nil {
		return Host{}, fmt.Errorf("capabilities: %w", err)
	}
	if err := caps.Load(); err != nil {
		return Host{}, fmt.Errorf("capabilities: %w", err)
	}
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.BOUNDING, c) && caps.Get(capability.PERMITTED, c) {
			h.Capabilities = append(h.Capabilities, capabilityName(c))
		}
	}
	h.RaiseLimits = caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)

	h.Seccomp = seccompSupported()
	h.AppArmor = apparmor.Enabled()
	h.RecursiveReadOnly = recursiveReadOnlySupported()
	h.IPv4Forwarding = readNumber("/proc/sys/net/ipv4/ip_forward") == 1
	h.PingGroupRange = exists("/proc/sys/net/ipv4/ping_group_range")
	h.UnprivilegedPorts = exists("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	h.MaxOpen = uint64(max(0, readNumber("/proc/sys/fs/nr_open")))
	h.OOMScoreAdj = readNumber("/proc/self/oom_score_adj")
	for name, resource := range rlimits {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err == nil && l.Max != unix.RLIM_INFINITY {
			h.HardLimits[name] = l.Max
		}
	}
	h.ThermalPaths, _ = filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	return h, nil
}

// seccompSupported asks for a filter at a bad address: a kernel that filters
// stumbles over the address (seccomp(2)).
func seccompSupported() bool {
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0)
	return err != unix.EINVAL
}

// recursiveReadOnlySupported calls mount_setattr(2) where it can change nothing.
func recursiveReadOnlySupported() bool {
	err := unix.MountSetattr(-1, "/nonexistent/"+strconv.Itoa(os.Getpid()), unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return err == unix.ENOENT
}

// readNumber is the number that a file of /proc holds, 0 when it holds none.
func readNumber(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
