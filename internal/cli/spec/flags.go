package spec

import "github.com/spf13/pflag"

// AddFlags defines every flag of `run` and `create` that describes the
// container. Flags that steer the command itself (--name, --detach, --pull…)
// are the command's own.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	o.processFlags(f)
	o.securityFlags(f)
	o.networkFlags(f)
	o.storageFlags(f)
	o.healthFlags(f)
	o.limitFlags(f)
	o.ioFlags(f)
	o.isolationFlags(f)
}

func (o *Options) processFlags(f *pflag.FlagSet) {
	o.attach.Check = checkAttach
	o.env.Check = CheckEnv
	o.labels.Check = checkLabel
	o.sysctls.check = checkSysctl
	f.VarP(&o.attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	f.VarP(&o.env, "env", "e", "Set an environment variable: NAME=VALUE, or NAME to pass it on")
	f.Var(&o.envFile, "env-file", "Read environment variables from a file")
	f.StringVar(&o.entrypoint, "entrypoint", "", "Run this instead of the image's ENTRYPOINT")
	f.Var(&o.groupAdd, "group-add", "Join an additional group")
	f.StringVarP(&o.hostname, "hostname", "h", "", "Host name of the container")
	f.StringVar(&o.domainname, "domainname", "", "NIS domain name of the container")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	f.VarP(&o.labels, "label", "l", "Set a label: KEY=VALUE")
	f.Var(&o.labelFiles, "label-file", "Read labels from a file, one a line")
	f.StringVar(&o.restart, "restart", "no", `What to do when the container exits: "no", "on-failure[:N]", "always", "unless-stopped"`)
	f.StringVar(&o.stopSignal, "stop-signal", "", "Signal that asks the container to stop")
	f.IntVar(&o.stopTimeout, "stop-timeout", 0, "Seconds to wait after that signal before killing")
	f.Var(&o.sysctls, "sysctl", "Set a kernel parameter of the container's namespaces")
	f.BoolVarP(&o.tty, "tty", "t", false, "Give the container a terminal")
	f.Var(&o.ulimits, "ulimit", "Set a resource limit: NAME=SOFT[:HARD]")
	f.StringVarP(&o.user, "user", "u", "", "User name or ID: USER[:GROUP]")
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	f.BoolVar(&o.autoRemove, "rm", false, "Remove the container and its anonymous volumes when it exits")
	f.BoolVar(&o.init, "init", false, "Run a small init as PID 1 that forwards signals and reaps processes")
	f.StringVar(&o.cidFile, "cidfile", "", "Write the container's ID to this file")
	f.Var(&o.annotations, "annotation", "Add an annotation, passed on to the OCI runtime")
}

func (o *Options) securityFlags(f *pflag.FlagSet) {
	f.Var(&o.capAdd, "cap-add", "Add a Linux capability")
	f.Var(&o.capDrop, "cap-drop", "Drop a Linux capability")
	f.BoolVar(&o.privileged, "privileged", false, "Give the container all the host's privileges")
	f.Var(&o.securityOpt, "security-opt", "Set a security option: seccomp=FILE, no-new-privileges, apparmor=PROFILE, label=…")
	f.StringVar(&o.userns, "userns", "", "User namespace to use")
	f.StringVar(&o.cgroupns, "cgroupns", "", `Cgroup namespace: "host" or "private" (default: as the engine is configured)`)
	f.BoolVar(&o.readOnly, "read-only", false, "Mount the container's root file system read-only")
}

func (o *Options) networkFlags(f *pflag.FlagSet) {
	o.extraHosts.Check = checkHost
	o.dns.Check = checkIP
	o.dnsSearch.Check = checkDNSSearch
	o.links.Check = checkLink
	f.Var(&o.extraHosts, "add-host", "Add a line to /etc/hosts: NAME:IP")
	f.Var(&o.dns, "dns", "Use this DNS server")
	f.Var(&o.dnsOptions, "dns-option", "Set a DNS option")
	f.Var(&o.dnsOptions, "dns-opt", "Set a DNS option")
	f.Var(&o.dnsSearch, "dns-search", "Search this DNS domain")
	f.Var(&o.expose, "expose", "Expose a port or a range of ports")
	f.StringVar(&o.ip4, "ip", "", "IPv4 address (e.g., 172.30.100.104)")
	f.StringVar(&o.ip6, "ip6", "", "IPv6 address (e.g., 2001:db8::33)")
	f.Var(&o.links, "link", "Link to another container: NAME[:ALIAS]")
	f.Var(&o.linkLocal, "link-local-ip", "Add an IPv4 or IPv6 link-local address")
	f.StringVar(&o.mac, "mac-address", "", "MAC address (e.g., 92:d0:c6:0a:29:33)")
	f.VarP(&o.publish, "publish", "p", "Publish a port: [IP:][HOST:]CONTAINER[/PROTO]")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "Publish every exposed port on a free port of the host")
	f.Var(&o.networks, "network", "Connect to a network: NAME, or name=NAME,alias=…,ip=…")
	f.Var(&o.networks, "net", "Connect to a network")
	f.Var(&o.aliases, "network-alias", "Add a name for the container on its network")
	f.Var(&o.aliases, "net-alias", "Add a name for the container on its network")
	hide(f, "dns-opt", "net", "net-alias")
}

