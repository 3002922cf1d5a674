package deploy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/docker/cli/cli/compose/types"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/internal/cli/swarm/spec"
)

// The labels of what is a stack's.
const (
	stackLabel = "com.docker.stack.namespace"
	imageLabel = "com.docker.stack.image" // as the files have it, of services
)

// namespace is the name of a stack.
type namespace string

// scope gives the name that a thing of the files has in the cluster: its own, or that
// of the stack before its key.
func (n namespace) scope(key, own string) string {
	return cmp.Or(own, string(n)+"_"+key)
}

func (n namespace) labels(have map[string]string) map[string]string {
	out := map[string]string{stackLabel: string(n)}
	for k, v := range have {
		if k != stackLabel {
			out[k] = v
		}
	}
	return out
}

// networks are those that services ask for: the stack's own by name, and the names of
// those that are there already.
func (n namespace) networks(c *types.Config) (own map[string]moby.NetworkCreateOptions, external []string) {
	own = map[string]moby.NetworkCreateOptions{}
	for _, s := range c.Services {
		keys := slices.Sorted(maps.Keys(s.Networks))
		if len(keys) == 0 {
			keys = []string{"default"}
		}
		for _, key := range keys {
			x := c.Networks[key]
			if x.External.External {
				if !slices.Contains(external, x.Name) {
					external = append(external, x.Name)
				}
				continue
			}
			o := moby.NetworkCreateOptions{
				Labels: n.labels(x.Labels), Driver: cmp.Or(x.Driver, "overlay"), Options: x.DriverOpts, Internal: x.Internal, Attachable: x.Attachable,
			}
			if x.Ipam.Driver != "" || len(x.Ipam.Config) > 0 {
				o.IPAM = &network.IPAM{Driver: x.Ipam.Driver}
				for _, p := range x.Ipam.Config {
					subnet, _ := netip.ParsePrefix(p.Subnet) // one that is none is left to the engine
					o.IPAM.Config = append(o.IPAM.Config, network.IPAMConfig{Subnet: subnet})
				}
			}
			own[n.scope(key, x.Name)] = o
		}
	}
	return own, external
}

func template(name string) *swarm.Driver {
	if name == "" {
		return nil
	}
	return &swarm.Driver{Name: name}
}

// secrets are the stack's own, by name.
func (n namespace) secrets(all map[string]types.SecretConfig) ([]swarm.SecretSpec, error) {
	var list []swarm.SecretSpec
	for _, key := range slices.Sorted(maps.Keys(all)) {
		x := all[key]
		if x.External.External {
			continue
		}
		s := swarm.SecretSpec{Annotations: swarm.Annotations{Name: n.scope(key, x.Name), Labels: n.labels(x.Labels)}, Templating: template(x.TemplateDriver)}
		if x.Driver != "" {
			s.Driver = &swarm.Driver{Name: x.Driver, Options: x.DriverOpts}
		} else {
			var err error
			if s.Data, err = os.ReadFile(x.File); err != nil {
				return nil, err
			}
		}
		list = append(list, s)
	}
	return list, nil
}

// configs are the stack's own, by name.
func (n namespace) configs(all map[string]types.ConfigObjConfig) ([]swarm.ConfigSpec, error) {
	var list []swarm.ConfigSpec
	for _, key := range slices.Sorted(maps.Keys(all)) {
		x := all[key]
		if x.External.External {
			continue
		}
		data, err := os.ReadFile(x.File)
		if err != nil {
			return nil, err
		}
		list = append(list, swarm.ConfigSpec{
			Annotations: swarm.Annotations{Name: n.scope(key, x.Name), Labels: n.labels(x.Labels)}, Data: data, Templating: template(x.TemplateDriver),
		})
	}
	return list, nil
}

