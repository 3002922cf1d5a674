package spec

import (
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Options holds the parsed flags of `run` and `create` that describe the
// container itself. Add it to a flag set with [Options.AddFlags], parse, then
// call [Options.Build].
type Options struct {
	attach, env, envFile, labels, labelFiles        List
	volumes, tmpfs, volumesFrom                     List
	publish, expose, links, aliases, linkLocal      List
	dns, dnsSearch, dnsOptions, extraHosts          List
	capAdd, capDrop, groupAdd, securityOpt          List
	devices, deviceRules, storageOpt, logOpts       List
	sysctls, annotations                            dict
	mounts                                          mounts
	networks                                        networks
	gpus                                            gpus
	ulimits                                         ulimits
	blkioWeights                                    weights
	readBps, writeBps, readIOps, writeIOps          throttle
	memory, memoryReservation, memorySwap           size
	kernelMemory, ioMaxBandwidth, shmSize           size
	cpus                                            nanoCPUs
	entrypoint, hostname, domainname                string
	user, workdir, stopSignal, restart, cidFile     string
	ip4, ip6, mac                                   string
	pid, uts, ipc, userns, cgroupns, cgroupParent   string
	logDriver, volumeDriver, runtime, isolation     string
	cpusetCPUs, cpusetMems, healthCmd               string
	stdin, tty, privileged, readOnly, publishAll    bool
	autoRemove, init, oomKillDisable, noHealthcheck bool
	cpuShares, cpuPeriod, cpuQuota                  int64
	cpuRTPeriod, cpuRTRuntime, cpuCount, cpuPercent int64
	swappiness, pidsLimit                           int64
	blkioWeight                                     uint16
	ioMaxIOps                                       uint64
	oomScoreAdj, stopTimeout, healthRetries         int
	healthInterval, healthTimeout                   time.Duration
	healthStartPeriod, healthStartInterval          time.Duration
}

// Request is the body of a container-create call.
type Request struct {
	Config     *container.Config
	HostConfig *container.HostConfig
	Network    *network.NetworkingConfig
	// MAC is the address asked for the first network, for engines older than
	// API 1.44, which take it from Config.MacAddress.
	MAC string
}

// AutoRemove tells whether --rm was given.
func (o *Options) AutoRemove() bool { return o.autoRemove }

// AttachGiven tells whether -a was given at least once.
func (o *Options) AttachGiven() bool { return len(o.attach.Values) > 0 }

// UseProxies adds the proxy variables of the client's configuration that the
// command line does not set itself.
func (o *Options) UseProxies(vars map[string]string) {
	have := toMap(o.env.Values)
	for _, name := range sortedKeys(vars) {
		if _, set := have[name]; !set {
			o.env.Values = append(o.env.Values, name+"="+vars[name])
		}
	}
}
