package compose

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// service makes the spec of one service.
func service(p *types.Project, s *types.ServiceConfig) (cluster.ServiceSpec, error) {
	var out cluster.ServiceSpec
	switch {
	case s.Provider != nil:
		return out, refused("provider", "not possible: what it would make is not a container's")
	case len(s.Models) > 0:
		return out, refused("models", "not possible: there is no runner of models")
	case s.CredentialSpec != nil:
		return out, refused("credential_spec", "it is for Windows")
	case len(s.PreStart) > 0:
		return out, refused("pre_start", "not possible: write a service that depends_on awaits with service_completed_successfully")
	}
	labels, err := serviceLabels(p, s)
	if err != nil {
		return out, err
	}
	cfg, err := config(p, s, labels)
	if err != nil {
		return out, err
	}
	host, err := hostConfig(p, s)
	if err != nil {
		return out, err
	}
	out.Labels = labels
	out.Task = cluster.TaskSpec{Name: s.ContainerName, Container: cfg, Host: host, Platform: s.Platform, Pull: s.PullPolicy}
	if out.Task.Restart, err = restartPolicy(s); err != nil {
		return out, err
	}
	host.RestartPolicy = ownPolicy(s)
	if s.Deploy != nil && len(s.Deploy.Labels) > 0 {
		out.Labels = maps.Clone(labels)
		maps.Copy(out.Labels, s.Deploy.Labels)
	}
	out.Task.PostStart, out.Task.PreStop = Hooks(s.PostStart), Hooks(s.PreStop)
	if s.StopGracePeriod != nil {
		out.Task.Grace = time.Duration(*s.StopGracePeriod)
	}
	if out.Task.Secrets, err = files(s.Secrets, "/run/secrets/"); err != nil {
		return out, refused("secrets", "%s", err)
	}
	if out.Task.Configs, err = files(s.Configs, "/"); err != nil {
		return out, refused("configs", "%s", err)
	}
	if out.Networks, err = attachments(p, s); err != nil {
		return out, err
	}
	if out.Ports, err = ports(s); err != nil {
		return out, err
	}
	out.Task.Needs = needs(p, s)
	if err := mode(s, &out); err != nil {
		return out, err
	}
	return out, deploy(s, &out)
}

// Hooks are commands that are run in a container.
func Hooks(list []types.ServiceHook) []cluster.Hook {
	var out []cluster.Hook
	for _, h := range list {
		out = append(out, cluster.Hook{Command: h.Command, User: h.User, Privileged: h.Privileged, WorkingDir: h.WorkingDir, Env: env(h.Environment)})
	}
	return out
}

// env are variables as NAME=value; those without a value are nothing.
func env(m types.MappingWithEquals) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if v := m[name]; v != nil {
			out = append(out, name+"="+*v)
		}
	}
	return out
}

// unset are the variables without a value, as bare names: they take the image's away.
func unset(m types.MappingWithEquals) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if m[name] == nil && name != "" {
			out = append(out, name)
		}
	}
	return out
}

// mode is how many tasks the service has.
func mode(s *types.ServiceConfig, out *cluster.ServiceSpec) error {
	if text, ok := s.Extensions["x-escale-schedule"]; ok {
		sched, ok := text.(string)
		if !ok {
			return refused("x-escale-schedule", "a schedule wanted, as in \"0 3 * * *\"")
		}
		out.Mode = cluster.Mode{Schedule: sched, Job: &cluster.Job{Total: 1}}
		return nil
	}
	m := ""
	if s.Deploy != nil {
		m = s.Deploy.Mode
	}
	n := uint64(max(s.GetScale(), 0))
	if s.ContainerName != "" && n > 1 {
		return refused("container_name", "%d containers cannot all be named %q", n, s.ContainerName)
	}
	switch m {
	case "", "replicated":
		out.Mode.Replicated = &cluster.Replicated{Replicas: n}
	case "global":
		out.Mode.Global = true
	case "replicated-job":
		out.Mode.Job = &cluster.Job{Total: n}
	case "global-job":
		out.Mode.GlobalJob = true
	default:
		return refused("deploy.mode", "%q: replicated, global, replicated-job or global-job wanted", m)
	}
	return nil
}

