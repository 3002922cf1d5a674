package oci

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/cgroup"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// TestValidateRefuses holds refusals against Docker's words.
func TestValidateRefuses(t *testing.T) {
	type hostConfig = container.HostConfig
	host := func(words string, change func(*hostConfig)) func(*container.Config, *hostConfig) string {
		return func(_ *container.Config, h *hostConfig) string { change(h); return words }
	}
	config := func(words string, change func(*container.Config)) func(*container.Config, *hostConfig) string {
		return func(c *container.Config, _ *hostConfig) string { change(c); return words }
	}
	health := func(words string, h container.HealthConfig) func(*container.Config, *hostConfig) string {
		return config(words, func(c *container.Config) { c.Healthcheck = &h })
	}
	long := strings.Repeat("h", 65)
	for _, c := range []func(*container.Config, *hostConfig) string{
		config("the working directory 'rel' is invalid, it needs to be an absolute path", func(c *container.Config) { c.WorkingDir = "rel" }),
		config("invalid signal: FOO", func(c *container.Config) { c.StopSignal = "FOO" }),
		config("invalid environment variable: =x", func(c *container.Config) { c.Env = []string{"=x"} }),
		config(`invalid environment variable: "a=b\x00c"`, func(c *container.Config) { c.Env = []string{"a=b\x00c"} }),
		config(`hostname "`+long+`" is too long (maximum 64 bytes)`, func(c *container.Config) { c.Hostname = long }),
		health("Interval in Healthcheck cannot be less than 1ms", container.HealthConfig{Interval: time.Microsecond}),
		health("StartInterval in Healthcheck cannot be less than 1ms", container.HealthConfig{StartInterval: -1}),
		health("Retries in Healthcheck cannot be negative", container.HealthConfig{Retries: -1}),

		host("can't create 'AutoRemove' container with restart policy", func(h *hostConfig) { h.AutoRemove, h.RestartPolicy.Name = true, "always" }),
		host(`bad format for add-host: "x"`, func(h *hostConfig) { h.ExtraHosts = []string{"x"} }),
		host(`invalid IP address in add-host: "y"`, func(h *hostConfig) { h.ExtraHosts = []string{"x:y"} }),
		host("invalid restart policy: unknown policy 'x'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", func(h *hostConfig) { h.RestartPolicy.Name = "x" }),
		host(`invalid CapAdd: unknown capability: "CAP_FOO"`, func(h *hostConfig) { h.CapAdd = []string{"FOO"} }),
		host(`invalid CapDrop: unknown capability: "CAP_"`, func(h *hostConfig) { h.CapDrop = []string{""} }),
		host("invalid isolation 'hyperv' on linux", func(h *hostConfig) { h.Isolation = "hyperv" }),
		host("invalid Annotations: the empty string is not permitted as an annotation key", func(h *hostConfig) { h.Annotations = map[string]string{"": "x"} }),
		host(`invalid --security-opt 2: "a=b"`, func(h *hostConfig) { h.SecurityOpt = []string{"a=b"} }),
		host("invalid device cgroup rule format: 'x'", func(h *hostConfig) { h.DeviceCgroupRules = []string{"x"} }),
		host("invalid mount path: 'rel' mount path must be absolute", func(h *hostConfig) { h.Tmpfs = map[string]string{"rel": ""} }),
		host("invalid specification: destination can't be '/'", func(h *hostConfig) { h.Tmpfs = map[string]string{"/x/..": ""} }),
		host(`invalid tmpfs option "a"`, func(h *hostConfig) { h.Tmpfs = map[string]string{"/x": "a"} }),
		host(`invalid port specification: "x"`, func(h *hostConfig) {
			h.PortBindings = network.PortMap{network.MustParsePort("80/tcp"): {{HostIP: netip.Addr{}, HostPort: "x"}}}
		}),

		host("invalid IPC mode: foo", func(h *hostConfig) { h.IpcMode = "foo" }),
		host("invalid PID mode: container:", func(h *hostConfig) { h.PidMode = "container:" }),
		host("invalid UTS mode: foo", func(h *hostConfig) { h.UTSMode = "foo" }),
		host("invalid cgroup namespace mode: foo", func(h *hostConfig) { h.CgroupnsMode = "foo" }),
		host("SHM size can not be less than 0", func(h *hostConfig) { h.ShmSize = -1 }),
		host("Invalid value 2000, range for oom score adj is [-1000, 1000]", func(h *hostConfig) { h.OomScoreAdj = 2000 }),
		host("invalid ulimit type: foo", func(h *hostConfig) { h.Ulimits = []*container.Ulimit{nil, {Name: "foo"}} }),
		host("ulimit soft limit must be less than or equal to hard limit: 9 > 8", func(h *hostConfig) { h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 9, Hard: 8}} }),
		host("ulimit soft limit must be less than or equal to hard limit: -1 > 8", func(h *hostConfig) { h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: -1, Hard: 8}} }),
		host("ulimit core is given twice", func(h *hostConfig) { h.Ulimits = []*container.Ulimit{{Name: "core"}, {Name: "core"}} }),

		host("Minimum memory limit allowed is 6MB", func(h *hostConfig) { h.Memory = 1 }),
		host("Minimum memory limit allowed is 6MB", func(h *hostConfig) { h.Memory = -1 }),
		host("Minimum memoryswap limit should be larger than memory limit, see usage", func(h *hostConfig) { h.Memory, h.MemorySwap = 10<<20, 7<<20 }),
		host("You should always set the Memory limit when using Memoryswap limit, see usage", func(h *hostConfig) { h.MemorySwap = 7 << 20 }),
		host("Invalid value: 200, valid memory swappiness range is 0-100", func(h *hostConfig) { h.MemorySwappiness = ptr[int64](200) }),
		host("Minimum memory reservation allowed is 6MB", func(h *hostConfig) { h.MemoryReservation = 1 }),
		host("Minimum memory limit can not be less than memory reservation limit, see usage", func(h *hostConfig) { h.Memory, h.MemoryReservation = 7<<20, 8<<20 }),
		host("cpu real-time runtime cannot be higher than cpu real-time period", func(h *hostConfig) { h.CPURealtimePeriod, h.CPURealtimeRuntime = 1000, 1001 }),
		host("Conflicting options: Nano CPUs and CPU Period cannot both be set", func(h *hostConfig) { h.NanoCPUs, h.CPUPeriod = 1, 1 }),
		host("Conflicting options: Nano CPUs and CPU Quota cannot both be set", func(h *hostConfig) { h.NanoCPUs, h.CPUQuota = 1, 1 }),
		host("range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available", func(h *hostConfig) { h.NanoCPUs = 5e9 }),
		host("range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available", func(h *hostConfig) { h.NanoCPUs = -1 }),
		host("invalid CPU shares (-1): value must be a positive integer", func(h *hostConfig) { h.CPUShares = -1 }),
		host("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)", func(h *hostConfig) { h.CPUPeriod = 999 }),
		host("CPU cfs quota can not be less than 1ms (i.e. 1000)", func(h *hostConfig) { h.CPUQuota = 999 }),
		host("Requested CPUs are not available - requested 9, available: 0-3", func(h *hostConfig) { h.CpusetCpus = "9" }),
		host("Invalid value a for cpuset cpus: invalid format: a", func(h *hostConfig) { h.CpusetCpus = "a" }),
		host("Requested memory nodes are not available - requested 1, available: 0", func(h *hostConfig) { h.CpusetMems = "1" }),
		host("Invalid value 0-9999 for cpuset mems: value of out range, maximum is 8192", func(h *hostConfig) { h.CpusetMems = "0-9999" }),
		host("Range of blkio weight is from 10 to 1000", func(h *hostConfig) { h.BlkioWeight = 9 }),
		host("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps", func(h *hostConfig) { h.IOMaximumIOps = 1 }),
	} {
		cfg, hc := &container.Config{}, &hostConfig{}
		want := c(cfg, hc)
		if _, err := New(v1Host()).Validate(hc, cfg); err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	for _, r := range []container.Resources{{CPURealtimePeriod: 1000}, {CPURealtimeRuntime: 900}, {CPURealtimePeriod: 1000, CPURealtimeRuntime: 1001}} {
		if _, err := New(v2Host()).Validate(&hostConfig{Resources: r}, nil); err == nil || err.Error() != "kernel does not support CPU real-time scheduler" || !errdefs.IsInvalidArgument(err) {
			t.Errorf("real time %d of %d with version 2: %v", r.CPURealtimeRuntime, r.CPURealtimePeriod, err)
		}
	}
	for _, r := range []container.Resources{{CPURealtimePeriod: 1000}, {CPURealtimeRuntime: 900}, {CPURealtimePeriod: 1000, CPURealtimeRuntime: 1000}} {
		if _, err := New(v1Host()).Validate(&hostConfig{Resources: r}, nil); err != nil {
			t.Errorf("real time %d of %d: %v", r.CPURealtimeRuntime, r.CPURealtimePeriod, err)
		}
	}
	h := v2Host()
	h.SystemdCgroup = true
	hc := &hostConfig{}
	hc.CgroupParent = "/a"
	if _, err := New(h).Validate(hc, nil); err == nil || err.Error() != `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"` {
		t.Errorf("cgroup parent: %v", err)
	}
}

