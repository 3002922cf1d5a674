package container

import (
	"testing"

	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestImageFitsPlatform(t *testing.T) {
	for _, c := range []struct {
		os, arch, variant, wanted string
		ok                        bool
	}{
		{"linux", "amd64", "", "", true},
		{"linux", "amd64", "", "linux/amd64", true},
		{"linux", "amd64", "", "linux/x86_64", true},
		{"linux", "amd64", "", "linux/s390x", false},
		{"linux", "arm64", "", "linux/arm64/v8", true},
		{"linux", "arm", "", "linux/arm/v7", true},
		{"linux", "arm", "v6", "linux/arm/v7", true},
		{"linux", "arm", "v7", "linux/arm/v6", false},
		{"windows", "amd64", "", "linux/amd64", false},
		{"", "", "", "linux/s390x", true},
	} {
		var img image.Image
		img.Config.Platform = ocispec.Platform{OS: c.os, Architecture: c.arch, Variant: c.variant}
		err := fits(img, "debian", c.wanted)
		if (err == nil) != c.ok || err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("%s/%s/%s for %q: %v", c.os, c.arch, c.variant, c.wanted, err)
		}
	}
	if err := fits(image.Image{}, "debian", "a/b/c/d"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a platform that is none: %v", err)
	}
}

func TestDefaultNetworkIsNamed(t *testing.T) {
	mac := &apinetwork.EndpointSettings{DriverOpts: map[string]string{"a": "b"}}
	asked := map[string]*apinetwork.EndpointSettings{"default": mac}
	nameDefault(asked, "bridge")
	if len(asked) != 1 || asked["bridge"] != mac {
		t.Errorf("asked of the default network: %v", asked)
	}
	other := &apinetwork.EndpointSettings{}
	asked = map[string]*apinetwork.EndpointSettings{"default": mac, "bridge": other}
	nameDefault(asked, "bridge")
	if len(asked) != 1 || asked["bridge"] != other {
		t.Errorf("what is asked by name comes first: %v", asked)
	}
	rec := &Record{HostConfig: &container.HostConfig{NetworkMode: "bridge"}}
	if w := wantedNetworks(rec); len(w) != 1 || w["bridge"] != nil {
		t.Errorf("nothing asked: %v", w)
	}
}
