package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// namespaces are those that a container does not share with the host. The mode
// "container:…" of network, IPC and PID stands for a path in o.
func (b *Builder) namespaces(o Options) ([]specs.LinuxNamespace, error) {
	hc := o.HostConfig
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, path string) {
		out = append(out, specs.LinuxNamespace{Type: t, Path: path})
	}
	if !hc.NetworkMode.IsHost() {
		if hc.NetworkMode.IsContainer() && o.NetNS == "" {
			return nil, words("container %s: no network namespace given for mode %s", o.ID, hc.NetworkMode)
		}
		add(specs.NetworkNamespace, o.NetNS)
	}
	if !hc.UTSMode.Valid() {
		return nil, invalid("invalid UTS mode: %v", hc.UTSMode)
	}
	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace, "")
	}

	switch mode := hc.PidMode; {
	case !mode.Valid():
		return nil, invalid("invalid PID mode: %v", mode)
	case mode.IsHost():
	case mode.IsContainer():
		if o.PIDNS == "" {
			return nil, words("container %s: no PID namespace given for mode %s", o.ID, mode)
		}
		add(specs.PIDNamespace, o.PIDNS)
	default:
		add(specs.PIDNamespace, "")
	}

	switch mode := hc.IpcMode; {
	case !mode.Valid():
		return nil, invalid("invalid IPC mode: %v", mode)
	case mode.IsHost():
	case mode.IsContainer():
		if o.IPCNS == "" {
			return nil, words("container %s: no IPC namespace given for mode %s", o.ID, mode)
		}
		add(specs.IPCNamespace, o.IPCNS)
	default:
		add(specs.IPCNamespace, "")
	}

	if !hc.CgroupnsMode.Valid() {
		return nil, invalid("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	}
	mode := hc.CgroupnsMode
	if mode.IsEmpty() {
		mode = b.defaultCgroupns()
	}
	if mode.IsPrivate() && b.host.Cgroup.Namespaces {
		add(specs.CgroupNamespace, "")
	}
	return out, nil
}

// sysctls are a container's kernel parameters: Docker's defaults for a network
// namespace of its own, then what was asked for.
func (b *Builder) sysctls(o Options) map[string]string {
	out := map[string]string{}
	if o.HostConfig.NetworkMode.IsPrivate() {
		// What the capabilities of a container allow anyway, for processes
		// that are not root too.
		if b.host.PingGroupRange {
			out["net.ipv4.ping_group_range"] = "0 2147483647"
		}
		if b.host.UnprivilegedPorts {
			out["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
	}
	// The specification's domainname is newer than some runtimes; this sysctl
	// has always been the same thing.
	if o.Config.Domainname != "" && !o.HostConfig.UTSMode.IsHost() {
		out["kernel.domainname"] = o.Config.Domainname
	}
	for k, v := range o.HostConfig.Sysctls {
		out[k] = v
	}
	return out
}
