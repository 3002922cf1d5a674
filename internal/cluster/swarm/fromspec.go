package swarm

import (
	"os"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

// fromSpec is a service's spec in Docker's form: as it was asked, or, of an app's service, as
// near as Docker's words come. How many tasks it has is told also where that was left out:
// clients show no progress of a service that does not say.
func fromSpec(name string, s *cluster.ServiceSpec) swarm.ServiceSpec {
	if s.Swarm != nil {
		out := *s.Swarm
		out.Mode = fromMode(s.Mode)
		return out
	}
	out := swarm.ServiceSpec{
		Annotations: annotations(name, s.Labels), TaskTemplate: fromTask(&s.Task, s.Networks), Mode: fromMode(s.Mode),
		UpdateConfig: fromRollout(s.Update), RollbackConfig: fromRollout(s.Rollback),
	}
	if s.Endpoint != "" || len(s.Ports) > 0 {
		out.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionMode(s.Endpoint), Ports: fromPorts(s.Ports)}
	}
	return out
}

func annotations(name string, labels map[string]string) swarm.Annotations {
	if labels == nil {
		labels = map[string]string{}
	}
	return swarm.Annotations{Name: name, Labels: labels}
}

func fromMode(m cluster.Mode) (out swarm.ServiceMode) {
	switch {
	case m.Global:
		out.Global = &swarm.GlobalService{}
	case m.GlobalJob:
		out.GlobalJob = &swarm.GlobalJob{}
	case m.Job != nil:
		out.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: &m.Job.Concurrent, TotalCompletions: &m.Job.Total}
	case m.Replicated != nil:
		out.Replicated = &swarm.ReplicatedService{Replicas: &m.Replicated.Replicas}
	}
	return out
}

func fromRollout(r *cluster.Rollout) *swarm.UpdateConfig {
	if r == nil {
		return nil
	}
	out := &swarm.UpdateConfig{
		Parallelism: r.Parallelism, Delay: r.Delay, FailureAction: swarm.FailureAction(r.OnFailure), Monitor: r.Monitor,
		MaxFailureRatio: float32(r.MaxFailureRatio), Order: swarm.UpdateOrderStopFirst,
	}
	if r.StartFirst {
		out.Order = swarm.UpdateOrderStartFirst
	}
	return out
}

// fromPorts are ports in Docker's form, which knows no ranges: of one any is asked for.
func fromPorts(list []cluster.Port) (out []swarm.PortConfig) {
	for _, p := range list {
		if p.Open() {
			p = p.At(0)
		}
		mode := swarm.PortConfigPublishModeIngress
		if p.Host {
			mode = swarm.PortConfigPublishModeHost
		}
		out = append(out, swarm.PortConfig{Name: p.Name, Protocol: p.Proto, TargetPort: uint32(p.Target), PublishedPort: uint32(p.Published), PublishMode: mode})
	}
	return out
}

// fromTask is what a task is made from, in Docker's form.
func fromTask(t *cluster.TaskSpec, networks []cluster.Attachment) swarm.TaskSpec {
	cfg, host := t.Container, t.Host
	c := &swarm.ContainerSpec{
		Image: cfg.Image, Labels: cfg.Labels, Command: cfg.Entrypoint, Args: cfg.Cmd, Hostname: cfg.Hostname, Env: cfg.Env, Dir: cfg.WorkingDir,
		User: cfg.User, Groups: host.GroupAdd, Privileges: fromSecurity(host.SecurityOpt), Init: host.Init, StopSignal: cfg.StopSignal,
		TTY: cfg.Tty, OpenStdin: cfg.OpenStdin, ReadOnly: host.ReadonlyRootfs, Mounts: host.Mounts, Healthcheck: cfg.Healthcheck,
		Isolation: host.Isolation, Sysctls: host.Sysctls, CapabilityAdd: host.CapAdd, CapabilityDrop: host.CapDrop,
		Ulimits: host.Ulimits, OomScoreAdj: int64(host.OomScoreAdj), Secrets: fromSecrets(t.Secrets), Configs: fromConfigs(t.Configs),
	}
	for _, h := range host.ExtraHosts {
		if name, addr, ok := strings.Cut(h, ":"); ok {
			c.Hosts = append(c.Hosts, addr+" "+name)
		}
	}
	if len(host.DNS) > 0 || len(host.DNSSearch) > 0 || len(host.DNSOptions) > 0 {
		c.DNSConfig = &swarm.DNSConfig{Nameservers: host.DNS, Search: host.DNSSearch, Options: host.DNSOptions}
	}
	switch own := cfg.StopTimeout; {
	case t.Grace != 0:
		c.StopGracePeriod = &t.Grace
	case own != nil:
		grace := time.Duration(*own) * time.Second
		c.StopGracePeriod = &grace
	}
	for _, b := range host.Binds { // of apps
		if source, rest, ok := strings.Cut(b, ":"); ok {
			target, mode, _ := strings.Cut(rest, ":")
			c.Mounts = append(c.Mounts, mount.Mount{Type: mount.TypeBind, Source: source, Target: target, ReadOnly: mode == "ro"})
		}
	}
	out := swarm.TaskSpec{ContainerSpec: c, Resources: fromResources(t), Placement: fromPlacement(t.Placement), ForceUpdate: t.Force, Runtime: swarm.RuntimeContainer}
	r := t.Restart
	out.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyCondition(r.Condition), Delay: &r.Delay, MaxAttempts: &r.Attempts}
	if r.Window != 0 {
		out.RestartPolicy.Window = &r.Window
	}
	if l := host.LogConfig; l.Type != "" {
		out.LogDriver = &swarm.Driver{Name: l.Type, Options: l.Config}
	}
	for _, n := range networks {
		a := swarm.NetworkAttachmentConfig{Target: n.Network}
		if n.Settings != nil {
			a.Aliases, a.DriverOpts = n.Settings.Aliases, n.Settings.DriverOpts
		}
		out.Networks = append(out.Networks, a)
	}
	return out
}

