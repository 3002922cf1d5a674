package swarm

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
)

// Bounds, most of them Docker's.
const (
	maxReplicas = 10_000
	maxName     = 63
	minMemory   = 4 << 20
	minCPU      = 1e6     // a thousandth of one
	maxSecret   = 512000  // bytes, exclusive
	maxConfig   = 1024000 // bytes, exclusive
)

var (
	serviceName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)
	fileName    = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`)
)

// checkName looks at the name of a service.
func checkName(name string) error {
	switch {
	case name == "":
		return invalid("meta: name must be provided")
	case !serviceName.MatchString(name):
		return invalid("name must be valid as a DNS name component")
	case len(name) > maxName:
		return invalid("name must be 63 characters or fewer")
	}
	return nil
}

// checkFileName looks at the name of a secret or config.
func checkFileName(name string) error {
	if len(name) == 0 || len(name) > 64 || !fileName.MatchString(name) {
		return invalid("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
	}
	return nil
}

// checkTask looks at what tasks are to be made from.
func checkTask(t *swarm.TaskSpec) error {
	switch {
	case t.PluginSpec != nil || t.Runtime == swarm.RuntimePlugin:
		return invalid("tasks are containers: the runtime plugin is not supported")
	case t.NetworkAttachmentSpec != nil || t.Runtime == swarm.RuntimeNetworkAttachment:
		return invalid("tasks are containers: the runtime attachment is not supported")
	case t.Runtime != "" && t.Runtime != swarm.RuntimeContainer:
		return invalid("RuntimeSpec: unimplemented runtime in service spec: %s", t.Runtime)
	case t.ContainerSpec == nil:
		return invalid("TaskSpec: missing runtime")
	}
	if err := checkContainer(t.ContainerSpec); err != nil {
		return err
	}
	return checkResources(t.Resources)
}

func checkContainer(c *swarm.ContainerSpec) error {
	if c.Image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseAnyReference(c.Image); err != nil {
		return invalid("ContainerSpec: %q is not a valid repository/tag", c.Image)
	}
	if c.StopGracePeriod != nil && *c.StopGracePeriod < 0 {
		return invalid("ContainerSpec: stop-grace-period cannot be negative")
	}
	if c.OomScoreAdj < -1000 || c.OomScoreAdj > 1000 {
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", c.OomScoreAdj)
	}
	if c.Isolation != "" && c.Isolation != container.IsolationDefault {
		return invalid("isolation %q: only default is possible", c.Isolation)
	}
	if h := c.Healthcheck; h != nil && min(h.Interval, h.Timeout, h.StartPeriod, h.StartInterval) < 0 {
		return invalid("ContainerSpec: the times of a health check cannot be negative")
	}
	if h := c.Healthcheck; h != nil && h.Retries < 0 {
		return invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
	}
	for _, line := range c.Hosts {
		if f := strings.Fields(line); len(f) < 2 {
			return invalid("ContainerSpec: host %q: an address and names are wanted", line)
		}
	}
	for _, u := range c.Ulimits {
		if u == nil {
			return invalid("ContainerSpec: an empty ulimit")
		}
	}
	return checkMounts(c)
}

func checkMounts(c *swarm.ContainerSpec) error {
	seen := map[string]bool{}
	for _, m := range c.Mounts {
		target := path.Clean(m.Target)
		switch {
		case !slices.Contains(mountKinds, m.Type):
			return invalid("ContainerSpec: mounts of type %q are not supported", m.Type)
		case m.Target == "" || !path.IsAbs(m.Target) && !strings.Contains(m.Target, "{{"):
			return invalid("ContainerSpec: invalid mount target, must be an absolute path: %s", m.Target)
		case seen[target]:
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		case m.Type == "bind" && !path.IsAbs(m.Source) && !strings.Contains(m.Source, "{{"):
			return invalid("ContainerSpec: invalid bind mount source, must be an absolute path: %s", m.Source)
		}
		seen[target] = true
	}
	return nil
}

// checkTemplates looks whether what asks for the task's own values can be filled in.
func checkTemplates(c *swarm.ContainerSpec, labels map[string]string) error {
	var place cluster.Place
	place.Service.Labels = labels
	try := func(what, text string) error {
		if _, err := place.Expand(text, nil); err != nil {
			return invalid("expanding %s failed: %s", what, err)
		}
		return nil
	}
	if err := try("hostname", c.Hostname); err != nil {
		return err
	}
	for _, e := range c.Env {
		if err := try("env", e); err != nil {
			return err
		}
	}
	for _, m := range c.Mounts {
		texts := []string{m.Source, m.Target}
		if v := m.VolumeOptions; v != nil {
			for _, k := range sortedKeys(v.Labels) {
				texts = append(texts, v.Labels[k])
			}
			if v.DriverConfig != nil {
				for _, k := range sortedKeys(v.DriverConfig.Options) {
					texts = append(texts, v.DriverConfig.Options[k])
				}
			}
		}
		for _, text := range texts {
			if err := try("mounts", text); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	amounts := func(cpus, memory int64) error {
		switch {
		case cpus != 0 && cpus < minCPU:
			return invalid("invalid cpu value %g: Must be at least %g", float64(cpus)/1e9, float64(minCPU)/1e9)
		case memory != 0 && memory < minMemory:
			return invalid("invalid memory value %d: Must be at least 4MiB", memory)
		}
		return nil
	}
	if l := r.Limits; l != nil {
		if err := amounts(l.NanoCPUs, l.MemoryBytes); err != nil {
			return err
		}
		if l.Pids < 0 {
			return invalid("invalid limit of processes: %d", l.Pids)
		}
	}
	if have := r.Reservations; have != nil {
		if err := amounts(have.NanoCPUs, have.MemoryBytes); err != nil {
			return err
		}
		for _, g := range have.GenericResources {
			if g.NamedResourceSpec != nil {
				return invalid("invalid generic-resource request `%s=%s`, Named Generic Resources is not supported for service create or update", g.NamedResourceSpec.Kind, g.NamedResourceSpec.Value)
			}
			if g.DiscreteResourceSpec == nil || g.DiscreteResourceSpec.Kind == "" || g.DiscreteResourceSpec.Value < 0 {
				return invalid("invalid generic-resource request: a kind and a number are wanted")
			}
		}
	}
	if r.SwapBytes != nil && (r.Limits == nil || r.Limits.MemoryBytes <= 0) {
		return invalid("swap can only be limited together with memory")
	}
	if r.SwapBytes != nil && *r.SwapBytes < -1 {
		return invalid("invalid swap value %d", *r.SwapBytes)
	}
	if r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100) {
		return invalid("invalid memory swappiness %d: 0 to 100 wanted", *r.MemorySwappiness)
	}
	return nil
}
