package daemon

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"escale.dev/escale/internal/cluster/scheduler"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/registry/server"
	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// DefaultInstance is the instance whose kernel names are Docker's own.
const DefaultInstance = "escale"

// Config is what an engine is started with: flags over daemon.json over defaults.
type Config struct {
	Instance   string
	DataRoot   string
	ExecRoot   string
	Hosts      []string
	Pidfile    string
	ConfigFile string
	Debug      bool
	LogLevel   string
	Group      string

	TLS         bool
	TLSVerify   bool
	TLSCACert   string
	TLSCert     string
	TLSKey      string
	InsecureTCP bool

	BIP          string
	Bridge       string
	Pools        []string
	MTU          int
	ICC          bool
	IPForward    bool
	IPMasq       bool
	LogDriver    string
	LogOpts      map[string]string
	Runtime      string
	Runtimes     map[string]string // name → path
	RuntimeArgs  map[string][]string
	Init         bool
	InitPath     string
	Ulimits      map[string]*units.Ulimit
	Labels       []string
	Generic      []string
	CgroupParent string
	cgroupConfig
	StopTimeout  int
	StartTimeout int

	Registry        server.Config // of the engine's own registry; no address: none
	RegistryContent bool          // the registry gives the engine's images too

	RestartUnhealthy string
	SafeMode         string
	Scheduling       string
	CleanExit        bool

	StopContainers bool
	containerConfig
	dnsConfig
	publishConfig
	registryConfig
	pluginConfig
	ValidateOnly bool
	ShowVersion  bool

	unused    []string // keys of daemon.json that are Docker's but not used here yet
	notNative string   // why nobody chose a runtime and it is not ours
}

var instanceRule = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// ParseConfig reads the command line and the configuration file.
// pflag.ErrHelp when only help was asked for.
func ParseConfig(args []string, usage func(flags *pflag.FlagSet)) (*Config, error) {
	c := &Config{LogOpts: map[string]string{}, Runtimes: map[string]string{}, RuntimeArgs: map[string][]string{}, Ulimits: map[string]*units.Ulimit{}}
	fs := c.flags()
	fs.Usage = func() { usage(fs) }
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("accepts no arguments, got %q", fs.Args())
	}
	if err := c.readFile(fs); err != nil {
		return nil, err
	}
	c.defaults()
	return c, c.validate()
}

