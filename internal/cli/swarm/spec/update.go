package spec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	container "escale.dev/escale/internal/cli/spec"
)

// Update changes the spec of a service of containers as the flags say. Errors are those
// of flags that say what cannot be, and of names that are not there.
func (o *Options) Update(ctx context.Context, s *swarm.ServiceSpec, names Names) error {
	t, c := &s.TaskTemplate, s.TaskTemplate.ContainerSpec
	s.Labels = updateMap(s.Labels, o.gone("label"), o.labels.Values)
	o.updateProcess(c)
	if err := o.updateMounts(c); err != nil {
		return err
	}
	o.updateLimits(c, t)
	if o.changed("generic-resource-add", "generic-resource-rm") {
		var err error
		r := reserved(t)
		if r.GenericResources, err = o.updateGeneric(r.GenericResources); err != nil {
			return err
		}
	}
	t.RestartPolicy = o.restart(t.RestartPolicy)
	o.updatePlacement(t)
	if err := o.updateNetworks(ctx, t, names); err != nil {
		return err
	}
	if o.changed("replicas") {
		if s.Mode.Replicated == nil {
			return errors.New("replicas can only be used with replicated mode")
		}
		s.Mode.Replicated.Replicas = o.replicas.value
	}
	if o.changed("max-concurrent") {
		if s.Mode.ReplicatedJob == nil {
			return errConcurrent(o.maxConcurrent.value)
		}
		s.Mode.ReplicatedJob.MaxConcurrent = o.maxConcurrent.value
	}
	s.UpdateConfig, s.RollbackConfig = o.rollouts(s.UpdateConfig, s.RollbackConfig)
	o.updateEndpoint(s)
	o.updateNaming(c)
	t.LogDriver = o.driver(t.LogDriver)
	if o.force {
		t.ForceUpdate++
	}
	if err := o.updateHealth(c); err != nil {
		return err
	}
	if o.changed("cap-add", "cap-drop") {
		c.CapabilityAdd, c.CapabilityDrop = updateCapabilities(c.CapabilityAdd, c.CapabilityDrop, o.capAdd.Values, o.capDrop.Values)
	}
	return o.updateFiles(ctx, c, names)
}

// set puts a flag's value in its place when it was given.
func set[T any](o *Options, flag string, to *T, value T) {
	if o.changed(flag) {
		*to = value
	}
}

// updateProcess changes what runs in the containers.
func (o *Options) updateProcess(c *swarm.ContainerSpec) {
	c.Labels = updateMap(c.Labels, o.gone("container-label"), o.containerLabels.Values)
	set(o, "image", &c.Image, o.image)
	set(o, "args", &c.Args, []string(o.args))
	set(o, "entrypoint", &c.Command, []string(o.entrypoint))
	c.Env = o.updateEnv(c.Env)
	set(o, "workdir", &c.Dir, o.workdir)
	set(o, "user", &c.User, o.user)
	set(o, "hostname", &c.Hostname, o.hostname)
	set(o, "init", &c.Init, &o.init)
	set(o, "isolation", &c.Isolation, containertypes.Isolation(o.isolation))
	set(o, "stop-grace-period", &c.StopGracePeriod, o.stopGrace.value)
	set(o, "stop-signal", &c.StopSignal, o.stopSignal)
	set(o, "tty", &c.TTY, o.tty)
	set(o, "read-only", &c.ReadOnly, o.readOnly)
	set(o, "oom-score-adj", &c.OomScoreAdj, o.oomScoreAdj)
	if o.changed("group-add", "group-rm") {
		c.Groups = changeList(c.Groups, o.groups.Values, o.gone("group"), false)
	}
}

// updateEnv changes variables: what is there keeps its place, what is new comes last.
func (o *Options) updateEnv(have []string) []string {
	name := func(e string) string { n, _, _ := strings.Cut(e, "="); return n }
	gone := o.gone("env")
	list := slices.DeleteFunc(slices.Clone(have), func(e string) bool { return gone[name(e)] })
	for _, e := range o.env.Values {
		if i := slices.IndexFunc(list, func(x string) bool { return name(x) == name(e) }); i >= 0 {
			list[i] = e
			continue
		}
		list = append(list, e)
	}
	return list
}

// updateMap takes keys away, then sets KEY=VALUE entries.
func updateMap(have map[string]string, gone map[string]bool, add []string) map[string]string {
	for k := range gone {
		delete(have, k)
	}
	for k, v := range pairs(add) {
		if have == nil {
			have = map[string]string{}
		}
		have[k] = v
	}
	return have
}

