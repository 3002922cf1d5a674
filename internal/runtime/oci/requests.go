package oci

import (
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DeviceSource knows devices by name, "vendor.com/class=name"; see runtime/cdi.
type DeviceSource interface {
	Has(kind string) bool
	Inject(spec *specs.Spec, names []string) error
}

// UseDevices gives the Builder its source of devices; without one requests for
// them are refused. Called before the first specification is made.
func (b *Builder) UseDevices(s DeviceSource) { b.named = s }

// gpuKind is whose devices a request for graphics processors means.
const gpuKind = "nvidia.com/gpu"

// gpuCapabilities are what can be asked of them.
var gpuCapabilities = []string{"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}

// request puts the devices that were asked for by name, or by what they can
// do, into a specification.
func (b *Builder) request(spec *specs.Spec, reqs []container.DeviceRequest) error {
	for _, r := range reqs {
		names, err := b.deviceNames(r)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			continue
		}
		if err := b.named.Inject(spec, names); err != nil {
			return words("CDI device injection failed: %v", err)
		}
	}
	return nil
}

func (b *Builder) deviceNames(r container.DeviceRequest) ([]string, error) {
	switch {
	case b.named == nil:
	case r.Driver == "cdi":
		if r.Count != 0 {
			return nil, invalid("unexpected count in CDI device request")
		}
		if len(r.Options) > 0 {
			return nil, invalid("unexpected options in CDI device request")
		}
		return r.DeviceIDs, nil
	case (r.Driver == "" || r.Driver == "nvidia") && wantsGPU(r.Capabilities) && b.named.Has(gpuKind):
		return gpuNames(r)
	}
	return nil, invalid("could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
}

// wantsGPU: one of the lists must be had in full.
func wantsGPU(any [][]string) bool {
	return slices.ContainsFunc(any, func(all []string) bool {
		return !slices.ContainsFunc(all, func(c string) bool { return !slices.Contains(gpuCapabilities, c) })
	})
}

func gpuNames(r container.DeviceRequest) ([]string, error) {
	if r.Count != 0 && len(r.DeviceIDs) > 0 {
		return nil, invalid("cannot set both Count and DeviceIDs on device request")
	}
	ids := slices.Clone(r.DeviceIDs)
	if r.Count < 0 {
		ids = []string{"all"}
	}
	for i := range max(0, r.Count) {
		ids = append(ids, strconv.Itoa(i))
	}
	for i := range ids {
		ids[i] = gpuKind + "=" + ids[i]
	}
	return ids, nil
}