// flags declares the command line; names are dockerd's where it has them.
func (c *Config) flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("escaled", pflag.ContinueOnError)
	fs.SortFlags = true
	fs.StringVar(&c.Instance, "instance", DefaultInstance, "Name of this engine among several on a machine; every name it gives in the kernel carries it")
	fs.StringVar(&c.DataRoot, "data-root", "", "Directory of what persists (default /var/lib/<instance>)")
	fs.StringVar(&c.ExecRoot, "exec-root", "", "Directory of what lives until the machine stops (default /run/<instance>)")
	fs.StringArrayVarP(&c.Hosts, "host", "H", nil, "Where to listen: unix://PATH or tcp://ADDR:PORT (default unix://<exec-root>/escale.sock)")
	fs.StringVarP(&c.Pidfile, "pidfile", "p", "", "Path of the process id file (default <exec-root>/escaled.pid)")
	fs.StringVar(&c.ConfigFile, "config-file", "/etc/escale/daemon.json", "Configuration file")
	fs.BoolVarP(&c.Debug, "debug", "D", false, "Log everything")
	fs.StringVarP(&c.LogLevel, "log-level", "l", "info", `What is logged: "debug", "info", "warn", "error"`)
	fs.StringVarP(&c.Group, "group", "G", "escale", "Group that may use the unix socket")
	fs.BoolVar(&c.TLS, "tls", false, "Use TLS on TCP; implied by --tlsverify")
	fs.BoolVar(&c.TLSVerify, "tlsverify", false, "Use TLS on TCP and accept only clients with a certificate of the CA")
	fs.StringVar(&c.TLSCACert, "tlscacert", "/etc/escale/ca.pem", "Certificate of the CA that clients' certificates are checked against")
	fs.StringVar(&c.TLSCert, "tlscert", "/etc/escale/cert.pem", "Certificate of this engine")
	fs.StringVar(&c.TLSKey, "tlskey", "/etc/escale/key.pem", "Key of this engine")
	fs.BoolVar(&c.InsecureTCP, "insecure-tcp", false, "Allow TCP without TLS: whoever reaches the port is root on this machine")
	fs.StringVar(&c.BIP, "bip", "", "Address and prefix of the default bridge, 172.17.0.1/16")
	fs.StringVar(&c.Bridge, "bridge-name", "", "Name of the default bridge (default <instance>0)")
	fs.StringArrayVar(&c.Pools, "default-address-pool", nil, "Pool that networks are cut from: base=172.30.0.0/16,size=24")
	fs.IntVar(&c.MTU, "mtu", 1500, "MTU of the default bridge")
	fs.BoolVar(&c.ICC, "icc", true, "Let containers on the default bridge reach each other")
	fs.BoolVar(&c.IPForward, "ip-forward", true, "Turn on net.ipv4.ip_forward")
	fs.BoolVar(&c.IPMasq, "ip-masq", true, "Hide the bridge's addresses behind the host's")
	c.dnsConfig.flags(fs)
	fs.StringVar(&c.LogDriver, "log-driver", "json-file", "Default log driver of containers")
	fs.Var(mapFlag{&c.LogOpts}, "log-opt", "Default option of the log driver, key=value")
	fs.StringVar(&c.Runtime, "default-runtime", "", "Default OCI runtime of containers (default native, or runc where the kernel or the program for it is not there)")
	fs.Var(mapFlag{&c.Runtimes}, "add-runtime", "Register an OCI runtime, name=path")
	fs.BoolVar(&c.Init, "init", false, "Run an init in containers that forwards signals and reaps")
	fs.StringVar(&c.InitPath, "init-path", "", "Path of the init binary")
	fs.Var(ulimitFlag{&c.Ulimits}, "default-ulimit", "Default ulimit of containers, name=soft[:hard]")
	fs.StringArrayVar(&c.Labels, "label", nil, "Label of this engine, key=value")
	fs.StringArrayVar(&c.Generic, "node-generic-resource", nil, "Resource of this node, that services can reserve: KIND=NUMBER or KIND=NAME")
	c.registryConfig.flags(fs)
	c.pluginConfig.flags(fs)
	fs.StringVar(&c.Registry.Addr, "registry", "", "Serve a registry of images here too, HOST:PORT; its content is kept in <data-root>/registry")
	fs.BoolVar(&c.RegistryContent, "registry-content", false, "Let the registry give the engine's own images by their names, without a push")
	registryFlags(fs, "registry-", &c.Registry)
	fs.StringVar(&c.CgroupParent, "cgroup-parent", "", "Parent cgroup of containers")
	c.cgroupConfig.flags(fs)
	fs.IntVar(&c.StopTimeout, "shutdown-timeout", 15, "Seconds that containers have to end with --stop-containers")
	fs.IntVar(&c.StartTimeout, "start-timeout", 120, "Seconds that an OCI runtime has to start a container")
	fs.StringVar(&c.RestartUnhealthy, "restart-unhealthy", "false", "Restart containers with a restart policy that stay unhealthy: true, false, or for how long (5m)")
	fs.StringVar(&c.SafeMode, "safe-mode", safeAuto, "Start nothing by itself: on, off, or auto, after three crashes of the engine within a minute")
	fs.StringVar(&c.Scheduling, "scheduling", "spread", "Which node gets a task that several could have: that with the fewest (spread), the fullest (binpack), or the least busy (usage)")
	fs.BoolVar(&c.CleanExit, "clean-exit", false, "Leave no bridge, firewall table or cgroup behind when the engine ends and no container runs")
	fs.BoolVar(&c.StopContainers, "stop-containers", false, "Stop the containers when the engine stops")
	c.containerConfig.flags(fs)
	c.publishConfig.flags(fs)
	fs.BoolVar(&c.ValidateOnly, "validate", false, "Check the configuration and exit")
	fs.BoolVarP(&c.ShowVersion, "version", "v", false, "Print the version and exit")
	return fs
}

// readFile merges daemon.json: a flag given on the command line wins.
func (c *Config) readFile(fs *pflag.FlagSet) error {
	b, err := os.ReadFile(c.ConfigFile)
	if errors.Is(err, os.ErrNotExist) && !fs.Changed("config-file") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unable to configure the engine with file %s: %w", c.ConfigFile, err)
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return fmt.Errorf("unable to configure the engine with file %s: %w", c.ConfigFile, err)
	}
	if err := openProxies(keys); err != nil {
		return fmt.Errorf("unable to configure the engine with file %s: %w", c.ConfigFile, err)
	}
	var unknown []string
	by := map[string]string{} // the key that set a flag
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		raw, name := keys[key], key
		if f, ok := fileKeys[key]; ok {
			name = f
		}
		if fs.Lookup(name) == nil || name == "config-file" || name == "validate" || name == "version" {
			if dockerKeys[key] {
				c.unused = append(c.unused, key)
			} else {
				unknown = append(unknown, key)
			}
			continue
		}
		if fs.Changed(name) {
			continue
		}
		if string(raw) == "null" { // as if it were not there
			continue
		}
		if other, twice := by[name]; twice {
			return fmt.Errorf("unable to configure the engine with file %s: %s and %s say the same: leave one of them out", c.ConfigFile, other, key)
		}
		by[name] = key
		set := c.setKey
		if key == "live-restore" {
			set = c.setLiveRestore
		}
		if err := set(fs, name, raw); err != nil {
			return fmt.Errorf("unable to configure the engine with file %s: %s: %w", c.ConfigFile, key, err)
		}
	}
	sort.Strings(c.unused)
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return fmt.Errorf("unable to configure the engine with file %s: the following directives don't match any configuration option: %s", c.ConfigFile, strings.Join(unknown, ", "))
	}
	return nil
}

