package swarm

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// Docker's defaults of what a spec leaves out.
const (
	restartDelay = 5 * time.Second
	stopGrace    = 10 * time.Second
	monitor      = 5 * time.Second // the update loop's
)

// toSpec makes of what was asked what the loops work with. What cannot be honoured is
// refused. What names stand for (images, networks, secrets) is found elsewhere.
func toSpec(asked *swarm.ServiceSpec) (out cluster.ServiceSpec, err error) {
	if err := checkName(asked.Name); err != nil {
		return out, err
	}
	if out.Mode, err = toMode(&asked.Mode); err != nil {
		return out, err
	}
	if err := toSchedule(asked.Labels, &out.Mode); err != nil {
		return out, err
	}
	if out.Task, err = toTask(&asked.TaskTemplate); err != nil {
		return out, err
	}
	if err := checkTemplates(asked.TaskTemplate.ContainerSpec, asked.Labels); err != nil {
		return out, err
	}
	for to, r := range map[**cluster.Rollout]*swarm.UpdateConfig{&out.Update: asked.UpdateConfig, &out.Rollback: asked.RollbackConfig} {
		if r != nil && (out.Mode.Job != nil || out.Mode.GlobalJob) {
			return out, invalid("job mode services do not have an update or rollback config")
		}
		if *to, err = toRollout(r); err != nil {
			return out, err
		}
	}
	if err := toEndpoint(asked.EndpointSpec, &out); err != nil {
		return out, err
	}
	for _, n := range asked.TaskTemplate.Networks {
		a := cluster.Attachment{Network: n.Target}
		if len(n.Aliases) > 0 || len(n.DriverOpts) > 0 {
			a.Settings = &network.EndpointSettings{Aliases: n.Aliases, DriverOpts: n.DriverOpts}
		}
		out.Networks = append(out.Networks, a)
	}
	out.Labels, out.Swarm = asked.Labels, asked
	return out, nil
}

func toMode(m *swarm.ServiceMode) (out cluster.Mode, err error) {
	set := 0
	for _, is := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if is {
			set++
		}
	}
	one := uint64(1)
	switch {
	case set > 1:
		return out, invalid("must specify only one service mode")
	case m.Global != nil:
		return cluster.Mode{Global: true}, nil
	case m.GlobalJob != nil:
		return cluster.Mode{GlobalJob: true}, nil
	case m.ReplicatedJob != nil:
		at := *cmp.Or(m.ReplicatedJob.MaxConcurrent, &one)
		total := *cmp.Or(m.ReplicatedJob.TotalCompletions, &at)
		if at == 0 || total == 0 {
			return out, invalid("maximum concurrent jobs and total completions must not be 0")
		}
		out.Job = &cluster.Job{Concurrent: at, Total: total}
	default:
		out.Replicated = &cluster.Replicated{Replicas: 1}
		if m.Replicated != nil && m.Replicated.Replicas != nil {
			out.Replicated.Replicas = *m.Replicated.Replicas
		}
	}
	if out.Replicated != nil && out.Replicated.Replicas > maxReplicas || out.Job != nil && max(out.Job.Total, out.Job.Concurrent) > maxReplicas {
		return out, invalid("%d replicas are possible", maxReplicas)
	}
	return out, nil
}

func toTask(t *swarm.TaskSpec) (out cluster.TaskSpec, err error) {
	c := t.ContainerSpec
	if err := checkTask(t); err != nil {
		return out, err
	}
	out.Container = &container.Config{
		Image: c.Image, Labels: c.Labels, Entrypoint: c.Command, Cmd: c.Args, Hostname: c.Hostname, Env: c.Env, WorkingDir: c.Dir,
		User: c.User, Tty: c.TTY, OpenStdin: c.OpenStdin, StopSignal: c.StopSignal, Healthcheck: c.Healthcheck,
	}
	out.Host = &container.HostConfig{
		GroupAdd: c.Groups, Init: c.Init, ReadonlyRootfs: c.ReadOnly, Mounts: c.Mounts, Isolation: c.Isolation, Sysctls: c.Sysctls,
		CapAdd: c.CapabilityAdd, CapDrop: c.CapabilityDrop, OomScoreAdj: int(c.OomScoreAdj),
		Resources: container.Resources{Ulimits: c.Ulimits},
	}
	if out.Host.SecurityOpt, err = toSecurity(c.Privileges); err != nil {
		return out, err
	}
	if err := toRights(c.Labels, out.Host); err != nil {
		return out, err
	}
	for _, line := range c.Hosts {
		f := strings.Fields(line)
		for _, name := range f[1:] {
			out.Host.ExtraHosts = append(out.Host.ExtraHosts, name+":"+f[0])
		}
	}
	if d := c.DNSConfig; d != nil {
		out.Host.DNS, out.Host.DNSSearch, out.Host.DNSOptions = d.Nameservers, d.Search, d.Options
	}
	if d := t.LogDriver; d != nil {
		out.Host.LogConfig = container.LogConfig{Type: d.Name, Config: d.Options}
	}
	out.Grace = stopGrace
	if c.StopGracePeriod != nil {
		out.Grace = *c.StopGracePeriod
	}
	if out.Grace == 0 { // none at all, which only the container's own can say
		out.Container.StopTimeout = new(int)
	}
	out.Force = t.ForceUpdate
	if err := toFiles(c, &out); err != nil {
		return out, err
	}
	toResources(t.Resources, &out)
	if out.Restart, err = toRestart(t.RestartPolicy); err != nil {
		return out, err
	}
	out.Placement, err = toPlacement(t.Placement)
	return out, err
}