// TestValidateDiscards: a kernel that can limit nothing.
func TestValidateDiscards(t *testing.T) {
	full := func() *container.HostConfig {
		throttle := []*blkiodev.ThrottleDevice{{Path: "/dev/null", Rate: 1}}
		hc := &container.HostConfig{NetworkMode: "bridge", CgroupnsMode: "private"}
		hc.Resources = container.Resources{
			Memory: 64 << 20, MemorySwap: 128 << 20, MemoryReservation: 32 << 20, MemorySwappiness: ptr[int64](1), OomKillDisable: ptr(true), PidsLimit: ptr[int64](5),
			CPUShares: 5, CPUPeriod: 5000, CPUQuota: 5000, CPUPercent: 5, CpusetCpus: "0", BlkioWeight: 500,
			BlkioWeightDevice:  []*blkiodev.WeightDevice{{Path: "/dev/null", Weight: 10}},
			BlkioDeviceReadBps: throttle, BlkioDeviceWriteBps: throttle, BlkioDeviceReadIOps: throttle, BlkioDeviceWriteIOps: throttle,
		}
		return hc
	}
	hc := full()
	warnings, err := New(Host{CPUs: 1}).Validate(hc, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
		"Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
		"Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.",
		"Your kernel does not support OomKillDisable. OomKillDisable discarded.",
		"Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
		"Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
		"Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.",
		"linux does not support CPU percent. Percent discarded.",
		"Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
		"Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
		"Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.",
		"Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded.",
		"Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded.",
		"Your kernel does not support IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded.",
		"Your kernel does not support IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded.",
		"IPv4 forwarding is disabled. Networking will not work.",
		"Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.",
	}
	if strings.Join(warnings, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s", strings.Join(warnings, "\n"))
	}
	res, err := Resources(hc.Resources)
	if err != nil || res.Memory != nil || res.CPU != nil || res.BlockIO != nil || res.Pids != nil {
		t.Errorf("something is left: %+v, %v", res, err)
	}

	hc = full()
	if warnings, err := New(v1Host()).Validate(hc, &container.Config{WorkingDir: "/a/../b"}); err != nil || len(warnings) != 1 {
		t.Errorf("a kernel that can: %q, %v", warnings, err) // but for CPU percent
	}

	h := v1Host()
	h.Cgroup.Features = cgroup.Features{MemoryLimit: true}
	hc = &container.HostConfig{NetworkMode: "host", PortBindings: network.PortMap{network.MustParsePort("80/tcp"): nil}}
	hc.Memory = 64 << 20
	warnings, err = New(h).Validate(hc, nil)
	if err != nil || len(warnings) != 2 || hc.MemorySwap != -1 ||
		warnings[0] != "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap." ||
		warnings[1] != "Published ports are discarded when using host network mode" {
		t.Errorf("%q, %v, swap %d", warnings, err, hc.MemorySwap)
	}
	hc.NanoCPUs = 1
	if _, err := New(h).Validate(hc, nil); err == nil || err.Error() != "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted" {
		t.Error(err)
	}
	r := &container.Resources{MemorySwap: 1 << 30, MemorySwappiness: ptr[int64](-1), OomKillDisable: ptr(false)}
	if w, err := New(h).ValidateResources(r, true); err != nil || len(w) != 0 || r.MemorySwappiness != nil || r.OomKillDisable != nil {
		t.Errorf("an update: %q, %v, %+v", w, err, r)
	}
	r = &container.Resources{OomKillDisable: ptr(true)}
	if w, err := New(v1Host()).ValidateResources(r, false); err != nil || len(w) != 1 || !strings.HasPrefix(w[0], "OOM killer is disabled for the container, but no memory limit") {
		t.Errorf("%q, %v", w, err)
	}
	if w, err := New(v1Host()).Validate(nil, nil); w != nil || err != nil {
		t.Errorf("nothing: %q, %v", w, err)
	}
}
