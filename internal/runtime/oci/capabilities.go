package oci

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are those that Docker leaves to a container.
var defaultCapabilities = []string{
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FSETID",
	"CAP_FOWNER",
	"CAP_MKNOD",
	"CAP_NET_RAW",
	"CAP_SETGID",
	"CAP_SETUID",
	"CAP_SETFCAP",
	"CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT",
	"CAP_KILL",
	"CAP_AUDIT_WRITE",
}

const allCapabilities = "ALL"

func capabilityName(c capability.Cap) string { return "CAP_" + strings.ToUpper(c.String()) }

// normalizeCapabilities brings names into the form CAP_X or ALL and refuses
// those that do not exist or that the engine has not itself.
func (b *Builder) normalizeCapabilities(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		name = strings.ToUpper(name)
		if name == allCapabilities {
			out = append(out, name)
			continue
		}
		if !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if !b.known[name] {
			return nil, invalid("unknown capability: %q", name)
		}
		if !slices.Contains(b.host.Capabilities, name) {
			return nil, invalid("capability not supported by your kernel or not available in the current environment: %q", name)
		}
		out = append(out, name)
	}
	return out, nil
}

// capabilities are those that a container may have at most.
func (b *Builder) capabilities(add, drop []string, privileged bool) ([]string, error) {
	if privileged {
		return slices.Clone(b.host.Capabilities), nil
	}
	add, err := b.normalizeCapabilities(add)
	if err != nil {
		return nil, err
	}
	if drop, err = b.normalizeCapabilities(drop); err != nil {
		return nil, err
	}
	var out []string
	switch {
	case slices.Contains(add, allCapabilities):
		out = without(b.host.Capabilities, drop)
	case slices.Contains(drop, allCapabilities):
		out = add
	default:
		for _, c := range without(defaultCapabilities, drop) {
			if slices.Contains(b.host.Capabilities, c) {
				out = append(out, c)
			}
		}
		out = append(out, add...)
	}
	// A name given twice, or one that is there by default, is no error.
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(c string) bool {
		again := seen[c]
		seen[c] = true
		return again
	}), nil
}

func without(list, drop []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(c string) bool { return slices.Contains(drop, c) })
}

// capabilitySets is what a process of user uid starts with. Who is not root
// has nothing effective, as if it had been root and changed (capabilities(7));
// what file capabilities may give it stays.
func capabilitySets(uid uint32, caps []string) *specs.LinuxCapabilities {
	if uid != 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}