// setKey sets the flag name from a JSON value in the form Docker gives that key.
func (c *Config) setKey(fs *pflag.FlagSet, name string, raw json.RawMessage) error {
	set := func(v string) error { return fs.Lookup(name).Value.Set(v) }
	switch name {
	case "add-runtime":
		return c.setRuntimes(raw)
	case "default-ulimit":
		var m map[string]*units.Ulimit
		if err := json.Unmarshal(raw, &m); err != nil {
			return err
		}
		for k, u := range m {
			if u == nil {
				return fmt.Errorf("ulimit %s: null is no limit", k)
			}
			u.Name = k
			c.Ulimits[k] = u
		}
		return nil
	case "default-address-pool":
		var pools []struct {
			Base string `json:"base"`
			Size int    `json:"size"`
		}
		if err := json.Unmarshal(raw, &pools); err != nil {
			return err
		}
		for _, p := range pools {
			if err := set(fmt.Sprintf("base=%s,size=%d", p.Base, p.Size)); err != nil {
				return err
			}
		}
		return nil
	}
	v, err := decodeValue(raw)
	if err != nil {
		return err
	}
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			if err := set(fmt.Sprint(item)); err != nil {
				return err
			}
		}
		return nil
	case map[string]any:
		for k, item := range v {
			if err := set(k + "=" + fmt.Sprint(item)); err != nil {
				return err
			}
		}
		return nil
	default:
		return set(fmt.Sprint(v))
	}
}

// decodeValue reads a value of daemon.json; numbers stay as they are written.
func decodeValue(raw json.RawMessage) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	var items []any
	switch v := v.(type) {
	case []any:
		items = v
	case map[string]any:
		items = slices.Collect(maps.Values(v))
	}
	if slices.Contains(items, nil) {
		return nil, errors.New("null stands where a value is expected")
	}
	return v, nil
}

// setLiveRestore takes Docker's key, which says the opposite of ours.
func (c *Config) setLiveRestore(_ *pflag.FlagSet, _ string, raw json.RawMessage) error {
	var restore bool
	if err := json.Unmarshal(raw, &restore); err != nil {
		return fmt.Errorf("want true or false, not %s", raw)
	}
	c.StopContainers = !restore
	return nil
}