func (o *Options) storageFlags(f *pflag.FlagSet) {
	f.StringVar(&o.logDriver, "log-driver", "", "Logging driver of the container")
	f.Var(&o.logOpts, "log-opt", "Set an option of the logging driver: KEY=VALUE")
	f.Var(&o.storageOpt, "storage-opt", "Set an option of the storage driver")
	f.Var(&o.tmpfs, "tmpfs", "Mount a tmpfs: PATH[:OPTIONS]")
	f.VarP(&o.volumes, "volume", "v", "Mount a volume or a host path: [SOURCE:]PATH[:OPTIONS]")
	f.StringVar(&o.volumeDriver, "volume-driver", "", "Driver of the volumes made for this container")
	f.Var(&o.volumesFrom, "volumes-from", "Mount the volumes of another container: NAME[:ro]")
	f.Var(&o.mounts, "mount", "Mount: type=bind|volume|tmpfs|image,src=…,dst=…[,readonly]…")
	f.Var(&o.shmSize, "shm-size", "Size of /dev/shm")
}

func (o *Options) healthFlags(f *pflag.FlagSet) {
	f.StringVar(&o.healthCmd, "health-cmd", "", "Command that checks the container's health")
	f.DurationVar(&o.healthInterval, "health-interval", 0, "Time between two checks (ms|s|m|h) (default 0s)")
	f.IntVar(&o.healthRetries, "health-retries", 0, "Failures in a row that make the container unhealthy")
	f.DurationVar(&o.healthTimeout, "health-timeout", 0, "Longest time one check may take (ms|s|m|h) (default 0s)")
	f.DurationVar(&o.healthStartPeriod, "health-start-period", 0, "Time to start up, in which failures do not count (ms|s|m|h) (default 0s)")
	f.DurationVar(&o.healthStartInterval, "health-start-interval", 0, "Time between two checks while starting up (ms|s|m|h) (default 0s)")
	f.BoolVar(&o.noHealthcheck, "no-healthcheck", false, "Ignore the image's HEALTHCHECK")
}