func toResources(r *swarm.ResourceRequirements, out *cluster.TaskSpec) {
	if r == nil {
		return
	}
	h := &out.Host.Resources
	if l := r.Limits; l != nil {
		h.NanoCPUs, h.Memory = l.NanoCPUs, l.MemoryBytes
		if l.Pids != 0 {
			h.PidsLimit = &l.Pids
		}
	}
	if r.SwapBytes != nil {
		h.MemorySwap = *r.SwapBytes
		if *r.SwapBytes >= 0 {
			h.MemorySwap += h.Memory
		}
	}
	h.MemorySwappiness = r.MemorySwappiness
	if have := r.Reservations; have != nil {
		out.Reserved = cluster.Resources{NanoCPUs: have.NanoCPUs, Memory: have.MemoryBytes}
		for _, g := range have.GenericResources {
			if out.Reserved.Generic == nil {
				out.Reserved.Generic = map[string]int64{}
			}
			out.Reserved.Generic[g.DiscreteResourceSpec.Kind] += g.DiscreteResourceSpec.Value
		}
	}
}

func toRestart(r *swarm.RestartPolicy) (cluster.RestartPolicy, error) {
	out := cluster.RestartPolicy{Condition: cluster.RestartAny, Delay: restartDelay}
	if r == nil {
		return out, nil
	}
	switch r.Condition {
	case "", swarm.RestartPolicyConditionAny:
	case swarm.RestartPolicyConditionOnFailure:
		out.Condition = cluster.RestartOnFailure
	case swarm.RestartPolicyConditionNone:
		out.Condition = cluster.RestartNone
	default:
		return out, invalid("invalid RestartCondition: %q", r.Condition)
	}
	if r.Delay != nil {
		out.Delay = *r.Delay
	}
	if r.MaxAttempts != nil {
		out.Attempts = *r.MaxAttempts
	}
	if r.Window != nil {
		out.Window = *r.Window
	}
	if out.Delay < 0 {
		return out, invalid("TaskSpec: restart-delay cannot be negative")
	}
	if out.Window < 0 {
		return out, invalid("TaskSpec: restart-window cannot be negative")
	}
	return out, nil
}

func toPlacement(p *swarm.Placement) (out cluster.Placement, err error) {
	if p == nil {
		return out, nil
	}
	if _, err := cluster.ParseConstraints(p.Constraints); err != nil {
		return out, invalid("%s", errtext.Of(err))
	}
	out = cluster.Placement{Constraints: p.Constraints, MaxPerNode: p.MaxReplicas}
	for _, pref := range p.Preferences {
		if pref.Spread == nil || pref.Spread.SpreadDescriptor == "" {
			return out, invalid("a placement preference spreads over a label of nodes: \"node.labels.zone\"")
		}
		out.Spread = append(out.Spread, pref.Spread.SpreadDescriptor)
	}
	for _, is := range p.Platforms {
		out.Platforms = append(out.Platforms, cluster.Platform{OS: is.OS, Architecture: is.Architecture})
	}
	return out, nil
}

func toRollout(u *swarm.UpdateConfig) (*cluster.Rollout, error) {
	if u == nil {
		return nil, nil
	}
	out := &cluster.Rollout{
		Parallelism: u.Parallelism, Delay: u.Delay, OnFailure: cluster.FailureAction(u.FailureAction), Monitor: u.Monitor,
		MaxFailureRatio: float64(u.MaxFailureRatio), StartFirst: u.Order == swarm.UpdateOrderStartFirst,
	}
	switch {
	case u.Delay < 0:
		return nil, invalid("TaskSpec: update-delay cannot be negative")
	case u.Monitor < 0:
		return nil, invalid("TaskSpec: update-monitor cannot be negative")
	case !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1):
		return nil, invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")
	case u.Order != "" && u.Order != swarm.UpdateOrderStartFirst && u.Order != swarm.UpdateOrderStopFirst:
		return nil, invalid("unrecognized update order %s", u.Order)
	}
	switch u.FailureAction {
	case "", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback:
		return out, nil
	}
	return nil, invalid("unrecognized update failure action %s", u.FailureAction)
}

