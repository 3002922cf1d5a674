package native

import (
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// features says what the runtime can do (features.md of the specification).
func (r *runtime) features(values, []string) (int, error) {
	yes, no := true, false
	f := features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specVersion,
		Hooks: []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &yes},
			Seccomp:         &features.Seccomp{Enabled: &yes},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
	}
	for _, c := range capabilities {
		f.Linux.Capabilities = append(f.Linux.Capabilities, "CAP_"+c)
	}
	return 0, r.print(f)
}
