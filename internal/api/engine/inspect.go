package engine

import (
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
)

// inspectAnswer is a container for inspection, with what older versions had
// besides the newest type.
type inspectAnswer struct {
	*apicontainer.InspectResponse
	Config          configAnswer
	HostConfig      hostConfigAnswer
	NetworkSettings any
}

type configAnswer struct {
	*apicontainer.Config
	OnBuild    *[]string `json:"OnBuild,omitempty"`
	MacAddress string    `json:"MacAddress,omitempty"`
}

type hostConfigAnswer struct {
	*apicontainer.HostConfig
	KernelMemory    *int64 `json:"KernelMemory,omitempty"`
	KernelMemoryTCP *int64 `json:"KernelMemoryTCP,omitempty"`
}

// networkSettings have the same order of fields as Docker's answers.
type networkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  network.PortMap
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
	Networks               map[string]*network.EndpointSettings
}

func (c containerRoutes) inspect(w *response, r *request) error {
	v, err := c.cfg.Containers.Get(r.name)
	if err != nil {
		return err
	}
	a := c.inspectAnswer(&v, r.version)
	if r.query.bool("size") {
		rw, root, err := c.cfg.Containers.Size(r.Context(), string(v.ID))
		if err != nil {
			return err
		}
		a.SizeRw, a.SizeRootFs = &rw, &root
	}
	return writeJSON(w, http.StatusOK, a)
}

func (c containerRoutes) inspectAnswer(v *container.View, ver version) inspectAnswer {
	args, mounts := v.Args, v.Mounts
	if args == nil {
		args = []string{}
	}
	if mounts == nil {
		mounts = []container.Mount{}
	}
	in := &apicontainer.InspectResponse{
		ID: string(v.ID), Created: v.Created.UTC().Format(time.RFC3339Nano),
		Path: v.Path, Args: args, State: stateAnswer(&v.State),
		Image: v.ImageID, LogPath: v.LogPath, Name: "/" + v.Name, RestartCount: v.RestartCount,
		Driver: c.cfg.StorageDriver, Platform: v.Platform, AppArmorProfile: v.AppArmorProfile,
		Mounts: mounts,
	}
	if len(v.ExecIDs) > 0 {
		in.ExecIDs = v.ExecIDs
	}
	if !begun(v) {
		in.LogPath = ""
	} else if c.cfg.ContainerDir != "" { // the first start writes them
		dir := filepath.Join(c.cfg.ContainerDir, string(v.ID))
		in.ResolvConfPath = filepath.Join(dir, "resolv.conf")
		in.HostnamePath = filepath.Join(dir, "hostname")
		in.HostsPath = filepath.Join(dir, "hosts")
	}
	if ver.before(52) {
		in.GraphDriver = &storage.DriverData{Name: c.cfg.StorageDriver}
	} else {
		in.Storage = &storage.Storage{RootFS: &storage.RootFSStorage{
			Snapshot: &storage.RootFSStorageSnapshot{Name: c.cfg.StorageDriver},
		}}
	}
	a := inspectAnswer{
		InspectResponse: in,
		Config:          configOf(v, ver),
		HostConfig:      hostConfigOf(v, ver),
		NetworkSettings: c.networkSettings(v, ver),
	}
	a.HostConfig.Links = c.shownLinks(v)
	return a
}

// begun tells whether a start has been tried.
func begun(v *container.View) bool { return !v.State.StartedAt.IsZero() || v.State.Error != "" }

func stateAnswer(st *container.State) *apicontainer.State {
	restarting := st.Status == container.Restarting
	a := &apicontainer.State{
		Status: apicontainer.ContainerState(shownStatus(st)), Running: st.Running() || restarting,
		Paused: st.Status == container.Paused, Restarting: restarting, OOMKilled: st.OOMKilled,
		Dead: st.Status == container.Dead, ExitCode: st.ExitCode, Error: st.Error,
		StartedAt:  st.StartedAt.UTC().Format(time.RFC3339Nano),
		FinishedAt: st.FinishedAt.UTC().Format(time.RFC3339Nano),
	}
	if st.Running() {
		a.Pid = st.Pid
	}
	if h := st.Health; h != nil {
		a.Health = &apicontainer.Health{Status: apicontainer.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: h.Log}
		if h.Log == nil {
			a.Health.Log = []*apicontainer.HealthcheckResult{}
		}
	}
	return a
}