func fromResources(t *cluster.TaskSpec) *swarm.ResourceRequirements {
	h := t.Host.Resources
	out := &swarm.ResourceRequirements{MemorySwappiness: h.MemorySwappiness}
	if h.NanoCPUs != 0 || h.Memory != 0 || h.PidsLimit != nil {
		out.Limits = &swarm.Limit{NanoCPUs: h.NanoCPUs, MemoryBytes: h.Memory}
		if h.PidsLimit != nil {
			out.Limits.Pids = *h.PidsLimit
		}
	}
	if h.MemorySwap != 0 {
		n := h.MemorySwap
		if n >= 0 {
			n -= h.Memory
		}
		out.SwapBytes = &n
	}
	if r := t.Reserved; r.NanoCPUs != 0 || r.Memory != 0 || len(r.Generic) > 0 {
		have := tellResources(r, nil)
		out.Reservations = &have
	}
	if *out == (swarm.ResourceRequirements{}) {
		return nil
	}
	return out
}

func fromPlacement(p cluster.Placement) *swarm.Placement {
	out := &swarm.Placement{Constraints: p.Constraints, MaxReplicas: p.MaxPerNode}
	for _, l := range p.Spread {
		out.Preferences = append(out.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: l}})
	}
	for _, is := range p.Platforms {
		out.Platforms = append(out.Platforms, swarm.Platform{OS: is.OS, Architecture: is.Architecture})
	}
	return out
}

func fromSecrets(list []cluster.FileRef) (out []*swarm.SecretReference) {
	for _, r := range list {
		out = append(out, &swarm.SecretReference{
			File:     &swarm.SecretReferenceFileTarget{Name: strings.TrimPrefix(r.Target, secretsDir+"/"), UID: r.UID, GID: r.GID, Mode: os.FileMode(r.Mode)},
			SecretID: r.ID, SecretName: r.Name,
		})
	}
	return out
}

func fromConfigs(list []cluster.FileRef) (out []*swarm.ConfigReference) {
	for _, r := range list {
		out = append(out, &swarm.ConfigReference{
			File:     &swarm.ConfigReferenceFileTarget{Name: r.Target, UID: r.UID, GID: r.GID, Mode: os.FileMode(r.Mode)},
			ConfigID: r.ID, ConfigName: r.Name,
		})
	}
	return out
}

// fromSecurity reads what toSecurity has written; options of apps beside it have no words
// in Docker's form.
func fromSecurity(list []string) *swarm.Privileges {
	out := &swarm.Privileges{}
	for _, o := range list {
		name, is, _ := strings.Cut(o, "=")
		switch name {
		case "label":
			if out.SELinuxContext == nil {
				out.SELinuxContext = &swarm.SELinuxContext{}
			}
			what, value, _ := strings.Cut(is, ":")
			if to := map[string]*string{"user": &out.SELinuxContext.User, "role": &out.SELinuxContext.Role, "type": &out.SELinuxContext.Type, "level": &out.SELinuxContext.Level}[what]; to != nil {
				*to = value
			}
			out.SELinuxContext.Disable = out.SELinuxContext.Disable || is == "disable"
		case "seccomp":
			out.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}
			if is != "unconfined" {
				out.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompModeCustom, Profile: []byte(is)}
			}
		case "apparmor":
			if is == "unconfined" {
				out.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDisabled}
			}
		case "no-new-privileges":
			out.NoNewPrivileges = is == "" || is == "true"
		}
	}
	if *out == (swarm.Privileges{}) {
		return nil
	}
	return out
}

// withDefaults fills in what a spec leaves out, for who asks to see it.
func withDefaults(s swarm.ServiceSpec) swarm.ServiceSpec {
	job := s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		next := *c
		if next.StopGracePeriod == nil {
			grace := stopGrace
			next.StopGracePeriod = &grace
		}
		if next.DNSConfig == nil {
			next.DNSConfig = &swarm.DNSConfig{}
		}
		s.TaskTemplate.ContainerSpec = &next
	}
	if s.TaskTemplate.Resources == nil {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{}, Reservations: &swarm.Resources{}}
	}
	if s.TaskTemplate.RestartPolicy == nil {
		delay, attempts := restartDelay, uint64(0)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay, MaxAttempts: &attempts}
	}
	if s.TaskTemplate.Placement == nil {
		s.TaskTemplate.Placement = &swarm.Placement{}
	}
	if !job {
		standard := swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionPause, Monitor: monitor, Order: swarm.UpdateOrderStopFirst}
		for _, u := range []**swarm.UpdateConfig{&s.UpdateConfig, &s.RollbackConfig} {
			if *u == nil {
				c := standard
				*u = &c
			}
		}
	}
	if s.EndpointSpec == nil {
		s.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
	}
	return s
}
