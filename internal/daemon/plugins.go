package daemon

import (
	"context"
	"path/filepath"
	"slices"

	"escale.dev/escale/internal/plugin/managed"
	"github.com/distribution/reference"
	apiregistry "github.com/moby/moby/api/types/registry"

	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/volume"
	"escale.dev/escale/internal/volume/local"
	volumeplugin "escale.dev/escale/internal/volume/plugin"
	"github.com/spf13/pflag"
)

// pluginConfig is where programs that extend the engine are found.
type pluginConfig struct{ PluginDirs []string }

func (c *pluginConfig) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.PluginDirs, "plugin-dir", []string{"/run/docker/plugins", "/etc/docker/plugins", "/usr/lib/docker/plugins"},
		"Directory where plugins make themselves known, by a socket or a file with an address")
}

func (d *Daemon) openPlugins(context.Context) error {
	log := d.log.With("component", "plugin")
	d.managed = managed.New(managed.Config{
		Dir: filepath.Join(d.cfg.DataRoot, "plugins"), RunDir: filepath.Join(d.cfg.ExecRoot, "plugins"), Events: d.events, Logger: log,
	})
	d.plugins = plugin.NewRegistry(plugin.Config{Sockets: d.cfg.PluginDirs, Specs: d.cfg.PluginDirs, Managed: d.managed, Logger: log})
	return nil
}

// startPlugins runs the managed plugins, which need what containers need.
func (d *Daemon) startPlugins(ctx context.Context) error {
	d.onClose(d.managed.Close)
	return d.managed.Open(ctx, managed.Engine{
		Runtime: d.monitors, Specs: d.confined, CgroupParent: d.cfg.CgroupParent, Scopes: d.cfg.scopes(),
		Binary: d.defaultBinary,
		Open: func(ctx context.Context, name reference.Named, login apiregistry.AuthConfig, push bool) (managed.Repository, error) {
			repo, err := d.registry.Open(ctx, name, login, push)
			if err != nil {
				return nil, err
			}
			return repo, nil
		},
		InUse: func(name string) bool { return d.pluginVolumes.Uses(name) || d.pluginNets.Uses(name) },
	})
}

func (d *Daemon) openVolumes(context.Context) error {
	own, err := local.Open(local.Config{
		Dir: filepath.Join(d.cfg.DataRoot, "volumes"), Events: d.events, Logger: d.log.With("component", "volume"),
	})
	if err != nil {
		return err
	}
	d.pluginVolumes, err = volumeplugin.Open(volumeplugin.Config{
		Dir: filepath.Join(d.cfg.DataRoot, "plugin-volumes"), RunDir: filepath.Join(d.cfg.ExecRoot, "plugin-mounts"),
		Plugins: d.plugins, Events: d.events, Logger: d.log.With("component", "volume"),
	})
	if err != nil {
		return err
	}
	d.localVolumes = own
	d.volumes = volume.NewSet(own, d.pluginVolumes)
	return nil
}

// volumeDrivers are those that `docker info` shows.
func (d *Daemon) volumeDrivers() []string {
	names := append([]string{volume.Local}, d.plugins.Known(plugin.VolumeDriver)...)
	slices.Sort(names)
	return names
}

// networkDrivers are those that `docker info` shows.
func (d *Daemon) networkDrivers() []string {
	names := append([]string{"bridge", "host", "ipvlan", "macvlan", "null"}, d.plugins.Known(plugin.NetworkDriver)...)
	slices.Sort(names)
	return names
}
