package daemon

import (
	"context"
	"path/filepath"
	"slices"

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
	d.plugins = plugin.NewRegistry(plugin.Config{
		Sockets: d.cfg.PluginDirs, Specs: d.cfg.PluginDirs, Logger: d.log.With("component", "plugin"),
	})
	return nil
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
	d.volumes = volume.NewSet(own, d.pluginVolumes)
	return nil
}

// volumeDrivers are those that `docker info` shows.
func (d *Daemon) volumeDrivers() []string {
	names := append([]string{volume.Local}, d.plugins.Known(plugin.VolumeDriver)...)
	slices.Sort(names)
	return names
}