// changeList adds to a list and takes away from it. once leaves one of each.
func changeList(have, add []string, gone map[string]bool, once bool) []string {
	list := []string{}
	for _, v := range append(slices.Clone(have), add...) {
		if !gone[v] && (!once || !slices.Contains(list, v)) {
			list = append(list, v)
		}
	}
	slices.Sort(list)
	return list
}

func (o *Options) updateMounts(c *swarm.ContainerSpec) error {
	gone, targets := o.gone("mount"), map[string]bool{}
	var list []mount.Mount
	for _, m := range o.mounts.List() {
		if targets[m.Target] {
			return errors.New("duplicate mount target")
		}
		targets[m.Target] = true
		list = append(list, m)
	}
	for _, m := range c.Mounts {
		if !targets[m.Target] {
			list = append(list, m)
		}
	}
	list = slices.DeleteFunc(list, func(m mount.Mount) bool { return gone[m.Target] })
	slices.SortFunc(list, func(x, y mount.Mount) int {
		return cmp.Or(strings.Compare(x.Source, y.Source), strings.Compare(x.Target, y.Target))
	})
	c.Mounts = list
	return nil
}

// limits gives the limits of a task, which are made when there are none.
func limits(t *swarm.TaskSpec) *swarm.Limit {
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{}
	}
	if t.Resources.Limits == nil {
		t.Resources.Limits = &swarm.Limit{}
	}
	return t.Resources.Limits
}

// reserved gives what a task reserves.
func reserved(t *swarm.TaskSpec) *swarm.Resources {
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{}
	}
	if t.Resources.Reservations == nil {
		t.Resources.Reservations = &swarm.Resources{}
	}
	return t.Resources.Reservations
}

func (o *Options) updateLimits(c *swarm.ContainerSpec, t *swarm.TaskSpec) {
	if o.changed("sysctl-rm", "sysctl-add") {
		gone := map[string]bool{}
		for name := range pairs(o.removed["sysctl"].Values) {
			gone[name] = true
		}
		c.Sysctls = updateMap(c.Sysctls, gone, o.sysctls.Values)
	}
	if o.changed("ulimit-rm", "ulimit-add") {
		c.Ulimits = o.updateUlimits(c.Ulimits)
	}
	if o.changed("limit-cpu", "limit-memory", "limit-pids") {
		l := limits(t)
		set(o, "limit-cpu", &l.NanoCPUs, int64(o.limitCPU))
		set(o, "limit-memory", &l.MemoryBytes, o.limitMemory.Bytes())
		set(o, "limit-pids", &l.Pids, o.limitPids)
	}
	if o.changed("reserve-cpu", "reserve-memory") {
		r := reserved(t)
		set(o, "reserve-cpu", &r.NanoCPUs, int64(o.reserveCPU))
		set(o, "reserve-memory", &r.MemoryBytes, o.reserveMemory.Bytes())
	}
}

func (o *Options) updateUlimits(have []*containertypes.Ulimit) []*containertypes.Ulimit {
	byName := map[string]*containertypes.Ulimit{}
	for _, u := range have {
		byName[u.Name] = u
	}
	for name := range pairs(o.removed["ulimit"].Values) {
		delete(byName, name)
	}
	for _, u := range o.ulimits.List() {
		byName[u.Name] = u
	}
	var list []*containertypes.Ulimit
	for _, u := range byName {
		list = append(list, u)
	}
	slices.SortFunc(list, func(x, y *containertypes.Ulimit) int { return strings.Compare(x.Name, y.Name) })
	return list
}

func (o *Options) updatePlacement(t *swarm.TaskSpec) {
	if !o.changed("constraint-add", "constraint-rm", "placement-pref-add", "placement-pref-rm", "replicas-max-per-node") {
		return
	}
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	p := t.Placement
	if o.changed("constraint-add", "constraint-rm") {
		p.Constraints = changeList(p.Constraints, o.constraints.Values, o.gone("constraint"), false)
	}
	p.Preferences = slices.DeleteFunc(slices.Clone(p.Preferences), func(have swarm.PlacementPreference) bool {
		return slices.ContainsFunc(o.preferencesRemoved, func(r swarm.PlacementPreference) bool {
			return have.Spread != nil && *have.Spread == *r.Spread
		})
	})
	p.Preferences = append(p.Preferences, o.preferences...)
	set(o, "replicas-max-per-node", &p.MaxReplicas, o.maxReplicas)
}

