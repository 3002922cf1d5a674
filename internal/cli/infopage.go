package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

// infoPage prints an engine's description, line by line as Docker's client
// does.
type infoPage struct {
	a *app
	i *system.Info
}

func (p infoPage) line(v ...any) { p.a.println(v...) }

// known prints a line unless its value is empty.
func (p infoPage) known(label, value string) {
	if value != "" {
		p.a.println(label, value)
	}
}

func (p infoPage) print() {
	p.counts()
	p.drivers()
	p.swarm()
	p.runtimes()
	p.host()
	p.network()
	p.line()
}

func (p infoPage) counts() {
	i := p.i
	p.line(" Containers:", i.Containers)
	p.line("  Running:", i.ContainersRunning)
	p.line("  Paused:", i.ContainersPaused)
	p.line("  Stopped:", i.ContainersStopped)
	p.line(" Images:", i.Images)
	p.known(" Server Version:", i.ServerVersion)
	p.known(" Storage Driver:", i.Driver)
	for _, kv := range i.DriverStatus {
		p.a.printf("  %s: %s\n", kv[0], kv[1])
	}
	for _, kv := range i.SystemStatus {
		p.a.printf(" %s: %s\n", kv[0], kv[1])
	}
}

func (p infoPage) drivers() {
	i := p.i
	p.known(" Logging Driver:", i.LoggingDriver)
	p.known(" Cgroup Driver:", i.CgroupDriver)
	p.known(" Cgroup Version:", i.CgroupVersion)
	p.line(" Plugins:")
	p.line("  Volume:", strings.Join(i.Plugins.Volume, " "))
	p.line("  Network:", strings.Join(i.Plugins.Network, " "))
	if len(i.Plugins.Authorization) > 0 {
		p.line("  Authorization:", strings.Join(i.Plugins.Authorization, " "))
	}
	p.line("  Log:", strings.Join(i.Plugins.Log, " "))
	if len(i.CDISpecDirs) > 0 {
		p.line(" CDI spec directories:")
		for _, d := range i.CDISpecDirs {
			p.line("  " + d)
		}
	}
	if len(i.DiscoveredDevices) > 0 {
		p.line(" Discovered Devices:")
		for _, d := range i.DiscoveredDevices {
			p.line("  " + d.Source + ": " + d.ID)
		}
	}
}

func (p infoPage) swarm() {
	s := &p.i.Swarm
	p.line(" Swarm:", s.LocalNodeState)
	if s.LocalNodeState == swarm.LocalNodeStateInactive || s.LocalNodeState == swarm.LocalNodeStateLocked || s.LocalNodeState == "" {
		return
	}
	p.line("  NodeID:", s.NodeID)
	if s.Error != "" {
		p.line("  Error:", s.Error)
	}
	p.line("  Is Manager:", s.ControlAvailable)
	if s.Cluster != nil && s.ControlAvailable && s.Error == "" && s.LocalNodeState != swarm.LocalNodeStateError {
		p.cluster()
	}
	p.line("  Node Address:", s.NodeAddr)
	if len(s.RemoteManagers) > 0 {
		var addrs []string
		for _, m := range s.RemoteManagers {
			addrs = append(addrs, m.Addr)
		}
		slices.Sort(addrs)
		p.line("  Manager Addresses:")
		for _, m := range addrs {
			p.line("   " + m)
		}
	}
}

func (p infoPage) cluster() {
	s := &p.i.Swarm
	c := s.Cluster
	p.line("  ClusterID:", c.ID)
	p.line("  Managers:", s.Managers)
	p.line("  Nodes:", s.Nodes)
	if c.DefaultAddrPool != nil {
		var pools strings.Builder
		for _, pool := range c.DefaultAddrPool {
			pools.WriteString(pool.String() + "  ")
		}
		p.line("  Default Address Pool:", pools.String())
		p.line("  SubnetSize:", c.SubnetSize)
	}
	if c.DataPathPort > 0 {
		p.line("  Data Path Port:", c.DataPathPort)
	}
	history := int64(0)
	if h := c.Spec.Orchestration.TaskHistoryRetentionLimit; h != nil {
		history = *h
	}
	p.line("  Orchestration:")
	p.line("   Task History Retention Limit:", history)
	p.line("  Raft:")
	p.line("   Snapshot Interval:", c.Spec.Raft.SnapshotInterval)
	if k := c.Spec.Raft.KeepOldSnapshots; k != nil {
		p.line("   Number of Old Snapshots to Retain:", *k)
	}
	p.line("   Heartbeat Tick:", c.Spec.Raft.HeartbeatTick)
	p.line("   Election Tick:", c.Spec.Raft.ElectionTick)
	p.line("  Dispatcher:")
	p.line("   Heartbeat Period:", units.HumanDuration(c.Spec.Dispatcher.HeartbeatPeriod))
	p.line("  CA Configuration:")
	p.line("   Expiry Duration:", units.HumanDuration(c.Spec.CAConfig.NodeCertExpiry))
	p.line("   Force Rotate:", c.Spec.CAConfig.ForceRotate)
	if cert := strings.TrimSpace(c.Spec.CAConfig.SigningCACert); cert != "" {
		p.a.printf("   Signing CA Certificate: \n%s\n\n", cert)
	}
	if len(c.Spec.CAConfig.ExternalCAs) > 0 {
		p.line("   External CAs:")
		for _, e := range c.Spec.CAConfig.ExternalCAs {
			p.a.printf("     %s: %s\n", e.Protocol, e.URL)
		}
	}
	p.line("  Autolock Managers:", c.Spec.EncryptionConfig.AutoLockManagers)
	p.line("  Root Rotation In Progress:", c.RootRotationInProgress)
}

