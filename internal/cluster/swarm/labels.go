package swarm

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// The labels by which services ask for what Docker's have no words for.
const (
	labelPermit     = "escale.permit"     // of the swarm: rights, separated by commas
	labelPrivileged = "escale.privileged" // of containers: true
	labelDevices    = "escale.devices"    // of containers: as run --device has them, separated by commas
	labelSchedule   = "escale.schedule"   // of services that are jobs: when it is done
)

// The rights that a swarm can permit to services.
const (
	permitPrivileged = "privileged"
	permitDevices    = "devices"
)

// checkPermit looks at the rights that a swarm permits.
func checkPermit(labels map[string]string) error {
	for _, right := range list(labels[labelPermit]) {
		if right != permitPrivileged && right != permitDevices {
			return invalid("label %s: %q is none of %s, %s", labelPermit, right, permitPrivileged, permitDevices)
		}
	}
	return nil
}

// list are the parts of a text between commas.
func list(s string) (out []string) {
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// toRights gives containers the rights that their labels ask for.
func toRights(labels map[string]string, host *container.HostConfig) error {
	if text, ok := labels[labelPrivileged]; ok {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return invalid("label %s: %q is neither true nor false", labelPrivileged, text)
		}
		host.Privileged = on
	}
	for _, text := range list(labels[labelDevices]) {
		d, ok := device(text)
		if !ok {
			return invalid("label %s: %q is no device: /dev/fuse, or /dev/on-host:/dev/in-container:rwm", labelDevices, text)
		}
		host.Devices = append(host.Devices, d)
	}
	return nil
}

// device reads one as run --device has it.
func device(text string) (d container.DeviceMapping, ok bool) {
	parts := strings.Split(text, ":")
	d = container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
	rest := parts[1:]
	if n := len(rest); n > 0 && rights(rest[n-1]) {
		d.CgroupPermissions, rest = rest[n-1], rest[:n-1]
	}
	if len(rest) == 1 {
		d.PathInContainer, rest = rest[0], nil
	}
	return d, len(rest) == 0 && isWhole(d.PathOnHost) && isWhole(d.PathInContainer)
}

// isWhole tells whether a path says all of the way.
func isWhole(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && p != "/" }

// rights tells whether a text is what can be done with a device: r, w, m, each once.
func rights(s string) bool {
	return s != "" && strings.Trim(s, "rwm") == "" && strings.Count(s, "r") < 2 && strings.Count(s, "w") < 2 && strings.Count(s, "m") < 2
}

// permitted refuses rights that the swarm does not permit.
func permitted(v store.View, t *cluster.TaskSpec) error {
	c, err := the(v)
	if err != nil {
		return err
	}
	has := list(c.Spec.Labels[labelPermit])
	for right, label := range map[string]string{permitPrivileged: labelPrivileged, permitDevices: labelDevices} {
		if asks := right == permitPrivileged && t.Host.Privileged || right == permitDevices && len(t.Host.Devices) > 0; asks && !slices.Contains(has, right) {
			return say(errdefs.ErrPermissionDenied, "label %s: this swarm does not permit that to services: its label %s has to name %q", label, labelPermit, right)
		}
	}
	return nil
}

// toSchedule makes a job one that is done when its label says.
func toSchedule(labels map[string]string, m *cluster.Mode) error {
	text, ok := labels[labelSchedule]
	switch {
	case !ok:
		return nil
	case m.Job == nil && !m.GlobalJob:
		return invalid("label %s: only jobs can have a schedule: --mode replicated-job or global-job", labelSchedule)
	}
	if _, err := cluster.ParseSchedule(text); err != nil {
		return invalid("label %s: %s", labelSchedule, errtext.Of(err))
	}
	m.Schedule = text
	return nil
}
