package compose

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// addresses are those an endpoint is to have.
func addresses(n *types.ServiceNetworkConfig, set *network.EndpointSettings) error {
	var err error
	addr := func(s string) (out netip.Addr) {
		if s != "" && err == nil {
			if out, err = netip.ParseAddr(s); err != nil {
				err = refused("", "%s", err)
			}
		}
		return out
	}
	ipam := network.EndpointIPAMConfig{IPv4Address: addr(n.Ipv4Address), IPv6Address: addr(n.Ipv6Address)}
	for _, a := range n.LinkLocalIPs {
		ipam.LinkLocalIPs = append(ipam.LinkLocalIPs, addr(a))
	}
	if err != nil {
		return err
	}
	if ipam.IPv4Address.IsValid() || ipam.IPv6Address.IsValid() || len(ipam.LinkLocalIPs) > 0 {
		set.IPAMConfig = &ipam
	}
	if n.MacAddress != "" {
		mac, err := net.ParseMAC(n.MacAddress)
		if err != nil {
			return refused("", "%s", err)
		}
		set.MacAddress = network.HardwareAddr(mac)
	}
	return nil
}

// hostConfig is how the container stands on its host, its published ports apart.
func hostConfig(p *types.Project, s *types.ServiceConfig) (*container.HostConfig, error) {
	h := &container.HostConfig{
		NetworkMode: container.NetworkMode(s.NetworkMode), CapAdd: s.CapAdd, CapDrop: s.CapDrop,
		CgroupnsMode: container.CgroupnsMode(s.Cgroup), DNSOptions: s.DNSOpts, DNSSearch: s.DNSSearch, ExtraHosts: extraHosts(s.ExtraHosts),
		GroupAdd: s.GroupAdd, OomScoreAdj: int(s.OomScoreAdj), Privileged: s.Privileged, ReadonlyRootfs: s.ReadOnly,
		SecurityOpt: s.SecurityOpt, StorageOpt: s.StorageOpt, UTSMode: container.UTSMode(s.Uts), UsernsMode: container.UsernsMode(s.UserNSMode),
		ShmSize: int64(s.ShmSize), Sysctls: s.Sysctls, Runtime: s.Runtime, Umask: s.Umask, Init: s.Init, VolumeDriver: s.VolumeDriver,
		Annotations: s.Annotations, Isolation: container.Isolation(s.Isolation),
	}
	for _, a := range s.DNS {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return nil, refused("dns", "%s", err)
		}
		h.DNS = append(h.DNS, addr)
	}
	if s.Logging != nil {
		h.LogConfig = container.LogConfig{Type: s.Logging.Driver, Config: s.Logging.Options}
	}
	if s.UseAPISocket {
		return nil, refused("use_api_socket", "not possible: bind the socket, and give logins as a secret")
	}
	for _, t := range s.Tmpfs {
		path, opts, _ := strings.Cut(t, ":")
		if h.Tmpfs == nil {
			h.Tmpfs = map[string]string{}
		}
		h.Tmpfs[path] = opts
	}
	for _, v := range s.VolumesFrom {
		// "service[:ro]" or "container:name[:ro]".
		if name, ok := strings.CutPrefix(v, "container:"); ok {
			h.VolumesFrom = append(h.VolumesFrom, name)
			continue
		}
		name, access, _ := strings.Cut(v, ":")
		h.VolumesFrom = append(h.VolumesFrom, strings.TrimSuffix(containerName(p, name)+":"+access, ":"))
	}
	ipc, pid, net := other(p, s.Ipc), other(p, s.Pid), other(p, s.NetworkMode)
	h.IpcMode, h.PidMode, h.NetworkMode = container.IpcMode(ipc), container.PidMode(pid), container.NetworkMode(net)
	for _, v := range s.Volumes {
		if v.Type == "bind" && v.Bind != nil && v.Bind.SELinux != "" {
			// Mounts have no word for labels of SELinux; binds have.
			mode := map[bool]string{true: "ro", false: "rw"}[v.ReadOnly]
			if v.Bind.Propagation != "" {
				mode += "," + v.Bind.Propagation
			}
			h.Binds = append(h.Binds, v.Source+":"+v.Target+":"+mode+","+v.Bind.SELinux)
			continue
		}
		m, err := mountOf(p, v)
		if err != nil {
			return nil, err
		}
		h.Mounts = append(h.Mounts, m)
	}
	return h, resources(s, &h.Resources)
}

// extraHosts are names with their addresses, in one order whenever they are read: those of one
// name stay as they are written.
func extraHosts(h types.HostsList) []string {
	out := []string{} // apps that are kept have it so without any
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, addr := range h[name] {
			out = append(out, name+":"+addr)
		}
	}
	return out
}

// other is a mode that may name a service, by its first container.
func other(p *types.Project, mode string) string {
	if name, ok := strings.CutPrefix(mode, "service:"); ok {
		return "container:" + containerName(p, name)
	}
	return mode
}

// containerName is the name of a service's first container.
func containerName(p *types.Project, service string) string {
	if s, ok := p.Services[service]; ok && s.ContainerName != "" {
		return s.ContainerName
	}
	return p.Name + "-" + service + "-1"
}

