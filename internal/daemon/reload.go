package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/runtime"
	apievents "github.com/moby/moby/api/types/events"
)

// live is what SIGHUP may change while the engine runs.
type live struct {
	cfg      *Config
	runtimes map[string]runtime.Binary
}

// reloadable are the fields of Config that SIGHUP changes, by their keys in
// daemon.json. Every other one takes a restart.
var reloadable = map[string]string{
	"Debug": "debug", "LogLevel": "log-level", "Labels": "labels", "Runtime": "default-runtime", "Runtimes": "runtimes", "RuntimeArgs": "runtimes",
	"StopTimeout": "shutdown-timeout", "StopContainers": "stop-containers", "StartTimeout": "start-timeout",
	"RestartUnhealthy": "restart-unhealthy", "SafeMode": "safe-mode", "CleanExit": "clean-exit",
	"Insecure": "insecure-registries", "Mirrors": "registry-mirrors", "Downloads": "max-concurrent-downloads", "Uploads": "max-concurrent-uploads",
	"LayerAttempts": "max-download-attempts", "HTTPProxy": "http-proxy", "HTTPSProxy": "https-proxy", "NoProxy": "no-proxy",
}

// changes compares configurations: the keys that differ, those that SIGHUP can
// change and those that it cannot.
func changes(old, next *Config) (can, cannot []string) {
	names := map[string]string{}
	for flag, key := range map[string]string{"Pools": "default-address-pools", "BIP": "bip", "ICC": "icc", "MTU": "mtu", "DNS": "dns", "DNSSearch": "dns-search",
		"DNSOptions": "dns-opts", "IPForward": "ip-forward", "IPMasq": "ip-masq", "TLSVerify": "tlsverify", "TLSCACert": "tlscacert", "TLSCert": "tlscert",
		"TLSKey": "tlskey", "InsecureTCP": "insecure-tcp", "LogOpts": "log-opts", "Ulimits": "default-ulimits", "InitPath": "init-path", "Generic": "node-generic-resources"} {
		names[flag] = key
	}
	differing(reflect.ValueOf(old).Elem(), reflect.ValueOf(next).Elem(), func(field string) {
		if key, ok := reloadable[field]; ok {
			can = append(can, key)
			return
		}
		key, ok := names[field]
		if !ok {
			key = dashed(field)
		}
		cannot = append(cannot, key)
	})
	slices.Sort(can)
	slices.Sort(cannot)
	return slices.Compact(can), cannot
}

// differing tells the exported fields in which two structures differ, also of
// those that are embedded.
func differing(a, b reflect.Value, tell func(field string)) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		switch {
		case f.Anonymous:
			differing(a.Field(i), b.Field(i), tell)
		case f.IsExported() && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			tell(f.Name)
		}
	}
}

// dashed writes a field's name as flags and keys are written: DataRoot is data-root.
func dashed(name string) string {
	var b strings.Builder
	for i, r := range name {
		if i > 0 && r >= 'A' && r <= 'Z' && (name[i-1] < 'A' || name[i-1] > 'Z') {
			b.WriteByte('-')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}

// reload takes over a new configuration, all of it or nothing.
func (d *Daemon) reload(next *Config) error {
	now := d.now()
	can, cannot := changes(now.cfg, next)
	if len(cannot) > 0 {
		return fmt.Errorf("these keys take a restart of the engine: %s", strings.Join(cannot, ", "))
	}
	runtimes, err := next.runtimes()
	if err != nil {
		return err
	}
	for _, v := range d.containers.List() {
		if takenAway(now.runtimes, runtimes, v.HostConfig.Runtime) {
			return fmt.Errorf("runtimes: %q is the runtime of container %s", v.HostConfig.Runtime, v.ID.Short())
		}
	}
	d.live.Store(&live{next, runtimes})
	d.containers.SetDefaults(d.defaults())
	if err := d.registry.Set(next.client()); err != nil {
		return err // never: validate has checked it
	}
	d.images.Remotes().Set(next.transfers())
	d.level.Set(logLevel(next.LogLevel))
	if err := d.reloadSafeMode(now.cfg.SafeMode, next.SafeMode); err != nil {
		d.log.Warn("safe mode", "error", err)
	}
	for _, key := range next.unused {
		d.log.Warn("daemon.json: this version has no use for the key", "key", key)
	}
	next.tellRuntime(d.log)
	d.log.Info("configuration reloaded", "file", next.ConfigFile, "changed", strings.Join(can, ","))
	d.events.Publish(events.Message{
		Type: apievents.DaemonEventType, Action: apievents.ActionReload,
		Actor: apievents.Actor{ID: d.id, Attributes: d.attributes(next, runtimes)},
	})
	return nil
}

// takenAway tells whether a runtime is one no longer. What was none before does
// not keep a reload from anything: it was taken away by a restart.
func takenAway(old, next map[string]runtime.Binary, name string) bool {
	_, was := old[name]
	_, is := next[name]
	return was && !is
}

// attributes are what the event of a reload tells: the settings that it could change.
func (d *Daemon) attributes(c *Config, runtimes map[string]runtime.Binary) map[string]string {
	labels, _ := json.Marshal(append([]string{}, c.Labels...)) // strings always can be
	insecure, _ := json.Marshal(append([]string{}, c.Insecure...))
	mirrors, _ := json.Marshal(append([]string{}, c.Mirrors...))
	named := make([]string, 0, len(runtimes))
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		named = append(named, name+":"+runtimes[name].Path)
	}
	return map[string]string{
		"name": d.host.Hostname, "debug": strconv.FormatBool(c.LogLevel == "debug"), "log-level": c.LogLevel, "labels": string(labels),
		"default-runtime": c.Runtime, "runtimes": strings.Join(named, " "), "shutdown-timeout": strconv.Itoa(c.StopTimeout),
		"live-restore": strconv.FormatBool(!c.StopContainers), "start-timeout": strconv.Itoa(c.StartTimeout),
		"restart-unhealthy": c.RestartUnhealthy, "safe-mode": c.SafeMode,
		"insecure-registries": string(insecure), "registry-mirrors": string(mirrors), "max-concurrent-downloads": strconv.Itoa(c.Downloads),
		"max-concurrent-uploads": strconv.Itoa(c.Uploads), "max-download-attempts": strconv.Itoa(c.LayerAttempts), "clean-exit": strconv.FormatBool(c.CleanExit),
	}
}

// reloads reads the configuration again at each signal until ctx ends. What is
// wrong with it is said in the log, and nothing of it is applied.
func (d *Daemon) reloads(ctx context.Context, hup <-chan os.Signal, parse func() (*Config, error)) {
	for {
		select {
		case <-hup:
		case <-ctx.Done():
			return
		}
		next, err := parse()
		if err == nil {
			err = d.reload(next)
		}
		if err != nil {
			d.log.Error("configuration not reloaded, nothing of it is applied", "error", err)
		}
	}
}

// heal reads --restart-unhealthy, which validate has checked.
func (c *Config) heal() container.Heal {
	h, err := container.ParseHeal(c.RestartUnhealthy)
	if err != nil {
		return container.Heal{}
	}
	return h
}