func toEndpoint(e *swarm.EndpointSpec, out *cluster.ServiceSpec) error {
	if e == nil {
		return nil
	}
	switch e.Mode {
	case "", swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR:
	default:
		return invalid("unrecognized resolution mode: %s", e.Mode)
	}
	out.Endpoint = cluster.EndpointMode(e.Mode)
	type place struct {
		port  uint32
		proto network.IPProtocol
		host  bool
	}
	seen := map[place]bool{}
	for _, p := range e.Ports {
		proto := network.IPProtocol(strings.ToLower(string(cmp.Or(p.Protocol, network.TCP))))
		host := p.PublishMode == swarm.PortConfigPublishModeHost
		switch {
		case p.PublishMode != "" && !host && p.PublishMode != swarm.PortConfigPublishModeIngress:
			return invalid("invalid publish mode %q", p.PublishMode)
		case !slices.Contains([]network.IPProtocol{network.TCP, network.UDP, network.SCTP}, proto):
			return invalid("invalid protocol %q of port %d", p.Protocol, p.TargetPort)
		case p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535:
			return invalid("invalid port: %d to %d", p.PublishedPort, p.TargetPort)
		case e.Mode == swarm.ResolutionModeDNSRR && !host:
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		case p.PublishedPort != 0 && seen[place{p.PublishedPort, proto, host}]:
			return invalid("EndpointSpec: duplicate published ports provided")
		}
		seen[place{p.PublishedPort, proto, host}] = true
		out.Ports = append(out.Ports, cluster.Port{Name: p.Name, Proto: proto, Target: uint16(p.TargetPort), Published: uint16(p.PublishedPort), Host: host})
	}
	return nil
}

// Where secrets and configs are put when their targets are no whole paths.
const (
	secretsDir = "/run/secrets"
	configsDir = "/"
)

func toFiles(c *swarm.ContainerSpec, out *cluster.TaskSpec) error {
	taken := map[string]string{}
	add := func(what, dir, id, name, target, uid, gid string, mode uint32) (cluster.FileRef, error) {
		r := cluster.FileRef{ID: id, Name: name, Target: target, UID: uid, GID: gid, Mode: mode}
		if !path.IsAbs(target) {
			r.Target = path.Join(dir, target)
		}
		switch other := taken[r.Target]; {
		case id == "" || name == "":
			return r, invalid("malformed %s reference", what)
		case target == "" || r.Target == dir || r.Target == "/":
			return r, invalid("malformed file target reference, %s %s has no target", what, name)
		case mode > 0o7777:
			return r, invalid("malformed file target reference, %s %s: mode %o", what, name, mode)
		case other != "":
			return r, invalid("%s references '%s' and '%s' have a conflicting target: '%s'", what, other, name, target)
		}
		for _, id := range []string{uid, gid} {
			if strings.Trim(id, "0123456789") != "" || len(id) > 9 {
				return r, invalid("malformed file target reference, %s %s: %q is no id of a user or group", what, name, id)
			}
		}
		taken[r.Target] = name
		return r, nil
	}
	for _, s := range c.Secrets {
		if s == nil || s.File == nil {
			return invalid("malformed secret reference, no target provided")
		}
		r, err := add("secret", secretsDir, s.SecretID, s.SecretName, s.File.Name, s.File.UID, s.File.GID, uint32(s.File.Mode))
		if err != nil {
			return err
		}
		out.Secrets = append(out.Secrets, r)
	}
	for _, s := range c.Configs {
		if s == nil || s.File == nil || s.Runtime != nil {
			return invalid("malformed config reference, a file as its target is wanted")
		}
		r, err := add("config", configsDir, s.ConfigID, s.ConfigName, s.File.Name, s.File.UID, s.File.GID, uint32(s.File.Mode))
		if err != nil {
			return err
		}
		out.Configs = append(out.Configs, r)
	}
	return nil
}

// toSecurity is what --security-opt would say.
func toSecurity(p *swarm.Privileges) (out []string, err error) {
	if p == nil {
		return nil, nil
	}
	if p.CredentialSpec != nil {
		return nil, invalid("credential specs are for Windows, and cannot be had")
	}
	if s := p.SELinuxContext; s != nil {
		if s.Disable {
			out = append(out, "label=disable")
		}
		for _, l := range []struct{ what, is string }{{"user", s.User}, {"role", s.Role}, {"type", s.Type}, {"level", s.Level}} {
			if l.is != "" {
				out = append(out, "label="+l.what+":"+l.is)
			}
		}
	}
	if s := p.Seccomp; s != nil {
		switch {
		case (s.Mode == "" || s.Mode == swarm.SeccompModeDefault) && len(s.Profile) == 0:
		case s.Mode == swarm.SeccompModeUnconfined && len(s.Profile) == 0:
			out = append(out, "seccomp=unconfined")
		case s.Mode == swarm.SeccompModeCustom && len(s.Profile) > 0:
			out = append(out, "seccomp="+string(s.Profile))
		default:
			return nil, invalid("invalid seccomp mode %q: a profile is for mode custom, which needs one", s.Mode)
		}
	}
	if a := p.AppArmor; a != nil {
		switch a.Mode {
		case "", swarm.AppArmorModeDefault:
		case swarm.AppArmorModeDisabled:
			out = append(out, "apparmor=unconfined")
		default:
			return nil, invalid("invalid AppArmor mode %q", a.Mode)
		}
	}
	if p.NoNewPrivileges {
		out = append(out, "no-new-privileges=true")
	}
	return out, nil
}

// mountKinds are those that tasks can have.
var mountKinds = []mount.Type{mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeImage}
