package daemon

import (
	"context"
	"os"
	goruntime "runtime"
	"time"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/sys/cgroup"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"
)

// storageDriver is what Docker calls layers stacked by overlayfs.
const storageDriver = "overlay2"

// systemInfo answers for the engine as a whole; it is the API's System.
type systemInfo struct {
	d *Daemon
}

// Info is what `docker info` shows.
func (s systemInfo) Info(ctx context.Context) (*system.Info, error) {
	d := s.d
	images, err := d.images.List(ctx)
	if err != nil {
		return nil, err
	}
	h, now := d.host, d.now()
	info := &system.Info{
		ID: d.id, Images: len(images), Driver: storageDriver,
		DriverStatus:       [][2]string{{"Backing Filesystem", filesystem(d.cfg.DataRoot)}, {"Snapshotter", "overlayfs"}},
		Plugins:            system.PluginsInfo{Volume: d.volumeDrivers(), Network: d.networkDrivers(), Log: logKinds().Names()},
		IPv4Forwarding:     d.cfg.IPForward,
		Debug:              now.cfg.LogLevel == "debug",
		NFd:                openFiles(),
		NGoroutines:        goruntime.NumGoroutine(),
		NEventsListener:    0,
		SystemTime:         time.Now().Format(time.RFC3339Nano),
		LoggingDriver:      d.cfg.LogDriver,
		KernelVersion:      h.Kernel,
		OperatingSystem:    h.OperatingSystem,
		OSVersion:          h.OSVersion,
		OSType:             "linux",
		Architecture:       h.Machine,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     now.cfg.service(),
		NCPU:               h.CPUs,
		MemTotal:           h.Memory,
		DockerRootDir:      d.cfg.DataRoot,
		Name:               h.Hostname,
		Labels:             now.cfg.Labels,
		GenericResources:   d.orchestrator.generic(),
		ServerVersion:      Version,
		Runtimes:           map[string]system.RuntimeWithStatus{},
		DefaultRuntime:     now.cfg.Runtime,
		Swarm:              d.orchestrator.swarm.Info(),
		LiveRestoreEnabled: true,
		InitBinary:         "docker-init",
		SecurityOptions:    s.security(),
		FirewallBackend:    &system.FirewallInfo{Driver: "nftables"},
		CDISpecDirs:        []string{},
		Warnings:           []string{},
	}
	for name, r := range now.runtimes {
		info.Runtimes[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: r.Path, Args: r.Args}}
	}
	s.deviceInfo(info)
	s.count(info)
	s.cgroups(info)
	if on, why := d.safe.SafeMode(); on {
		info.Warnings = append(info.Warnings, "WARNING: SAFE MODE: "+why+"; the engine starts no container by itself (escale system safe-mode off ends it)")
	}
	return info, nil
}

func (s systemInfo) count(info *system.Info) {
	for _, v := range s.d.containers.List() {
		info.Containers++
		switch v.State.Status {
		case container.Running, container.Restarting:
			info.ContainersRunning++
		case container.Paused:
			info.ContainersPaused++
		default:
			info.ContainersStopped++
		}
	}
}

// deviceInfo lists the devices that containers can have by name.
func (s systemInfo) deviceInfo(info *system.Info) {
	if s.d.devices == nil {
		return
	}
	info.CDISpecDirs = s.d.cfg.CDISpecDirs
	names, warnings := s.d.devices.List()
	for _, n := range names {
		info.DiscoveredDevices = append(info.DiscoveredDevices, system.DeviceInfo{Source: "cdi", ID: n})
	}
	info.Warnings = append(info.Warnings, warnings...)
}