func (o *Options) updateNetworks(ctx context.Context, t *swarm.TaskSpec, names Names) error {
	if !o.changed("network-add", "network-rm") {
		return nil
	}
	have := slices.Clone(t.Networks)
	for _, name := range o.removed["network"].Values {
		id, err := names.Network(ctx, name)
		if err != nil {
			return err
		}
		have = slices.DeleteFunc(have, func(n swarm.NetworkAttachmentConfig) bool { return n.Target == id })
	}
	list, err := o.attach(ctx, have, names)
	if err == nil {
		t.Networks = list
	}
	return err
}

func (o *Options) updateEndpoint(s *swarm.ServiceSpec) {
	if !o.changed("endpoint-mode", "publish-add", "publish-rm") {
		return
	}
	if s.EndpointSpec == nil {
		s.EndpointSpec = &swarm.EndpointSpec{}
	}
	set(o, "endpoint-mode", &s.EndpointSpec.Mode, swarm.ResolutionMode(o.endpointMode))
	if o.changed("publish-add", "publish-rm") {
		s.EndpointSpec.Ports = updatePorts(s.EndpointSpec.Ports, o.portsRemoved, o.ports)
	}
}

// updateNaming changes which names the containers know, and whom they ask for others.
func (o *Options) updateNaming(c *swarm.ContainerSpec) {
	if o.changed("dns-add", "dns-rm", "dns-option-add", "dns-option-rm", "dns-search-add", "dns-search-rm") {
		if c.DNSConfig == nil {
			c.DNSConfig = &swarm.DNSConfig{}
		}
		d := c.DNSConfig
		d.Nameservers = addresses(changeList(words(d.Nameservers), o.dns.Values, o.gone("dns"), true))
		d.Search = changeList(d.Search, o.dnsSearch.Values, o.gone("dns-search"), true)
		d.Options = changeList(d.Options, o.dnsOptions.Values, o.gone("dns-option"), true)
	}
	if o.changed("host-add", "host-rm") {
		c.Hosts = updateHosts(c.Hosts, o.removed["host"], o.hosts.Values)
	}
}

func words(list []netip.Addr) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.String()
	}
	return out
}

// updateHosts takes NAME or NAME:IP from lines of a hosts file, which go when no name
// is left in them, and adds others.
func updateHosts(lines []string, remove *container.List, add []string) []string {
	var out []string
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		ip, names := fields[0], fields[1:]
		for _, r := range remove.Values {
			name, of, _ := strings.Cut(r, ":")
			if of == "" || of == ip {
				names = slices.DeleteFunc(names, func(n string) bool { return n == name })
			}
		}
		if len(names) > 0 {
			out = append(out, fmt.Sprintf("%s %s", ip, strings.Join(names, " ")))
		}
	}
	list := []string{}
	for _, line := range append(out, hostLines(add)...) {
		if !slices.Contains(list, line) {
			list = append(list, line)
		}
	}
	return list
}

func (o *Options) updateHealth(c *swarm.ContainerSpec) error {
	given := o.changed("health-cmd", "health-interval", "health-retries", "health-timeout", "health-start-period", "health-start-interval")
	switch {
	case !given && !o.changed("no-healthcheck"):
		return nil
	case o.noHealthcheck && given:
		return errHealth
	case o.noHealthcheck:
		c.Healthcheck = &containertypes.HealthConfig{Test: []string{"NONE"}}
		return nil
	}
	if c.Healthcheck == nil {
		c.Healthcheck = &containertypes.HealthConfig{}
	}
	h := c.Healthcheck
	if len(h.Test) > 0 && h.Test[0] == "NONE" {
		h.Test = nil
	}
	set(o, "health-interval", &h.Interval, o.healthInterval.orZero())
	set(o, "health-timeout", &h.Timeout, o.healthTimeout.orZero())
	set(o, "health-start-period", &h.StartPeriod, o.healthStart.orZero())
	set(o, "health-start-interval", &h.StartInterval, o.healthStarting.orZero())
	set(o, "health-retries", &h.Retries, o.healthRetries)
	if o.changed("health-cmd") {
		h.Test = nil
		if o.healthCmd != "" {
			h.Test = []string{"CMD-SHELL", o.healthCmd}
		}
	}
	return nil
}
