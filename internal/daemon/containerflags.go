package daemon

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"escale.dev/escale/internal/runtime/cdi"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// containerConfig is what containers get that do not say otherwise.
type containerConfig struct {
	ShmSize         int64 // bytes
	IpcMode         string
	CgroupnsMode    string // empty: private with version 2 of cgroups, else the host's
	NoNewPrivileges bool
	SeccompProfile  string // path, "builtin" or "unconfined"
	HostGatewayIPs  []string
	CDISpecDirs     []string
	Features        map[string]string
}

func (c *containerConfig) flags(fs *pflag.FlagSet) {
	c.Features, c.ShmSize = map[string]string{}, 64<<20
	fs.Var(bytesFlag{&c.ShmSize}, "default-shm-size", "Size of /dev/shm")
	fs.StringVar(&c.IpcMode, "default-ipc-mode", "private", `IPC namespace of containers: "shareable" or "private"`)
	fs.StringVar(&c.CgroupnsMode, "default-cgroupns-mode", "", `Cgroup namespace of containers: "host" or "private"`)
	fs.BoolVar(&c.NoNewPrivileges, "no-new-privileges", false, "Let no container gain privileges by starting programs")
	fs.StringVar(&c.SeccompProfile, "seccomp-profile", "builtin", `Path of the default seccomp profile, "builtin" or "unconfined"`)
	fs.StringArrayVar(&c.HostGatewayIPs, "host-gateway-ip", nil, "Address that host-gateway in --add-host stands for (default the bridge's)")
	fs.StringArrayVar(&c.CDISpecDirs, "cdi-spec-dir", []string{"/etc/cdi", "/var/run/cdi"}, "Directory with descriptions of devices (CDI)")
	fs.Var(mapFlag{&c.Features}, "feature", "Turn a feature on or off: cdi=false")
}

// bytesFlag is a size such as 64m.
type bytesFlag struct{ n *int64 }

func (f bytesFlag) String() string { return units.BytesSize(float64(*f.n)) }
func (f bytesFlag) Type() string   { return "bytes" }
func (f bytesFlag) Set(s string) (err error) {
	*f.n, err = units.RAMInBytes(s)
	return err
}

func (c *containerConfig) validate() error {
	if m := container.IpcMode(c.IpcMode); !m.IsPrivate() && !m.IsShareable() {
		return fmt.Errorf("IPC mode %q is not supported as default: want private or shareable", c.IpcMode)
	}
	if m := container.CgroupnsMode(c.CgroupnsMode); c.CgroupnsMode != "" && !m.IsHost() && !m.IsPrivate() {
		return fmt.Errorf("invalid default cgroup namespace (%s), use \"host\" or \"private\"", c.CgroupnsMode)
	}
	if c.ShmSize <= 0 {
		return fmt.Errorf("default size of /dev/shm must be greater than 0")
	}
	for _, ip := range c.HostGatewayIPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			return fmt.Errorf("invalid --host-gateway-ip %q: not an IP address", ip)
		}
	}
	for name, value := range c.Features {
		if _, err := strconv.ParseBool(value); err != nil {
			return fmt.Errorf("feature %s: invalid value %q: want true or false", name, value)
		}
	}
	_, err := c.seccomp()
	return err
}

// seccomp is the default profile: a word, or the JSON of the file.
func (c *containerConfig) seccomp() (string, error) {
	switch c.SeccompProfile {
	case "", "builtin":
		return "", nil
	case "unconfined":
		return c.SeccompProfile, nil
	}
	b, err := os.ReadFile(c.SeccompProfile)
	if err != nil {
		return "", fmt.Errorf("opening seccomp profile (%s) failed: %w", c.SeccompProfile, err)
	}
	if !json.Valid(b) {
		return "", fmt.Errorf("seccomp profile %s: not JSON", c.SeccompProfile)
	}
	return string(b), nil
}

// cdi tells whether devices are looked for by name.
func (c *containerConfig) cdi() bool {
	on, err := strconv.ParseBool(c.Features["cdi"])
	return (err != nil || on) && len(c.CDISpecDirs) > 0
}

// specs makes the builder of specifications with the engine's defaults.
func (d *Daemon) specs() (*oci.Builder, error) {
	b := oci.New(d.facts)
	b.UseDefaults(oci.Defaults{
		ShmSize: d.cfg.ShmSize, IpcMode: container.IpcMode(d.cfg.IpcMode), CgroupnsMode: container.CgroupnsMode(d.cfg.CgroupnsMode),
	})
	if d.cfg.cdi() {
		var err error
		if d.devices, err = cdi.New(d.cfg.CDISpecDirs); err != nil {
			return nil, err
		}
		b.UseDevices(d.devices)
	}
	return b, nil
}