// mountOf is one entry of volumes.
func mountOf(p *types.Project, v types.ServiceVolumeConfig) (mount.Mount, error) {
	m := mount.Mount{Type: mount.Type(v.Type), Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly, Consistency: mount.Consistency(v.Consistency)}
	switch v.Type {
	case "volume":
		if known, ok := p.Volumes[v.Source]; ok {
			m.Source = known.Name
		}
		if o := v.Volume; o != nil {
			m.VolumeOptions = &mount.VolumeOptions{NoCopy: o.NoCopy, Subpath: o.Subpath, Labels: o.Labels}
		}
	case "bind":
		if o := v.Bind; o != nil {
			m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(o.Propagation), CreateMountpoint: bool(o.CreateHostPath)}
			switch o.Recursive {
			case "", "enabled":
			case "disabled":
				m.BindOptions.NonRecursive = true
			case "writable":
				m.BindOptions.ReadOnlyNonRecursive = true
			case "readonly":
				m.BindOptions.ReadOnlyForceRecursive = true
			default:
				return m, refused("volumes", "%s: bind.recursive %q: enabled, disabled, writable or readonly wanted", v.Target, o.Recursive)
			}
		}
	case "tmpfs":
		if o := v.Tmpfs; o != nil {
			m.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: int64(o.Size), Mode: os.FileMode(o.Mode)}
		}
	case "image":
		if o := v.Image; o != nil {
			m.ImageOptions = &mount.ImageOptions{Subpath: o.SubPath}
		}
	default:
		return m, refused("volumes", "%s: type %q is not possible", v.Target, v.Type)
	}
	return m, nil
}

// resources are the limits, from deploy and from the keys of the service itself.
func resources(s *types.ServiceConfig, r *container.Resources) error {
	*r = container.Resources{
		CgroupParent: s.CgroupParent, CPUShares: s.CPUShares, Memory: int64(s.MemLimit), NanoCPUs: nano(float64(s.CPUS)), CPUPeriod: s.CPUPeriod,
		CPUQuota: s.CPUQuota, CPURealtimePeriod: s.CPURTPeriod, CPURealtimeRuntime: s.CPURTRuntime, CpusetCpus: s.CPUSet,
		DeviceCgroupRules: s.DeviceCgroupRules, MemoryReservation: int64(s.MemReservation), MemorySwap: int64(s.MemSwapLimit), CPUCount: s.CPUCount, CPUPercent: int64(s.CPUPercent),
	}
	if s.MemSwappiness != 0 {
		n := int64(s.MemSwappiness)
		r.MemorySwappiness = &n
	}
	if s.OomKillDisable {
		r.OomKillDisable = &s.OomKillDisable
	}
	if s.PidsLimit != 0 {
		r.PidsLimit = &s.PidsLimit
	}
	requests := slices.Clone(s.Gpus)
	if s.Deploy != nil {
		if l := s.Deploy.Resources.Limits; l != nil {
			r.NanoCPUs, r.Memory = cmp.Or(nano(float64(l.NanoCPUs)), r.NanoCPUs), cmp.Or(int64(l.MemoryBytes), r.Memory)
			if l.Pids != 0 {
				r.PidsLimit = &l.Pids
			}
		}
		if v := s.Deploy.Resources.Reservations; v != nil {
			r.MemoryReservation = cmp.Or(int64(v.MemoryBytes), r.MemoryReservation)
			requests = append(requests, v.Devices...)
		}
	}
	for _, d := range requests {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{
			Driver: d.Driver, Count: int(d.Count), DeviceIDs: d.IDs, Capabilities: [][]string{d.Capabilities}, Options: d.Options,
		})
	}
	for _, d := range s.Devices {
		if d.Source == d.Target && strings.Contains(d.Source, "=") { // a device of CDI
			r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{d.Source}})
			continue
		}
		r.Devices = append(r.Devices, container.DeviceMapping{PathOnHost: d.Source, PathInContainer: d.Target, CgroupPermissions: d.Permissions})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Ulimits)) {
		u := s.Ulimits[name]
		soft, hard := int64(u.Soft), int64(u.Hard)
		if u.Single != 0 {
			soft, hard = int64(u.Single), int64(u.Single)
		}
		r.Ulimits = append(r.Ulimits, &container.Ulimit{Name: name, Soft: soft, Hard: hard})
	}
	if s.BlkioConfig != nil {
		return blkio(s.BlkioConfig, r)
	}
	return nil
}

func blkio(b *types.BlkioConfig, r *container.Resources) error {
	r.BlkioWeight = b.Weight
	for _, w := range b.WeightDevice {
		r.BlkioWeightDevice = append(r.BlkioWeightDevice, &blkiodev.WeightDevice{Path: w.Path, Weight: w.Weight})
	}
	for _, x := range []struct {
		from []types.ThrottleDevice
		to   *[]*blkiodev.ThrottleDevice
	}{{b.DeviceReadBps, &r.BlkioDeviceReadBps}, {b.DeviceWriteBps, &r.BlkioDeviceWriteBps}, {b.DeviceReadIOps, &r.BlkioDeviceReadIOps}, {b.DeviceWriteIOps, &r.BlkioDeviceWriteIOps}} {
		for _, d := range x.from {
			if d.Rate < 0 {
				return refused("blkio_config", "%s: rate %d", d.Path, d.Rate)
			}
			*x.to = append(*x.to, &blkiodev.ThrottleDevice{Path: d.Path, Rate: uint64(d.Rate)})
		}
	}
	return nil
}
