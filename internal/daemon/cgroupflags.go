package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"escale.dev/escale/internal/sys/systemd"
	"github.com/spf13/pflag"
)

// Who makes the cgroups of containers: the OCI runtime itself, or systemd.
const (
	driverFiles   = "cgroupfs"
	driverSystemd = "systemd"
)

// cgroupConfig says how cgroups are made.
type cgroupConfig struct {
	ExecOpts []string
	driver   string
}

func (c *cgroupConfig) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.ExecOpts, "exec-opt", nil, "Option of how containers are run: native.cgroupdriver=systemd or cgroupfs (default systemd where it runs and cgroups are of version 2 alone)")
}

// booted is there when systemd is the machine's first process (sd_booted(3)), pure when
// version 2 of cgroups is all there is.
var (
	booted = "/run/systemd/system"
	pure   = filepath.Join(cgroupRoot, "cgroup.controllers")
)

// defaults chooses the driver as dockerd does. Other options than its own are passed over, as dockerd
// passes them over.
func (c *cgroupConfig) defaults() {
	c.driver = driverFiles
	for _, o := range c.ExecOpts {
		key, v, _ := strings.Cut(o, "=")
		if strings.EqualFold(strings.TrimSpace(key), "native.cgroupdriver") {
			if v = strings.TrimSpace(v); v != "" {
				c.driver = v
				return
			}
			break
		}
	}
	if _, err := os.Stat(pure); err == nil && running() {
		c.driver = driverSystemd
	}
}

func running() bool {
	info, err := os.Lstat(booted)
	return err == nil && info.IsDir()
}

func (c *cgroupConfig) validate(parent string) error {
	switch c.driver {
	case driverFiles:
		return nil
	case driverSystemd:
	case "none":
		return errors.New("native.cgroupdriver option none is internally used and cannot be specified manually")
	default:
		return fmt.Errorf("native.cgroupdriver option %s not supported", c.driver)
	}
	if parent != "" && !systemd.IsSlice(parent) {
		return errors.New(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
	}
	if !running() && os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") == "" {
		return errors.New("native.cgroupdriver=systemd: systemd is not running on this host")
	}
	return nil
}

// scopes is what the names of systemd's scopes begin with: "docker", as tools expect, or
// what the instance's cgroup would be called; empty where it makes none.
func (c *Config) scopes() string {
	if c.driver != driverSystemd {
		return ""
	}
	return c.cgroupName()
}