// security names the confinement that containers get by default.
func (s systemInfo) security() []string {
	opts := []string{}
	if s.d.facts.AppArmor {
		opts = append(opts, "name=apparmor")
	}
	if s.d.facts.Seccomp {
		opts = append(opts, "name=seccomp,profile="+s.d.cfg.SeccompProfile)
	}
	if s.d.facts.Cgroup.Mode == cgroup.Unified {
		opts = append(opts, "name=cgroupns")
	}
	if s.d.cfg.NoNewPrivileges {
		opts = append(opts, "name=no-new-privileges")
	}
	return opts
}

// cgroups says what limits the kernel can set, and warns of those it cannot.
func (s systemInfo) cgroups(info *system.Info) {
	c := s.d.facts.Cgroup
	f := c.Features
	info.CgroupDriver, info.CgroupVersion = s.d.cfg.driver, c.Version()
	info.MemoryLimit, info.SwapLimit, info.OomKillDisable = f.MemoryLimit, f.SwapLimit, f.OOMKillDisable
	info.CPUCfsPeriod, info.CPUCfsQuota, info.CPUShares, info.CPUSet, info.PidsLimit = f.CPUCfs, f.CPUCfs, f.CPUShares, f.Cpuset, f.PidsLimit
	v1 := c.Version() == "1"
	block := func(v1name, v2name string) string {
		if v1 {
			return "No blkio throttle." + v1name + " support"
		}
		return "No io.max (" + v2name + ") support"
	}
	for _, lack := range []struct {
		have bool
		what string
	}{
		{f.MemoryLimit, "No memory limit support"},
		{f.SwapLimit, "No swap limit support"},
		{f.OOMKillDisable || !v1, "No oom kill disable support"}, // version 2 has none
		{f.CPUCfs, "No cpu cfs quota support"},
		{f.CPUCfs, "No cpu cfs period support"},
		{f.CPUShares, "No cpu shares support"},
		{f.Cpuset, "No cpuset support"},
		{f.BlkioWeight || v1, "No io.weight support"}, // newer kernels have it with version 2 only
		{f.BlkioWeightDevice || v1, "No io.weight (per device) support"},
		{f.BlkioReadBps, block("read_bps_device", "rbps")},
		{f.BlkioWriteBps, block("write_bps_device", "wbps")},
		{f.BlkioReadIOps, block("read_iops_device", "riops")},
		{f.BlkioWriteIOps, block("write_iops_device", "wiops")},
		{info.IPv4Forwarding, "IPv4 forwarding is disabled"},
	} {
		if !lack.have {
			info.Warnings = append(info.Warnings, "WARNING: "+lack.what)
		}
	}
}

// Version is what `docker version` shows of the server.
func (s systemInfo) Version(context.Context) system.VersionResponse {
	return system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Escale"},
		Version:  Version, APIVersion: engine.MaxVersion, MinAPIVersion: engine.MinVersion,
		Os: "linux", Arch: goruntime.GOARCH, GitCommit: GitCommit, GoVersion: goruntime.Version(),
		KernelVersion: s.d.host.Kernel, BuildTime: BuildTime,
		Components: []system.ComponentVersion{{Name: "Engine", Version: Version, Details: map[string]string{
			"ApiVersion": engine.MaxVersion, "MinAPIVersion": engine.MinVersion, "Arch": goruntime.GOARCH, "Os": "linux",
			"GitCommit": GitCommit, "GoVersion": goruntime.Version(), "KernelVersion": s.d.host.Kernel, "BuildTime": BuildTime, "Experimental": "false",
		}}},
	}
}

// Ping feeds the headers of /_ping.
func (s systemInfo) Ping() engine.PingInfo {
	safe, _ := s.d.safe.SafeMode()
	return engine.PingInfo{OSType: "linux", BuilderVersion: "2", SwarmState: s.d.orchestrator.swarm.State(), SafeMode: safe}
}

// filesystem names what a directory lies on, as `docker info` shows it.
func filesystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "<unknown>"
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "extfs"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return "<unknown>"
}

// openFiles counts the engine's own descriptors.
func openFiles() int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return -1
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	return len(names)
}
