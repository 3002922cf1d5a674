package oci

import (
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// Security is what HostConfig.SecurityOpt says.
type Security struct {
	NoNewPrivileges  bool
	WritableCgroups  *bool  // nil: as privileged says
	Seccomp          string // empty: the engine's; "unconfined", "builtin" or JSON
	AppArmor         string // empty: the engine's
	UnconfinedSystem bool   // nothing of /proc and /sys is masked or read-only
}

// Words for a seccomp profile that is no JSON.
const (
	profileBuiltin    = "builtin"
	profileUnconfined = "unconfined"
)

// ParseSecurity reads security options, each "key=value" or, as old clients
// write it, "key:value". Labels are SELinux's: accepted, and without effect as
// long as the engine does not label. Errors are Docker's, of kind
// ErrInvalidArgument.
func ParseSecurity(opts []string, noNewPrivileges bool) (Security, error) {
	s := Security{NoNewPrivileges: noNewPrivileges}
	for _, opt := range opts {
		switch opt {
		case "no-new-privileges":
			s.NoNewPrivileges = true
			continue
		case "writable-cgroups":
			yes := true
			s.WritableCgroups = &yes
			continue
		case "disable": // of labels
			continue
		}
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, ok = strings.Cut(opt, ":")
		}
		if !ok {
			return Security{}, invalid("invalid --security-opt 1: %q", opt)
		}
		bad := func() (Security, error) { return Security{}, invalid("invalid --security-opt 2: %q", opt) }
		switch key {
		case "label":
		case "apparmor":
			s.AppArmor = value
		case "seccomp":
			s.Seccomp = value
		case "no-new-privileges":
			yes, err := strconv.ParseBool(value)
			if err != nil {
				return bad()
			}
			s.NoNewPrivileges = yes
		case "writable-cgroups":
			yes, err := strconv.ParseBool(value)
			if err != nil {
				return bad()
			}
			s.WritableCgroups = &yes
		case "systempaths":
			if value != "unconfined" {
				return bad()
			}
			s.UnconfinedSystem = true
		default:
			return bad()
		}
	}
	return s, nil
}

// appArmor is the profile of a container's processes; empty where the kernel
// has no AppArmor.
func (b *Builder) appArmor(o Options, s Security) string {
	switch {
	case !b.host.AppArmor:
		return ""
	case s.AppArmor != "":
		return s.AppArmor
	case o.HostConfig.Privileged || o.AppArmorProfile == "":
		return profileUnconfined
	}
	return o.AppArmorProfile
}

// maskedPaths are hidden from a container, readonlyPaths cannot be written.
func (b *Builder) maskedPaths() []string {
	return append([]string{
		"/proc/acpi",
		"/proc/asound",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/proc/timer_list",
		"/proc/timer_stats",
		"/sys/devices/virtual/powercap",
		"/sys/firmware",
	}, b.host.ThermalPaths...)
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// paths are the masked and the read-only paths of a container. Lists of its own
// win, also over privileged; an empty list is one.
func (b *Builder) paths(hc *container.HostConfig, s Security) (masked, readonly []string) {
	if !hc.Privileged && !s.UnconfinedSystem {
		masked, readonly = b.maskedPaths(), readonlyPaths()
	}
	if hc.MaskedPaths != nil {
		masked = hc.MaskedPaths
	}
	if hc.ReadonlyPaths != nil {
		readonly = hc.ReadonlyPaths
	}
	return masked, readonly
}
