package compose

import (
	"cmp"
	"maps"
	"net/netip"
	"os"
	"slices"

	"escale.dev/escale/internal/cluster"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/moby/api/types/network"
)

// App makes the spec of an app of a project, for a swarm, which has secrets and configs of its
// own, or a host. It reads the files of secrets and configs. What cannot be honoured is an error
// (InvalidArgument) that names it.
func App(p *types.Project, swarm bool) (*cluster.AppSpec, error) {
	app := &cluster.AppSpec{
		Services: map[string]cluster.ServiceSpec{}, Networks: map[string]cluster.NetworkSpec{}, Volumes: map[string]cluster.VolumeSpec{},
		Secrets: map[string]cluster.SecretSpec{}, Configs: map[string]cluster.ConfigSpec{}, Dir: p.WorkingDir, Files: p.ComposeFiles,
	}
	if err := Check(p, swarm); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Networks)) {
		n, err := networkSpec(p, name)
		if err != nil {
			return nil, below(p, "networks", name, err)
		}
		app.Networks[name] = n
	}
	for name, v := range p.Volumes {
		labels := map[string]string{LabelProject: p.Name, LabelVolume: name, LabelVersion: version}
		maps.Copy(labels, v.Labels)
		app.Volumes[name] = cluster.VolumeSpec{Name: v.Name, External: bool(v.External), Driver: v.Driver, Options: v.DriverOpts, Labels: labels}
	}
	for name, f := range p.Secrets {
		if f.External {
			app.Secrets[name] = cluster.SecretSpec{Name: f.Name, External: true}
			continue
		}
		data, err := file(p, types.FileObjectConfig(f))
		if err != nil {
			return nil, below(p, "secrets", name, err)
		}
		app.Secrets[name] = cluster.SecretSpec{Name: f.Name, Data: data}
	}
	for name, f := range p.Configs {
		if f.External {
			app.Configs[name] = cluster.ConfigSpec{Name: f.Name, External: true}
			continue
		}
		data, err := file(p, types.FileObjectConfig(f))
		if err != nil {
			return nil, below(p, "configs", name, err)
		}
		app.Configs[name] = cluster.ConfigSpec{Name: f.Name, Data: data}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		spec, err := service(p, &s)
		if err != nil {
			return nil, below(p, "services", name, err)
		}
		app.Services[name] = spec
	}
	source, err := p.MarshalYAML()
	if err != nil {
		return nil, err
	}
	app.Source = string(source)
	return app, nil
}

// file is what a secret or config holds.
func file(p *types.Project, f types.FileObjectConfig) ([]byte, error) {
	switch {
	case f.Content != "":
		return []byte(f.Content), nil
	case f.Environment != "":
		v, ok := p.Environment[f.Environment]
		if !ok {
			return nil, refused("environment", "environment variable %q is not set", f.Environment)
		}
		return []byte(v), nil
	}
	b, err := os.ReadFile(f.File)
	if err != nil {
		return nil, refused("file", "%s", err)
	}
	return b, nil
}

func networkSpec(p *types.Project, name string) (cluster.NetworkSpec, error) {
	n := p.Networks[name]
	labels := map[string]string{LabelProject: p.Name, LabelNetwork: name, LabelVersion: version}
	maps.Copy(labels, n.Labels)
	out := cluster.NetworkSpec{Name: n.Name, External: bool(n.External)}
	if out.External {
		return out, nil
	}
	c := &network.CreateRequest{
		Driver: n.Driver, Internal: n.Internal, Attachable: n.Attachable, EnableIPv4: n.EnableIPv4, EnableIPv6: n.EnableIPv6,
		Options: n.DriverOpts, Labels: labels,
	}
	if n.Ipam.Driver != "" || len(n.Ipam.Config) > 0 || len(n.Ipam.Options) > 0 {
		c.IPAM = &network.IPAM{Driver: cmp.Or(n.Ipam.Driver, "default"), Options: n.Ipam.Options}
	}
	for _, pool := range n.Ipam.Config {
		var cfg network.IPAMConfig
		var err error
		prefix := func(s string) (out netip.Prefix) {
			if s != "" && err == nil {
				out, err = netip.ParsePrefix(s)
			}
			return out
		}
		addr := func(s string) (out netip.Addr) {
			if s != "" && err == nil {
				out, err = netip.ParseAddr(s)
			}
			return out
		}
		cfg.Subnet, cfg.IPRange, cfg.Gateway = prefix(pool.Subnet), prefix(pool.IPRange), addr(pool.Gateway)
		for host, a := range pool.AuxiliaryAddresses {
			if cfg.AuxAddress == nil {
				cfg.AuxAddress = map[string]netip.Addr{}
			}
			cfg.AuxAddress[host] = addr(a)
		}
		if err != nil {
			return out, refused("ipam.config", "%s", err)
		}
		c.IPAM.Config = append(c.IPAM.Config, cfg)
	}
	out.Create = c
	return out, nil
}
