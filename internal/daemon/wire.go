package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/fluentd"
	"escale.dev/escale/internal/logs/ship/gelf"
	"escale.dev/escale/internal/logs/ship/journald"
	"escale.dev/escale/internal/logs/ship/syslog"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/dns"
	"escale.dev/escale/internal/network/macvlan"
	"escale.dev/escale/internal/network/none"
	"escale.dev/escale/internal/network/overlay"
	netplugin "escale.dev/escale/internal/network/plugin"
	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/stats"
	"escale.dev/escale/internal/sys/blockgroup"
	"escale.dev/escale/internal/sys/freezer"
	"escale.dev/escale/internal/sys/nobind"
)

// cgroupRoot is where distributions mount the cgroup file systems.
const cgroupRoot = "/sys/fs/cgroup"

func (d *Daemon) openEvents(context.Context) error {
	d.events = events.New(events.Config{Path: filepath.Join(d.cfg.DataRoot, "events.jsonl"), Logger: d.log.With("component", "events")})
	d.onClose(d.events.Close)
	return nil
}

func (d *Daemon) openImages(ctx context.Context) (err error) {
	d.images, err = image.Open(ctx, image.Config{
		Root: d.cfg.DataRoot, Logger: d.log.With("component", "image"),
		Init: &image.InitLayer{Version: container.InitLayerVersion, Make: container.InitLayer},
	})
	if err != nil {
		return err
	}
	d.onClose(d.images.Close)
	d.images.Remotes().Set(d.cfg.transfers())
	return nil
}