func (c *Config) setRuntimes(raw json.RawMessage) error {
	var m map[string]struct {
		Path string   `json:"path"`
		Args []string `json:"runtimeArgs"`
		Type string   `json:"runtimeType"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	for name, r := range m {
		if r.Type != "" || r.Path == "" {
			return fmt.Errorf("runtime %q: only runtimes with a path are supported", name)
		}
		c.Runtimes[name], c.RuntimeArgs[name] = r.Path, r.Args
	}
	return nil
}

// defaults fills in what depends on other settings.
func (c *Config) defaults() {
	orElse := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	orElse(&c.DataRoot, "/var/lib/"+c.Instance)
	orElse(&c.ExecRoot, "/run/"+c.Instance)
	orElse(&c.Pidfile, filepath.Join(c.ExecRoot, "escaled.pid"))
	c.cgroupConfig.defaults()
	if c.driver != driverSystemd {
		orElse(&c.CgroupParent, "/"+c.cgroupName())
	}
	if len(c.Hosts) == 0 {
		c.Hosts = []string{"unix://" + filepath.Join(c.ExecRoot, "escale.sock")}
	}
	if c.Debug {
		c.LogLevel = "debug"
	}
	if c.Runtime == "" {
		c.chooseRuntime(newMounts, beside)
	}
}

// cgroupName is "docker" for the default instance, because tools look there.
func (c *Config) cgroupName() string {
	if c.Instance == DefaultInstance {
		return "docker"
	}
	return "escale-" + c.Instance
}

// validate refuses what cannot work, before anything is touched.
func (c *Config) validate() error {
	if !instanceRule.MatchString(c.Instance) {
		return fmt.Errorf("invalid instance name %q: only [a-z0-9-], at most 31, are allowed", c.Instance)
	}
	for _, p := range []*string{&c.DataRoot, &c.ExecRoot, &c.Pidfile} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error", "fatal":
	default:
		return fmt.Errorf("invalid logging level: %s", c.LogLevel)
	}
	if c.BIP != "" {
		p, err := netip.ParsePrefix(c.BIP)
		if err != nil || !p.Addr().Is4() {
			return fmt.Errorf("invalid --bip %q: want an IPv4 address and prefix such as 172.17.0.1/16", c.BIP)
		}
	}
	if len(c.Bridge) > 15 {
		return fmt.Errorf("invalid bridge name %q: longer than 15 characters", c.Bridge)
	}
	if err := errors.Join(c.dnsConfig.validate(), c.cgroupConfig.validate(c.CgroupParent)); err != nil {
		return err
	}
	for _, l := range c.Labels {
		if k, _, ok := strings.Cut(l, "="); !ok || k == "" {
			return fmt.Errorf("invalid label %q: want key=value", l)
		}
	}
	if _, _, err := generics(c.Generic); err != nil {
		return err
	}
	if _, err := c.pools(); err != nil {
		return err
	}
	if _, err := c.registry(); err != nil {
		return err
	}
	if _, err := container.ParseHeal(c.RestartUnhealthy); err != nil {
		return fmt.Errorf("invalid --restart-unhealthy: %w", err)
	}
	switch c.SafeMode {
	case safeAuto, safeOn, safeOff:
	default:
		return fmt.Errorf("invalid --safe-mode %q: want auto, on or off", c.SafeMode)
	}
	if scheduler.Scores()[c.Scheduling] == nil {
		return fmt.Errorf("invalid --scheduling %q: want spread, binpack or usage", c.Scheduling)
	}
	if c.StartTimeout < 1 {
		return fmt.Errorf("invalid --start-timeout %d: want a second or more", c.StartTimeout)
	}
	if err := c.registryConfig.validate(); err != nil {
		return err
	}
	if err := c.publishConfig.validate(); err != nil {
		return err
	}
	if err := c.containerConfig.validate(); err != nil {
		return err
	}
	if _, ok := c.Runtimes[c.Runtime]; !ok && c.Runtime != runc && c.Runtime != ownRuntime {
		return fmt.Errorf("default runtime %q is not known: add it with --add-runtime %s=PATH", c.Runtime, c.Runtime)
	}
	if err := logKinds().Check(c.LogDriver, c.LogOpts); err != nil {
		return fmt.Errorf("failed to set log opts: %w", err)
	}
	for _, h := range c.Hosts {
		if _, _, err := c.endpoint(h); err != nil {
			return err
		}
	}
	return nil
}

// endpoint splits a host and says whether it may be served: TCP needs TLS or
// the explicit word that it is not wanted.
func (c *Config) endpoint(host string) (proto, addr string, err error) {
	proto, addr, ok := strings.Cut(host, "://")
	if !ok {
		return "", "", fmt.Errorf("invalid host %q: want unix://PATH or tcp://ADDR:PORT", host)
	}
	switch proto {
	case "unix":
		if addr == "" {
			return "", "", fmt.Errorf("invalid host %q: a unix socket needs a path", host)
		}
	case "tcp":
		secure := c.TLS || c.TLSVerify
		if !secure && !c.InsecureTCP {
			return "", "", fmt.Errorf("host %s: TCP without TLS gives whoever reaches it root on this machine: use --tlsverify with --tlscacert, --tlscert and --tlskey, or say --insecure-tcp", host)
		}
		if !strings.Contains(addr, ":") {
			addr += map[bool]string{true: ":2376", false: ":2375"}[secure]
		}
	default:
		return "", "", fmt.Errorf("invalid host %q: protocol %s is not supported, use unix or tcp", host, proto)
	}
	return proto, addr, nil
}

// tlsConfig is what TCP listeners use; nil without TLS.
func (c *Config) tlsConfig() (*tls.Config, error) {
	if !c.TLS && !c.TLSVerify {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if c.TLSVerify {
		pool, err := certPool(c.TLSCACert)
		if err != nil {
			return nil, err
		}
		t.ClientCAs, t.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("could not load X509 key pair (cert: %q, key: %q): %w", c.TLSCert, c.TLSKey, err)
	}
	t.Certificates = []tls.Certificate{cert}
	return t, nil
}
