package oci

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// seccomp is the system call filter of a container with these bounding
// capabilities, nil for none.
//
// The filter lists what is allowed. What it does not list fails with EPERM if
// the profile could have known it, and with ENOSYS (runc adds that) if it is
// newer than all that the profile names, so that a C library falls back.
func (b *Builder) seccomp(o Options, s Security, bounding []string) (*specs.LinuxSeccomp, error) {
	profile := s.Seccomp
	switch {
	case profile == profileUnconfined:
		return nil, nil
	case o.HostConfig.Privileged:
		// Only a profile that the container itself names is used.
		if profile == "" {
			return nil, nil
		}
	case !b.host.Seccomp:
		if profile != "" && profile != profileBuiltin {
			return nil, invalid("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
		}
		return nil, nil
	case profile == "":
		profile = o.SeccompProfile
	}
	switch profile {
	case profileUnconfined:
		return nil, nil
	case "", profileBuiltin:
		profile = profileBuiltin
	}
	return b.profiles.get(profile, bounding)
}

// maxProfiles bounds what a profileCache keeps: a host has few profiles and few
// sets of capabilities, but a client may send any number.
const maxProfiles = 32

// profileCache keeps filters by profile and capabilities: making one takes
// longer than all the rest of a specification.
type profileCache struct {
	mu   sync.Mutex
	byID map[profileID]*specs.LinuxSeccomp
}

type profileID struct{ profile, bounding string }

// get returns a filter that is not to be changed below its first level.
func (c *profileCache) get(profile string, bounding []string) (*specs.LinuxSeccomp, error) {
	sorted := slices.Sorted(slices.Values(bounding))
	id := profileID{profile, strings.Join(sorted, " ")}
	c.mu.Lock()
	defer c.mu.Unlock()
	filter, ok := c.byID[id]
	if !ok {
		var err error
		if filter, err = makeFilter(profile, sorted); err != nil {
			return nil, err
		}
		if len(c.byID) >= maxProfiles {
			c.byID = nil
		}
		if c.byID == nil {
			c.byID = map[profileID]*specs.LinuxSeccomp{}
		}
		c.byID[id] = filter
	}
	if filter == nil {
		return nil, nil
	}
	filter2 := *filter
	return &filter2, nil
}

// makeFilter resolves a profile's conditions for this kernel and architecture.
func makeFilter(profile string, bounding []string) (*specs.LinuxSeccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: bounding}}}
	if profile == profileBuiltin {
		return seccomp.GetDefaultProfile(spec)
	}
	// The library does not expect a null among the rules.
	var rules struct{ Syscalls []*struct{} }
	if err := json.Unmarshal([]byte(profile), &rules); err == nil && slices.Contains(rules.Syscalls, nil) {
		return nil, invalid("Decoding seccomp profile failed: null in syscalls")
	}
	filter, err := seccomp.LoadProfile(profile, spec)
	if err != nil {
		return nil, invalid("%v", err)
	}
	return filter, nil
}
