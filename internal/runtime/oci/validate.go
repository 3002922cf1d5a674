package oci

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
)

// maxHostname is the kernel's HOST_NAME_MAX.
const maxHostname = 64

// Validate refuses what a container cannot be created with, and discards what
// this host cannot do, with a warning: hc and c are changed accordingly. Either
// may be nil. Volumes, the runtime's name and what needs the engine's other
// containers are not looked at. Errors are of kind ErrInvalidArgument, words
// and warnings Docker's.
func (b *Builder) Validate(hc *container.HostConfig, c *container.Config) (warnings []string, err error) {
	if c != nil {
		if err := validateConfig(c); err != nil {
			return nil, err
		}
	}
	if hc == nil {
		return nil, nil
	}
	if err := b.validateHostConfig(hc); err != nil {
		return nil, err
	}
	warnings, err = b.ValidateResources(&hc.Resources, false)
	if err != nil {
		return warnings, err
	}
	if err := b.validateModes(hc); err != nil {
		return warnings, err
	}
	if !b.host.IPv4Forwarding && !hc.NetworkMode.IsHost() && !hc.NetworkMode.IsNone() {
		warnings = append(warnings, "IPv4 forwarding is disabled. Networking will not work.")
	}
	if hc.NetworkMode.IsHost() && len(hc.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if hc.CgroupnsMode.IsPrivate() && !b.host.Cgroup.Namespaces {
		warnings = append(warnings, "Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.")
	}
	return warnings, nil
}

func validateConfig(c *container.Config) error {
	if c.WorkingDir != "" {
		if !filepath.IsAbs(c.WorkingDir) {
			return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
		}
		c.WorkingDir = filepath.Clean(c.WorkingDir)
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return invalid("%v", err)
		}
	}
	for _, e := range c.Env {
		if e == "" || e[0] == '=' {
			return invalid("invalid environment variable: %s", e)
		}
		// The kernel's strings end at a zero byte: what follows would be lost.
		if strings.ContainsRune(e, 0) {
			return invalid("invalid environment variable: %q", e)
		}
	}
	if len(c.Hostname) > maxHostname {
		return invalid("hostname %q is too long (maximum %d bytes)", c.Hostname, maxHostname)
	}
	return validateHealthcheck(c.Healthcheck)
}

func validateHealthcheck(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.d != 0 && d.d < container.MinimumDuration {
			return invalid("%s in Healthcheck cannot be less than %s", d.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	return nil
}

// validateHostConfig checks what does not depend on the kernel.
func (b *Builder) validateHostConfig(hc *container.HostConfig) error {
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	for _, h := range hc.ExtraHosts {
		name, addr, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return invalid("bad format for add-host: %q", h)
		}
		if _, err := netip.ParseAddr(strings.TrimSpace(addr)); addr != "host-gateway" && err != nil {
			return invalid("invalid IP address in add-host: %q", addr)
		}
	}
	if err := validatePorts(hc.PortBindings); err != nil {
		return err
	}
	if err := container.ValidateRestartPolicy(hc.RestartPolicy); err != nil {
		return invalid("%v", err)
	}
	if _, err := b.normalizeCapabilities(hc.CapAdd); err != nil {
		return invalid("invalid CapAdd: %v", err)
	}
	if _, err := b.normalizeCapabilities(hc.CapDrop); err != nil {
		return invalid("invalid CapDrop: %v", err)
	}
	if !hc.Isolation.IsDefault() {
		return invalid("invalid isolation '%s' on linux", hc.Isolation)
	}
	if _, there := hc.Annotations[""]; there {
		return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	if _, err := ParseSecurity(hc.SecurityOpt, false); err != nil {
		return err
	}
	if _, err := appendDeviceRules(nil, hc.DeviceCgroupRules); err != nil {
		return err
	}
	for _, dest := range sortedKeys(hc.Tmpfs) {
		if filepath.Clean(dest) == "/" {
			return invalid("invalid specification: destination can't be '/'")
		}
		if !filepath.IsAbs(dest) {
			return invalid("invalid mount path: '%s' mount path must be absolute", dest)
		}
		if _, err := tmpfs(Mount{Options: hc.Tmpfs[dest]}); err != nil {
			return err
		}
	}
	return nil
}

func validatePorts(ports network.PortMap) error {
	for port, bindings := range ports {
		if !port.IsValid() || port.Num() == 0 {
			return invalid("invalid port specification: %q", port.String())
		}
		for _, bind := range bindings {
			if bind.HostPort == "" {
				continue
			}
			if _, err := network.ParsePortRange(bind.HostPort); err != nil {
				return invalid("invalid port specification: %q", bind.HostPort)
			}
		}
	}
	return nil
}

// validateModes checks namespaces and what else has few values.
func (b *Builder) validateModes(hc *container.HostConfig) error {
	switch {
	case !hc.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", hc.IpcMode)
	case !hc.PidMode.Valid():
		return invalid("invalid PID mode: %v", hc.PidMode)
	case hc.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case !hc.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", hc.UTSMode)
	case hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000:
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	case !hc.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	}
	if p := hc.CgroupParent; p != "" && b.host.SystemdCgroup && (len(p) <= len("x.slice")-1 || !strings.HasSuffix(p, ".slice")) {
		return invalid(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
	}
	names := map[string]bool{}
	hc.Ulimits = slices.DeleteFunc(hc.Ulimits, func(l *container.Ulimit) bool { return l == nil })
	for _, l := range hc.Ulimits {
		if _, known := rlimits[l.Name]; !known {
			return invalid("invalid ulimit type: %s", l.Name)
		}
		if names[l.Name] {
			return invalid("ulimit %s is given twice", l.Name)
		}
		names[l.Name] = true
		if soft, hard := uint64(l.Soft), uint64(l.Hard); hard != unix.RLIM_INFINITY && soft > hard {
			return invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", l.Soft, l.Hard)
		}
	}
	return nil
}
