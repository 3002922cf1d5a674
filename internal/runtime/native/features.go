package native

import (
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/inside"
	"escale.dev/escale/internal/runtime/native/mounts"
	"escale.dev/escale/internal/runtime/native/seccomp"
)

// features says what the runtime can do (features.md of the specification).
func (r *runtime) features(values, []string) (int, error) {
	yes, no := true, false
	modes, flags := inside.MemoryPolicies()
	f := features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specVersion,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: mounts.Names(),
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp:         &features.Seccomp{Enabled: &yes, Actions: seccomp.Actions(), Operators: seccomp.Operators(), Archs: seccomp.Archs(), KnownFlags: seccomp.Flags(), SupportedFlags: seccomp.Flags()},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			NetDevices:      &features.NetDevices{Enabled: &no},
			MemoryPolicy:    &features.MemoryPolicy{Modes: modes, Flags: flags},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
	}
	for _, c := range capabilities {
		f.Linux.Capabilities = append(f.Linux.Capabilities, "CAP_"+c)
	}
	return 0, printed(r, &f, codec.WriteFeatures)
}
