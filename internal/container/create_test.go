package container

import (
	"net/netip"
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

// TestSharedNetworkIsTheOthers: what a container on another's network asks for in
// vain is refused, before that other is looked for; what its image names is not asked.
func TestSharedNetworkIsTheOthers(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	create(t, m, "web", nil)
	port := apinetwork.MustParsePort("80/tcp")
	type host = container.HostConfig
	for _, c := range []struct {
		words string
		c     container.Config
		h     host
	}{
		{"hostname and the network mode", container.Config{Hostname: "h"}, host{}},
		{"container type network can't be used with links. This would result in undefined behavior", container.Config{}, host{Links: []string{"web"}}},
		{"dns and the network mode", container.Config{}, host{DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}}},
		{"custom host-to-IP mapping and the network mode", container.Config{}, host{ExtraHosts: []string{"a:1.2.3.4"}}},
		{"port publishing and the container type network mode", container.Config{}, host{PublishAllPorts: true}},
		{"port publishing and the container type network mode", container.Config{ExposedPorts: apinetwork.PortSet{port: {}}}, host{PortBindings: apinetwork.PortMap{port: nil}}},
		{"port exposing and the container type network mode", container.Config{ExposedPorts: apinetwork.PortSet{port: {}}}, host{}},
		{"", container.Config{}, host{DNSSearch: []string{"example.org"}, DNSOptions: []string{"ndots:2"}}}, // Docker lets them be
	} {
		for _, other := range []string{"web", "nosuch"} {
			want := "conflicting options: " + c.words
			if c.words == "" {
				want = map[string]string{"web": "", "nosuch": "No such container: nosuch"}[other]
			}
			c.c.Image, c.h.NetworkMode = "debian", container.NetworkMode("container:"+other)
			_, err := m.Create(t.Context(), Create{Config: &c.c, HostConfig: &c.h})
			if err == nil && want != "" || err != nil && (err.Error() != want || !errdefs.IsInvalidArgument(err)) {
				t.Errorf("on the network of %s: %v, want %q", other, err, want)
			}
		}
	}
}
