package daemon

import (
	"context"

	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/sys/apparmor"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultProfile is the AppArmor profile of containers that name none; tools
// look for Docker's name.
const defaultProfile = "docker-default"

// confinement sees to it that the default profile is loaded when a container
// is about to be started under it.
type confinement struct {
	*oci.Builder
	profile *apparmor.Default // nil: there is none here
}

// Spec is the builder's; it blocks while the profile is loaded, if that must be.
func (c confinement) Spec(ctx context.Context, o oci.Options) (*specs.Spec, []string, error) {
	spec, warnings, err := c.Builder.Spec(ctx, o)
	if err == nil && c.profile != nil && spec.Process.ApparmorProfile == c.profile.Name {
		err = c.profile.Ensure(ctx)
	}
	return spec, warnings, err
}

// confine finds out what confinement containers get by default.
func (d *Daemon) confine(b *oci.Builder) confinement {
	c := confinement{Builder: b}
	if !d.facts.AppArmor {
		return c
	}
	p, err := apparmor.New(defaultProfile)
	if err != nil {
		d.log.Warn("AppArmor is on, but containers run without the profile "+defaultProfile, "reason", err)
		return c
	}
	c.profile = p
	return c
}

// name is what containers that name no profile get; empty: nothing.
func (c confinement) name() string {
	if c.profile == nil {
		return ""
	}
	return c.profile.Name
}