func configOf(v *container.View, ver version) configAnswer {
	conf := *v.Config
	if conf.Labels == nil {
		conf.Labels = map[string]string{}
	}
	a := configAnswer{Config: &conf}
	if ver.before(52) || len(conf.OnBuild) > 0 {
		a.OnBuild = &conf.OnBuild
	}
	if ver.before(52) {
		if asked := v.Networking[string(v.HostConfig.NetworkMode)]; asked != nil {
			a.MacAddress = asked.MacAddress.String()
		}
	}
	return a
}

// hostConfigOf follows Docker in which lists are null and which are empty when
// nothing is in them.
func hostConfigOf(v *container.View, ver version) hostConfigAnswer {
	h := *v.HostConfig
	orEmpty(&h.BlkioWeightDevice)
	orEmpty(&h.BlkioDeviceReadBps)
	orEmpty(&h.BlkioDeviceWriteBps)
	orEmpty(&h.BlkioDeviceReadIOps)
	orEmpty(&h.BlkioDeviceWriteIOps)
	orEmpty(&h.Devices)
	orEmpty(&h.Ulimits)
	orEmpty(&h.DNS)
	orEmpty(&h.DNSOptions)
	orEmpty(&h.DNSSearch)
	if h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if !h.Privileged {
		if h.MaskedPaths == nil {
			h.MaskedPaths = maskedPaths
		}
		if h.ReadonlyPaths == nil {
			h.ReadonlyPaths = readonlyPaths
		}
	}
	if ver.before(56) {
		h.Umask = nil
	}
	if ver.before(43) {
		h.Annotations = nil
	}
	a := hostConfigAnswer{HostConfig: &h}
	if ver.before(42) {
		var none int64
		a.KernelMemory, a.KernelMemoryTCP = &none, &none
	}
	return a
}

func orEmpty[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

// What an unprivileged container may not see, and not write, as the runtime
// specification of a container has them by default.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// networkSettings are those of the newest type, and before 1.52 also the
// container's place on the default network at their top.
func (c containerRoutes) networkSettings(v *container.View, ver version) any {
	ns := networkSettings{Ports: network.PortMap{}, Networks: map[string]*network.EndpointSettings{}}
	known := c.remembering()
	eachNetwork(v, func(name string, asked *network.EndpointSettings, ep *endpoint) {
		ep = known(v, name, ep)
		es := endpointSettings(v, asked, ep)
		if ver.before(45) && ep != nil && apicontainer.NetworkMode(name).IsUserDefined() {
			es.Aliases = append(es.Aliases[:len(es.Aliases):len(es.Aliases)], v.ID.Short())
		}
		ns.Networks[name] = &es
		if name == network.NetworkBridge && ep != nil {
			ns.EndpointID, ns.MacAddress = es.EndpointID, es.MacAddress
			ns.Gateway, ns.IPAddress, ns.IPPrefixLen = es.Gateway, es.IPAddress, es.IPPrefixLen
			ns.IPv6Gateway, ns.GlobalIPv6Address, ns.GlobalIPv6PrefixLen = es.IPv6Gateway, es.GlobalIPv6Address, es.GlobalIPv6PrefixLen
		}
	})
	if v.State.Running() && len(v.Endpoints) > 0 {
		for port := range v.Config.ExposedPorts {
			ns.Ports[port] = nil
		}
		for i := range v.Endpoints {
			for port, bindings := range v.Endpoints[i].Ports {
				ns.Ports[port] = append(ns.Ports[port], bindings...)
			}
		}
	}
	if v.State.Running() && c.cfg.Sandbox != nil {
		ns.SandboxID, ns.SandboxKey = c.cfg.Sandbox(v.ID)
	}
	if ver.before(52) {
		return ns
	}
	return apicontainer.NetworkSettings{SandboxID: ns.SandboxID, SandboxKey: ns.SandboxKey, Ports: ns.Ports, Networks: ns.Networks}
}