func (o *Options) limitFlags(f *pflag.FlagSet) {
	o.memorySwap.unlimited = true
	f.VarP(&o.memory, "memory", "m", "Memory limit")
	f.Var(&o.memoryReservation, "memory-reservation", "Memory soft limit")
	f.Var(&o.memorySwap, "memory-swap", "Limit of memory plus swap: '-1' for unlimited swap")
	f.Int64Var(&o.swappiness, "memory-swappiness", -1, "Eagerness to swap (0 to 100)")
	f.Var(&o.kernelMemory, "kernel-memory", "Kernel memory limit (no effect: the kernel dropped it)")
	f.BoolVar(&o.oomKillDisable, "oom-kill-disable", false, "Disable the OOM killer")
	f.IntVar(&o.oomScoreAdj, "oom-score-adj", 0, "Preference of the OOM killer (-1000 to 1000)")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "Limit of processes (-1 for unlimited)")
	f.Var(&o.cpus, "cpus", "Number of CPUs (e.g., 1.5)")
	f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "CFS period in microseconds")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "CFS quota in microseconds")
	f.Int64Var(&o.cpuRTPeriod, "cpu-rt-period", 0, "Real-time period in microseconds")
	f.Int64Var(&o.cpuRTRuntime, "cpu-rt-runtime", 0, "Real-time runtime in microseconds")
	f.StringVar(&o.cpusetCPUs, "cpuset-cpus", "", "CPUs to run on (0-3, 0,1)")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "Memory nodes to use (0-3, 0,1)")
	f.Int64Var(&o.cpuCount, "cpu-count", 0, "CPU count (Windows only)")
	f.Int64Var(&o.cpuPercent, "cpu-percent", 0, "CPU percent (Windows only)")
	hide(f, "kernel-memory", "cpu-count", "cpu-percent")
}

func (o *Options) ioFlags(f *pflag.FlagSet) {
	o.deviceRules.Check = checkDeviceRule
	o.readIOps.plain, o.writeIOps.plain = true, true
	f.Uint16Var(&o.blkioWeight, "blkio-weight", 0, "Block I/O weight, 10 to 1000, or 0 to disable (default 0)")
	f.Var(&o.blkioWeights, "blkio-weight-device", "Block I/O weight of a device: PATH:WEIGHT")
	f.Var(&o.readBps, "device-read-bps", "Limit reads from a device, bytes a second: PATH:RATE")
	f.Var(&o.readIOps, "device-read-iops", "Limit reads from a device, operations a second: PATH:RATE")
	f.Var(&o.writeBps, "device-write-bps", "Limit writes to a device, bytes a second: PATH:RATE")
	f.Var(&o.writeIOps, "device-write-iops", "Limit writes to a device, operations a second: PATH:RATE")
	f.Var(&o.devices, "device", "Add a host device: HOST[:CONTAINER][:rwm]")
	f.Var(&o.deviceRules, "device-cgroup-rule", "Add a rule to the device cgroup: 'c 42:* rmw'")
	f.Var(&o.gpus, "gpus", "Add GPUs ('all' for every one)")
	f.Var(&o.ioMaxBandwidth, "io-maxbandwidth", "I/O bandwidth of the system drive (Windows only)")
	f.Uint64Var(&o.ioMaxIOps, "io-maxiops", 0, "I/O operations of the system drive (Windows only)")
	hide(f, "io-maxbandwidth", "io-maxiops")
}

func (o *Options) isolationFlags(f *pflag.FlagSet) {
	f.StringVar(&o.pid, "pid", "", `PID namespace: "host" or "container:NAME"`)
	f.StringVar(&o.ipc, "ipc", "", `IPC namespace: "host", "none", "private", "shareable" or "container:NAME"`)
	f.StringVar(&o.uts, "uts", "", `UTS namespace: "host"`)
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "Parent cgroup of the container")
	f.StringVar(&o.isolation, "isolation", "", "Isolation technology of the container")
	f.StringVar(&o.runtime, "runtime", "", "OCI runtime to use")
}

// Gates lists the flags that need a newer API, and those that need another
// system than Linux (of which the value is empty).
func Gates() map[string]string {
	return map[string]string{
		"annotation":            "1.43",
		"health-start-interval": "1.44",
		"cpu-count":             "",
		"cpu-percent":           "",
		"io-maxbandwidth":       "",
		"io-maxiops":            "",
	}
}

func hide(f *pflag.FlagSet, names ...string) {
	for _, n := range names {
		f.Lookup(n).Hidden = true
	}
}