// service makes the spec of a service.
func (n namespace) service(ctx context.Context, c *types.Config, s *types.ServiceConfig, names spec.Names) (*swarm.ServiceSpec, error) {
	secrets, err := n.serviceSecrets(ctx, c, s, names)
	if err != nil {
		return nil, err
	}
	configs, err := n.serviceConfigs(ctx, c, s, names)
	if err != nil {
		return nil, err
	}
	mode, err := modeOf(&s.Deploy)
	if err != nil {
		return nil, err
	}
	body, err := n.container(c, s)
	if err != nil {
		return nil, err
	}
	body.Secrets, body.Configs = secrets, configs
	if body.Privileges.CredentialSpec, err = n.credentials(s.CredentialSpec, configs); err != nil {
		return nil, err
	}
	resources, err := resourcesOf(&s.Deploy.Resources)
	if err != nil {
		return nil, err
	}
	restart, err := restartOf(s)
	if err != nil {
		return nil, err
	}
	networks, err := n.attachments(c, s)
	if err != nil {
		return nil, err
	}
	out := &swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: n.scope(s.Name, ""), Labels: n.labels(s.Deploy.Labels)},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: body, Resources: resources, RestartPolicy: restart, Networks: networks, Placement: placementOf(&s.Deploy.Placement),
		},
		Mode: mode, EndpointSpec: endpointOf(s), UpdateConfig: rolloutOf(s.Deploy.UpdateConfig), RollbackConfig: rolloutOf(s.Deploy.RollbackConfig),
	}
	if l := s.Logging; l != nil {
		out.TaskTemplate.LogDriver = &swarm.Driver{Name: l.Driver, Options: l.Options}
	}
	out.Labels[imageLabel] = s.Image
	return out, nil
}

func (n namespace) container(c *types.Config, s *types.ServiceConfig) (*swarm.ContainerSpec, error) {
	mounts, err := n.mounts(s.Volumes, c.Volumes)
	if err != nil {
		return nil, err
	}
	health, err := healthOf(s.HealthCheck)
	if err != nil {
		return nil, err
	}
	out := &swarm.ContainerSpec{
		Image: s.Image, Command: s.Entrypoint, Args: s.Command, Hostname: s.Hostname, Healthcheck: health, Labels: n.labels(s.Labels),
		Dir: s.WorkingDir, User: s.User, Mounts: mounts, StopGracePeriod: types.ConvertDurationPtr(s.StopGracePeriod), StopSignal: s.StopSignal,
		TTY: s.Tty, OpenStdin: s.StdinOpen, ReadOnly: s.ReadOnly, Privileges: &swarm.Privileges{}, Isolation: container.Isolation(s.Isolation),
		Init: s.Init, Sysctls: s.Sysctls, OomScoreAdj: s.OomScoreAdj,
	}
	out.CapabilityAdd, out.CapabilityDrop = spec.Capabilities(s.CapAdd, s.CapDrop)
	for _, h := range s.ExtraHosts {
		if name, ip, ok := strings.Cut(h, ":"); ok {
			out.Hosts = append(out.Hosts, ip+" "+name)
		}
	}
	for name, value := range s.Environment {
		if value != nil {
			name += "=" + *value
		}
		out.Env = append(out.Env, name)
	}
	slices.Sort(out.Env)
	if len(s.DNS)+len(s.DNSSearch) > 0 {
		out.DNSConfig = &swarm.DNSConfig{Search: s.DNSSearch}
		for _, w := range s.DNS {
			addr, err := netip.ParseAddr(w)
			if err != nil {
				return nil, fmt.Errorf("invalid DNS server: %w", err)
			}
			out.DNSConfig.Nameservers = append(out.DNSConfig.Nameservers, addr)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Ulimits)) {
		u := s.Ulimits[name]
		soft, hard := u.Soft, u.Hard
		if u.Single != 0 {
			soft, hard = u.Single, u.Single
		}
		out.Ulimits = append(out.Ulimits, &container.Ulimit{Name: name, Soft: int64(soft), Hard: int64(hard)})
	}
	return out, nil
}

// file is a secret or a config that a service asks for: its name in the cluster, and
// the file it becomes.
type file struct {
	name, target, uid, gid string
	mode                   os.FileMode
}

func (n namespace) file(ref types.FileReferenceConfig, own string) file {
	f := file{n.scope(ref.Source, own), cmp.Or(ref.Target, ref.Source), cmp.Or(ref.UID, "0"), cmp.Or(ref.GID, "0"), 0o444}
	if ref.Mode != nil {
		f.mode = os.FileMode(*ref.Mode)
	}
	return f
}

// twins refuses two files of one name.
func twins(kind string, files []file) error {
	seen := map[string]bool{}
	for _, f := range files {
		if seen[f.target] {
			return fmt.Errorf("duplicate %s target for %s not allowed", kind, f.name)
		}
		seen[f.target] = true
	}
	return nil
}

func fileNames(files []file) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.name)
	}
	return names
}