// deploy reads what else the section says.
func deploy(s *types.ServiceConfig, out *cluster.ServiceSpec) error {
	var update, back *types.UpdateConfig
	d := s.Deploy
	if d != nil {
		update, back = d.UpdateConfig, d.RollbackConfig
	}
	var err error
	if out.Update, err = rollout("update_config", s, update); err != nil {
		return err
	}
	if back != nil {
		if out.Rollback, err = rollout("rollback_config", s, back); err != nil {
			return err
		}
	}
	if d == nil {
		return nil
	}
	switch d.EndpointMode {
	case "", "vip", "dnsrr":
		out.Endpoint = cluster.EndpointMode(d.EndpointMode)
	default:
		return refused("deploy.endpoint_mode", "%q: vip or dnsrr wanted", d.EndpointMode)
	}
	out.Task.Placement = cluster.Placement{Constraints: d.Placement.Constraints, MaxPerNode: d.Placement.MaxReplicas}
	if _, err := cluster.ParseConstraints(d.Placement.Constraints); err != nil {
		return refused("deploy.placement.constraints", "%s", err)
	}
	for _, pref := range d.Placement.Preferences {
		out.Task.Placement.Spread = append(out.Task.Placement.Spread, pref.Spread)
	}
	if r := d.Resources.Reservations; r != nil {
		out.Task.Reserved = cluster.Resources{NanoCPUs: nano(float64(r.NanoCPUs)), Memory: int64(r.MemoryBytes)}
		for _, g := range r.GenericResources {
			if g.DiscreteResourceSpec != nil {
				if out.Task.Reserved.Generic == nil {
					out.Task.Reserved.Generic = map[string]int64{}
				}
				out.Task.Reserved.Generic[g.DiscreteResourceSpec.Kind] = g.DiscreteResourceSpec.Value
			}
		}
	}
	return nil
}

// nano is a number of processors in billionths.
func nano(cpus float64) int64 { return int64(cpus*1e9 + 0.5) }

// needs are the conditions of depends_on, by service. Those whose namespaces or volumes are
// shared are among them, whether the file says so or not.
func needs(p *types.Project, s *types.ServiceConfig) []cluster.Need {
	var out []cluster.Need
	shared := sharedWith(s)
	for _, name := range slices.Sorted(maps.Keys(s.DependsOn)) {
		d, with := s.DependsOn[name], slices.Contains(shared, name)
		out = append(out, cluster.Need{Service: ServiceName(p.Name, name), Condition: cluster.Condition(d.Condition), Restart: d.Restart || with, Optional: !d.Required, Shared: with})
	}
	return out
}

// sharedWith are the services of whose first containers a service's share namespaces or volumes.
func sharedWith(s *types.ServiceConfig) (out []string) {
	for _, mode := range []string{s.NetworkMode, s.Ipc, s.Pid} {
		if name, ok := strings.CutPrefix(mode, "service:"); ok {
			out = append(out, name)
		}
	}
	for _, from := range s.VolumesFrom {
		if name, _, _ := strings.Cut(from, ":"); name != "container" {
			out = append(out, name)
		}
	}
	return out
}

// files are secrets or configs; dir is where those without a target go.
func files[T types.ServiceSecretConfig | types.ServiceConfigObjConfig](list []T, dir string) ([]cluster.FileRef, error) {
	var out []cluster.FileRef
	for _, x := range list {
		f := types.FileReferenceConfig(x)
		ref := cluster.FileRef{Name: f.Source, Target: cmp.Or(f.Target, f.Source), UID: f.UID, GID: f.GID, Mode: 0o444}
		if !strings.HasPrefix(ref.Target, "/") {
			ref.Target = dir + ref.Target
		}
		if f.Mode != nil {
			ref.Mode = uint32(*f.Mode)
		}
		for _, id := range []string{f.UID, f.GID} {
			if _, err := strconv.ParseUint(id, 10, 32); id != "" && err != nil {
				return nil, refused("", "%q is no id of a user or group", id)
			}
		}
		out = append(out, ref)
	}
	return out, nil
}