func (p infoPage) runtimes() {
	i := p.i
	if len(i.Runtimes) > 0 {
		p.line(" Runtimes:", strings.Join(slices.Sorted(maps.Keys(i.Runtimes)), " "))
		p.line(" Default Runtime:", i.DefaultRuntime)
	}
	if i.OSType == "windows" {
		p.line(" Default Isolation:", i.Isolation)
	}
	if i.OSType != "linux" {
		return
	}
	p.line(" Init Binary:", i.InitBinary)
	p.line(" containerd version:", i.ContainerdCommit.ID)
	p.line(" runc version:", i.RuncCommit.ID)
	p.line(" init version:", i.InitCommit.ID)
	if len(i.SecurityOptions) == 0 {
		return
	}
	p.line(" Security Options:")
	for _, s := range i.SecurityOptions {
		p.securityOption(s)
	}
}

// securityOption prints "name=seccomp,profile=default" on two lines. Engines
// before API 1.25 send only the name.
func (p infoPage) securityOption(s string) {
	var profiles []string
	name := s
	for _, kv := range strings.Split(s, ",") {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "name":
			name = v
		case "profile":
			profiles = append(profiles, v)
		}
	}
	p.line("  " + name)
	for _, v := range profiles {
		p.line("   Profile:", v)
	}
}

func (p infoPage) host() {
	i := p.i
	p.known(" Kernel Version:", i.KernelVersion)
	p.known(" Operating System:", i.OperatingSystem)
	p.known(" OSType:", i.OSType)
	p.known(" Architecture:", i.Architecture)
	p.line(" CPUs:", i.NCPU)
	p.line(" Total Memory:", units.BytesSize(float64(i.MemTotal)))
	p.known(" Name:", i.Name)
	p.known(" ID:", i.ID)
	p.line(" Docker Root Dir:", i.DockerRootDir)
	p.line(" Debug Mode:", i.Debug)
	if i.Debug || p.a.debug {
		p.line("  File Descriptors:", i.NFd)
		p.line("  Goroutines:", i.NGoroutines)
		p.line("  System Time:", i.SystemTime)
		p.line("  EventsListeners:", i.NEventsListener)
	}
	p.known(" HTTP Proxy:", i.HTTPProxy)
	p.known(" HTTPS Proxy:", i.HTTPSProxy)
	p.known(" No Proxy:", i.NoProxy)
	if len(i.Labels) > 0 {
		p.line(" Labels:")
		for _, l := range i.Labels {
			p.line("  " + l)
		}
	}
	p.line(" Experimental:", i.ExperimentalBuild)
}

func (p infoPage) network() {
	i := p.i
	if r := i.RegistryConfig; r != nil {
		if len(r.InsecureRegistryCIDRs) > 0 || len(r.IndexConfigs) > 0 {
			p.line(" Insecure Registries:")
			for _, name := range slices.Sorted(maps.Keys(r.IndexConfigs)) {
				if c := r.IndexConfigs[name]; !c.Secure {
					p.line("  " + c.Name)
				}
			}
			for _, net := range r.InsecureRegistryCIDRs {
				p.line("  " + net.String())
			}
		}
		if len(r.Mirrors) > 0 {
			p.line(" Registry Mirrors:")
			for _, m := range r.Mirrors {
				p.line("  " + m)
			}
		}
	}
	p.line(" Live Restore Enabled:", i.LiveRestoreEnabled)
	p.known(" Product License:", i.ProductLicense)
	if len(i.DefaultAddressPools) > 0 {
		p.line(" Default Address Pools:")
		for _, d := range i.DefaultAddressPools {
			p.a.printf("   Base: %s, Size: %d\n", d.Base, d.Size)
		}
	}
}