func (n namespace) serviceSecrets(ctx context.Context, c *types.Config, s *types.ServiceConfig, names spec.Names) ([]*swarm.SecretReference, error) {
	var files []file
	for _, ref := range s.Secrets {
		x, ok := c.Secrets[ref.Source]
		if !ok {
			return nil, fmt.Errorf("undefined secret %q", ref.Source)
		}
		files = append(files, n.file(types.FileReferenceConfig(ref), x.Name))
	}
	if err := twins("secret", files); err != nil || len(files) == 0 {
		return nil, err
	}
	ids, err := names.Secrets(ctx, fileNames(files))
	if err != nil {
		return nil, err
	}
	var list []*swarm.SecretReference
	for _, f := range files {
		if ids[f.name] == "" {
			return nil, fmt.Errorf("secret not found: %s", f.name)
		}
		list = append(list, &swarm.SecretReference{SecretID: ids[f.name], SecretName: f.name, File: &swarm.SecretReferenceFileTarget{Name: f.target, UID: f.uid, GID: f.gid, Mode: f.mode}})
	}
	slices.SortStableFunc(list, func(x, y *swarm.SecretReference) int { return strings.Compare(x.SecretName, y.SecretName) })
	return list, nil
}

func (n namespace) serviceConfigs(ctx context.Context, c *types.Config, s *types.ServiceConfig, names spec.Names) ([]*swarm.ConfigReference, error) {
	var files []file
	for _, ref := range s.Configs {
		x, ok := c.Configs[ref.Source]
		if !ok {
			return nil, fmt.Errorf("undefined config %q", ref.Source)
		}
		files = append(files, n.file(types.FileReferenceConfig(ref), x.Name))
	}
	if err := twins("config", files); err != nil {
		return nil, err
	}
	var list []*swarm.ConfigReference
	for _, f := range files {
		list = append(list, &swarm.ConfigReference{ConfigName: f.name, File: &swarm.ConfigReferenceFileTarget{Name: f.target, UID: f.uid, GID: f.gid, Mode: f.mode}})
	}
	if key := s.CredentialSpec.Config; key != "" {
		x, ok := c.Configs[key]
		if !ok {
			return nil, fmt.Errorf("undefined config %q", key)
		}
		list = append(list, &swarm.ConfigReference{ConfigName: n.scope(key, x.Name), Runtime: &swarm.ConfigReferenceRuntimeTarget{}})
	}
	if len(list) == 0 {
		return nil, nil
	}
	var all []string
	for _, r := range list {
		all = append(all, r.ConfigName)
	}
	ids, err := names.Configs(ctx, all)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.ConfigID = ids[r.ConfigName]; r.ConfigID == "" {
			return nil, fmt.Errorf("config not found: %s", r.ConfigName)
		}
	}
	slices.SortStableFunc(list, func(x, y *swarm.ConfigReference) int { return strings.Compare(x.ConfigName, y.ConfigName) })
	return list, nil
}

func (n namespace) credentials(c types.CredentialSpecConfig, configs []*swarm.ConfigReference) (*swarm.CredentialSpec, error) {
	var given []string
	for _, x := range []struct{ name, value string }{{`"Config"`, c.Config}, {`"File"`, c.File}, {`"Registry"`, c.Registry}} {
		if x.value != "" {
			given = append(given, x.name)
		}
	}
	switch len(given) {
	case 0:
		return nil, nil
	case 1:
	case 2:
		return nil, fmt.Errorf("invalid credential spec: cannot specify both %s and %s", given[0], given[1])
	default:
		return nil, fmt.Errorf("invalid credential spec: cannot specify both %s, and %s", strings.Join(given[:2], ", "), given[2])
	}
	out := swarm.CredentialSpec(c)
	for _, r := range configs {
		if r.Runtime != nil {
			out.Config = r.ConfigID
		}
	}
	return &out, nil
}

// attachments are the networks of a service. On each it goes by its short name, too.
func (n namespace) attachments(c *types.Config, s *types.ServiceConfig) ([]swarm.NetworkAttachmentConfig, error) {
	asked := s.Networks
	if len(asked) == 0 {
		asked = map[string]*types.ServiceNetworkConfig{"default": nil}
	}
	var list []swarm.NetworkAttachmentConfig
	for key, x := range asked {
		own, ok := c.Networks[key]
		if !ok && key != "default" {
			return nil, fmt.Errorf("undefined network %q", key)
		}
		a := swarm.NetworkAttachmentConfig{Target: n.scope(key, own.Name)}
		if x != nil {
			a.Aliases, a.DriverOpts = slices.Clone(x.Aliases), x.DriverOpts
		}
		if container.NetworkMode(a.Target).IsUserDefined() {
			a.Aliases = append(a.Aliases, s.Name)
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(x, y swarm.NetworkAttachmentConfig) int { return strings.Compare(x.Target, y.Target) })
	return list, nil
}