// attachments are the service's places on networks, the one of the highest priority
// first.
func attachments(p *types.Project, s *types.ServiceConfig) ([]cluster.Attachment, error) {
	names := slices.Collect(maps.Keys(s.Networks))
	priority := func(name string) int {
		if n := s.Networks[name]; n != nil {
			return n.Priority
		}
		return 0
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(priority(b)-priority(a), cmp.Compare(a, b)) })
	var out []cluster.Attachment
	for _, name := range names {
		set := &network.EndpointSettings{Aliases: []string{s.Name}}
		if n := s.Networks[name]; n != nil {
			if n.UseServiceNameAlias != nil && !*n.UseServiceNameAlias {
				set.Aliases = nil
			}
			set.Aliases = append(set.Aliases, n.Aliases...)
			set.DriverOpts, set.GwPriority = n.DriverOpts, n.GatewayPriority
			if n.InterfaceName != "" {
				set.DriverOpts = maps.Clone(set.DriverOpts)
				if set.DriverOpts == nil {
					set.DriverOpts = map[string]string{}
				}
				set.DriverOpts["com.docker.network.endpoint.ifname"] = n.InterfaceName
			}
			if err := addresses(n, set); err != nil {
				return nil, refused("networks."+name, "%s", err)
			}
		}
		set.Links = links(p, s)
		out = append(out, cluster.Attachment{Network: p.Networks[name].Name, Settings: set})
	}
	if s.MacAddress != "" {
		mac, err := net.ParseMAC(s.MacAddress)
		switch {
		case err != nil:
			return nil, refused("mac_address", "%s", err)
		case len(out) == 0:
			return nil, refused("mac_address", "there is no network that it would be on")
		}
		if len(out[0].Settings.MacAddress) == 0 { // on the first network, as without compose
			out[0].Settings.MacAddress = network.HardwareAddr(mac)
		}
	}
	return out, nil
}

// links are those of the service, by the names of containers.
func links(p *types.Project, s *types.ServiceConfig) []string {
	var out []string
	for _, l := range s.Links {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		container := p.Name + "-" + name + "-1"
		if to, ok := p.Services[name]; ok && to.ContainerName != "" {
			container = to.ContainerName
		}
		out = append(out, container+":"+alias)
	}
	return append(out, s.ExternalLinks...)
}

// config is what the container is made from.
func config(p *types.Project, s *types.ServiceConfig, labels map[string]string) (*container.Config, error) {
	c := &container.Config{
		Hostname: s.Hostname, Domainname: s.DomainName, User: s.User, Tty: s.Tty, OpenStdin: s.StdinOpen,
		Image: Image(p, s), WorkingDir: s.WorkingDir, Labels: labels, StopSignal: s.StopSignal, Cmd: s.Command, Entrypoint: s.Entrypoint,
		ExposedPorts: network.PortSet{},
	}
	c.Env = append(env(s.Environment), unset(s.Environment)...)
	if s.StopGracePeriod != nil {
		seconds := int((time.Duration(*s.StopGracePeriod) + time.Second - 1) / time.Second)
		c.StopTimeout = &seconds
	}
	for _, e := range s.Expose {
		list, err := types.ParsePortConfig(e)
		if err != nil {
			return nil, refused("expose", "%q: %s", e, err)
		}
		for _, port := range list {
			if err := expose(c, port.Target, port.Protocol); err != nil {
				return nil, err
			}
		}
	}
	for _, port := range s.Ports {
		if err := expose(c, port.Target, port.Protocol); err != nil {
			return nil, err
		}
	}
	if h := s.HealthCheck; h != nil {
		c.Healthcheck = healthcheck(h)
	}
	return c, nil
}

func expose(c *container.Config, target uint32, proto string) error {
	port, err := network.ParsePort(fmt.Sprintf("%d/%s", target, cmp.Or(proto, "tcp")))
	if err != nil {
		return refused("ports", "port %d/%s: %s", target, proto, err)
	}
	c.ExposedPorts[port] = struct{}{}
	return nil
}

func healthcheck(h *types.HealthCheckConfig) *container.HealthConfig {
	if h.Disable {
		return &container.HealthConfig{Test: []string{"NONE"}}
	}
	out := &container.HealthConfig{Test: h.Test}
	for to, from := range map[*time.Duration]*types.Duration{&out.Interval: h.Interval, &out.Timeout: h.Timeout, &out.StartPeriod: h.StartPeriod, &out.StartInterval: h.StartInterval} {
		if from != nil {
			*to = time.Duration(*from)
		}
	}
	if h.Retries != nil {
		out.Retries = int(*h.Retries)
	}
	return out
}

// ServiceName is the name that a service of a project has among all services.
func ServiceName(project, service string) string { return project + "_" + service }

// Image is the name of the image of a service: its own, or that of what it is built as.
func Image(p *types.Project, s *types.ServiceConfig) string {
	return cmp.Or(s.Image, p.Name+"-"+s.Name)
}
