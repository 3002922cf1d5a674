package spec

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	container "escale.dev/escale/internal/cli/spec"
)

// Create makes the spec of a new service, of an image and what it is called with.
// Errors are those of flags that say what cannot be, and of names that are not there.
func (o *Options) Create(ctx context.Context, image string, args []string, names Names) (*swarm.ServiceSpec, error) {
	env, err := o.environment()
	if err != nil {
		return nil, err
	}
	health, err := o.health()
	if err != nil {
		return nil, err
	}
	mode, err := o.serviceMode()
	if err != nil {
		return nil, err
	}
	update, rollback := o.rollouts(nil, nil)
	if (mode.ReplicatedJob != nil || mode.GlobalJob != nil) && (update != nil || rollback != nil) {
		return nil, errors.New("update and rollback configuration is not supported for jobs")
	}
	networks, err := o.attach(ctx, nil, names)
	if err != nil {
		return nil, err
	}
	reserved, err := parseGeneric(o.generic.Values)
	if err != nil {
		return nil, err
	}
	c := o.containerSpec(image, args, env, health)
	s := &swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: o.name, Labels: pairs(o.labels.Values)},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: c,
			Networks:      networks,
			Resources: &swarm.ResourceRequirements{
				Limits:       &swarm.Limit{NanoCPUs: int64(o.limitCPU), MemoryBytes: o.limitMemory.Bytes(), Pids: o.limitPids},
				Reservations: &swarm.Resources{NanoCPUs: int64(o.reserveCPU), MemoryBytes: o.reserveMemory.Bytes(), GenericResources: reserved},
			},
			RestartPolicy: o.restart(nil),
			Placement:     &swarm.Placement{Constraints: o.constraints.Values, Preferences: o.preferences, MaxReplicas: o.maxReplicas},
			LogDriver:     o.driver(nil),
		},
		Mode: mode, UpdateConfig: update, RollbackConfig: rollback,
		EndpointSpec: &swarm.EndpointSpec{Mode: swarm.ResolutionMode(strings.ToLower(o.endpointMode)), Ports: o.ports},
	}
	if o.credential.source != "" {
		c.Privileges = &swarm.Privileges{CredentialSpec: o.credential.value}
	}
	return s, o.createFiles(ctx, c, names)
}

func (o *Options) containerSpec(image string, args, env []string, health *containertypes.HealthConfig) *swarm.ContainerSpec {
	c := &swarm.ContainerSpec{
		Image: image, Args: args, Command: o.entrypoint, Env: env, Hostname: o.hostname, Labels: pairs(o.containerLabels.Values),
		Dir: o.workdir, User: o.user, Groups: o.groups.Values, StopSignal: o.stopSignal, TTY: o.tty, ReadOnly: o.readOnly,
		Mounts: o.mounts.List(), Init: &o.init,
		DNSConfig:       &swarm.DNSConfig{Nameservers: addresses(o.dns.Values), Search: o.dnsSearch.Values, Options: o.dnsOptions.Values},
		Hosts:           hostLines(o.hosts.Values),
		StopGracePeriod: o.stopGrace.value,
		Healthcheck:     health,
		Isolation:       containertypes.Isolation(o.isolation),
		Sysctls:         pairs(o.sysctls.Values),
		Ulimits:         o.ulimits.List(),
		OomScoreAdj:     o.oomScoreAdj,
	}
	c.CapabilityAdd, c.CapabilityDrop = Capabilities(o.capAdd.Values, o.capDrop.Values)
	return c
}

// environment are the variables of files and flags: the last of a name wins, and
// stands where it was said.
func (o *Options) environment() ([]string, error) {
	all, err := container.Environment(o.envFile.Values, o.env.Values)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range all {
		name, _, _ := strings.Cut(e, "=")
		out = slices.DeleteFunc(out, func(have string) bool { return have != e && strings.HasPrefix(have, name+"=") })
		out = append(out, e)
	}
	return out, nil
}

func (o *Options) health() (*containertypes.HealthConfig, error) {
	given := o.healthCmd != "" || o.healthInterval.value != nil || o.healthTimeout.value != nil || o.healthStart.value != nil ||
		o.healthStarting.value != nil || o.healthRetries != 0
	switch {
	case o.noHealthcheck && given:
		return nil, errHealth
	case o.noHealthcheck:
		return &containertypes.HealthConfig{Test: []string{"NONE"}}, nil
	case !given:
		return nil, nil
	}
	h := &containertypes.HealthConfig{
		Interval: o.healthInterval.orZero(), Timeout: o.healthTimeout.orZero(), Retries: o.healthRetries,
		StartPeriod: o.healthStart.orZero(), StartInterval: o.healthStarting.orZero(),
	}
	if o.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", o.healthCmd}
	}
	return h, nil
}

var errHealth = errors.New("--no-healthcheck conflicts with --health-* options")

func (o *Options) serviceMode() (swarm.ServiceMode, error) {
	n, concurrent := o.replicas.value, o.maxConcurrent.value
	var m swarm.ServiceMode
	if o.mode == "global" || o.mode == "global-job" {
		// The two ask in an order of their own, as the first that is wrong is told.
		wrongs := []error{errReplicas(n), errMaxReplicas(o.maxReplicas), errConcurrent(concurrent)}
		if o.mode == "global-job" {
			wrongs = []error{wrongs[1], wrongs[2], wrongs[0]}
		}
		for _, err := range wrongs {
			if err != nil {
				return m, err
			}
		}
	}
	switch o.mode {
	case "global":
		m.Global = &swarm.GlobalService{}
	case "global-job":
		m.GlobalJob = &swarm.GlobalJob{}
	case "replicated":
		m.Replicated = &swarm.ReplicatedService{Replicas: n}
		return m, errConcurrent(concurrent)
	case "replicated-job":
		if concurrent == nil {
			concurrent = n
		}
		m.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: concurrent, TotalCompletions: n}
	default:
		return m, errors.New("Unknown mode: " + o.mode + ", only replicated and global supported") //nolint:staticcheck // Docker's words.
	}
	return m, nil
}

func errReplicas(n *uint64) error {
	if n == nil {
		return nil
	}
	return errors.New("replicas can only be used with replicated or replicated-job mode")
}

func errMaxReplicas(n uint64) error {
	if n == 0 {
		return nil
	}
	return errors.New("replicas-max-per-node can only be used with replicated or replicated-job mode")
}

func errConcurrent(n *uint64) error {
	if n == nil {
		return nil
	}
	return errors.New("max-concurrent can only be used with replicated-job mode")
}

// pairs splits KEY=VALUE entries; the last of a key wins.
func pairs(entries []string) map[string]string {
	m := make(map[string]string, len(entries))
	for _, e := range entries {
		k, v, _ := strings.Cut(e, "=")
		m[k] = v
	}
	return m
}

// addresses reads what was checked when the flag was.
func addresses(words []string) []netip.Addr {
	var list []netip.Addr
	for _, w := range words {
		if a, err := netip.ParseAddr(w); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// hostLines are lines of a hosts file, of NAME:IP.
func hostLines(hosts []string) []string {
	var lines []string
	for _, h := range hosts {
		if name, ip, ok := strings.Cut(h, ":"); ok {
			lines = append(lines, ip+" "+name)
		}
	}
	return lines
}