func (d *Daemon) openNetwork(ctx context.Context) error {
	pools, err := d.cfg.pools()
	if err != nil {
		return err
	}
	cfg := network.Config{
		Instance: d.cfg.Instance, BridgeName: d.cfg.Bridge, Pools: pools, MTU: d.cfg.MTU, ICC: d.cfg.ICC,
		IPForward: d.cfg.IPForward, IPMasq: d.cfg.IPMasq, NetnsDir: filepath.Join(d.cfg.ExecRoot, "netns"), IngressFile: filepath.Join(d.cfg.ExecRoot, "ingress.json"),
		Dir: filepath.Join(d.cfg.DataRoot, "networks"), Seed: d.id, Events: d.events, Logger: d.log.With("component", "network"),
	}
	if d.cfg.BIP != "" {
		cfg.BIP = netip.MustParsePrefix(d.cfg.BIP) // checked by validate
	}
	if err := d.cfg.publishConfig.apply(&cfg); err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	resolver := dns.New(cfg.Logger)
	d.onClose(resolver.Close)
	cfg.Resolver, cfg.ResolvConf = resolver, d.cfg.ResolvConf
	d.pluginNets, err = netplugin.Open(netplugin.Config{Dir: filepath.Join(d.cfg.DataRoot, "plugin-networks"), Plugins: d.plugins, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	d.onClose(d.pluginNets.Close)
	cfg.Others = d.pluginNets
	d.spans = newSpans(d)
	cfg.Spanning = d.spans
	bridges := bridge.New(cfg)
	d.overlay = overlay.New(cfg, bridges)
	d.networks = network.NewManager(cfg, bridges, d.overlay, none.New(), none.Host(), macvlan.New(cfg), macvlan.IPVLAN(cfg))
	d.onClose(d.networks.Close)
	return d.networks.Open(ctx)
}

func (d *Daemon) openContainers(ctx context.Context) error {
	// Now that the network is open: whether the host forwards is one of the facts.
	var err error
	if d.facts, err = oci.DetectHost(); err != nil {
		return err
	}
	d.facts.SystemdCgroup = d.cfg.driver == driverSystemd
	monitors, err := d.openRuntime()
	if err != nil {
		return err
	}
	builder, err := d.specs()
	if err != nil {
		return err
	}
	specs := d.confine(builder)
	d.monitors, d.confined = monitors, specs
	defaults := d.defaults()
	defaults.AppArmorProfile = specs.name()
	d.shipping = ship.New(d.log.With("component", "log"), logKinds())
	d.onClose(d.shipping.Close)
	dir, runs := filepath.Join(d.cfg.DataRoot, "containers"), filepath.Join(d.cfg.ExecRoot, "containers")
	if err := nobind.Prepare(runs); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	d.containers = container.New(container.Config{
		Dir: dir, RunDir: runs, RestoreDir: filepath.Join(d.cfg.DataRoot, "restores"),
		Runtime: monitors, Images: images{Store: d.images, events: d.events}, Rootfs: d.images.Roots(), Networks: ownNetworks{d.networks, d.spans},
		Volumes: d.volumes, Specs: specs, Freezer: freezer.Freezer{Root: cgroupRoot},
		Figures: stats.New(d.facts.Cgroup), Processes: d.facts.Cgroup,
		Events: d.events, Logs: d.shipping, Defaults: defaults, Logger: d.log.With("component", "container"),
	})
	d.onClose(d.containers.Close)
	d.onClose(d.pluginVolumes.Close) // before: an end of a container may wait for a plugin
	d.onClose(d.pluginNets.Close)
	if err := d.containers.Open(ctx); err != nil {
		return err
	}
	blockgroup.Spread(dir)
	d.volumes.Settle()
	return nil
}

// logKinds are the log drivers there are.
func logKinds() ship.Kinds {
	return append(ship.Files(), syslog.Kind(), journald.Kind(journald.Socket), gelf.Kind(), fluentd.Kind())
}

// defaults are the settings that reach containers.
func (d *Daemon) defaults() container.Defaults {
	c := d.now().cfg
	init, err := oci.LookupInit(c.InitPath, ownDirs()...)
	if err != nil {
		d.log.Debug("no init for --init", "reason", err) // a container that asks for one is told
	}
	seccomp, err := c.seccomp() // checked at the start
	if err != nil {
		d.log.Warn("default seccomp profile", "error", err)
	}
	return container.Defaults{
		NoNewPrivileges: c.NoNewPrivileges, SeccompProfile: seccomp, HostGateways: c.HostGatewayIPs,
		LogDriver: c.LogDriver, LogOpts: c.LogOpts, Init: c.Init, InitPath: init, Ulimits: c.Ulimits,
		DNS: c.DNS, DNSSearch: c.DNSSearch, DNSOptions: c.DNSOptions,
		Runtime: c.Runtime, Runtimes: d.now().runtimes, CgroupParent: c.CgroupParent, Scopes: c.scopes(), StopTimeout: 10,
		StartTimeout: time.Duration(c.StartTimeout) * time.Second, Heal: c.heal(),
	}
}

func (d *Daemon) openAPI(context.Context) error {
	if err := d.listen(); err != nil {
		return err
	}
	d.server = engine.New(engine.Config{
		Containers: d.containers, Archives: d.containers.Files(), Watching: d.containers, Updates: d.containers, Volumes: d.volumes, VolumeCopies: d.containers.Copies(), Plugins: d.managed,
		Registries: registries{d.registry, d.images, d.events}, Builder: d.builder,
		Networks: allNetworks{ownNetworks{d.networks, d.spans}},
		Images:   images{Store: d.images, users: d.containers.Users, events: d.events},
		System:   systemInfo{d}, SafeMode: d.safe, Apps: d.orchestrator.apps, Swarm: d.orchestrator.swarm, Backups: swarm.Backups{Swarm: d.orchestrator.swarm}, Moves: d.orchestrator.desk(), Keeper: d.orchestrator.keeper, Elsewhere: taskPlaces{d.peers, d.orchestrator}, Events: d.events, Logger: d.log, Version: Version,
		ContainerDir: filepath.Join(d.cfg.DataRoot, "containers"), StorageDriver: storageDriver, Debug: d.cfg.Debug,
		Sandbox: d.sandbox, Activity: d.rest.touch,
	})
	d.onClose(d.server.Close)
	return nil
}

// sandbox tells the identity and the handle of a running container's network.
func (d *Daemon) sandbox(id container.ID) (string, string) {
	v, err := d.containers.Get(string(id))
	if err != nil || len(v.Endpoints) == 0 {
		return "", ""
	}
	return string(id), d.networks.Path(string(id), v.Endpoints)
}
