package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// source is a DeviceSource that notes what it is asked for.
type source struct {
	kinds string
	asked []string
}

func (s *source) Has(kind string) bool { return strings.Contains(s.kinds, kind) }
func (s *source) Inject(_ *specs.Spec, names []string) error {
	s.asked = append(s.asked, names...)
	if strings.Contains(names[0], "bad") {
		return errors.New("unresolvable CDI devices " + names[0])
	}
	return nil
}

func TestDeviceRequests(t *testing.T) {
	gpu := [][]string{{"gpu"}}
	for _, c := range []struct {
		name string
		req  container.DeviceRequest
		kinds,
		want, err string
	}{
		{"all", container.DeviceRequest{Count: -1, Capabilities: gpu}, gpuKind, "nvidia.com/gpu=all", ""},
		{"count", container.DeviceRequest{Count: 2, Capabilities: gpu}, gpuKind, "nvidia.com/gpu=0 nvidia.com/gpu=1", ""},
		{"ids", container.DeviceRequest{DeviceIDs: []string{"1", "GPU-x"}, Capabilities: [][]string{{"compute", "utility", "gpu"}}}, gpuKind, "nvidia.com/gpu=1 nvidia.com/gpu=GPU-x", ""},
		{"none", container.DeviceRequest{Capabilities: gpu}, gpuKind, "", ""},
		{"both", container.DeviceRequest{Count: 1, DeviceIDs: []string{"1"}, Capabilities: gpu}, gpuKind, "", "cannot set both Count and DeviceIDs on device request"},
		{"no specification", container.DeviceRequest{Count: -1, Capabilities: gpu}, "", "", `could not select device driver "" with capabilities: [[gpu]]`},
		{"unknown capability", container.DeviceRequest{Count: -1, Capabilities: [][]string{{"tpu", "gpu"}}}, gpuKind, "", `could not select device driver "" with capabilities: [[tpu gpu]]`},
		{"another driver", container.DeviceRequest{Driver: "amd", Capabilities: gpu}, gpuKind, "", `could not select device driver "amd" with capabilities: [[gpu]]`},
		{"named", container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"v.com/c=n"}}, "", "v.com/c=n", ""},
		{"named, count", container.DeviceRequest{Driver: "cdi", Count: 1}, "", "", "unexpected count in CDI device request"},
		{"named, options", container.DeviceRequest{Driver: "cdi", Options: map[string]string{"a": "b"}}, "", "", "unexpected options in CDI device request"},
		{"not there", container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"v.com/c=bad"}}, "", "v.com/c=bad", "CDI device injection failed: unresolvable CDI devices v.com/c=bad"},
	} {
		b, s := New(Host{}), &source{kinds: c.kinds}
		b.UseDevices(s)
		err := b.request(&specs.Spec{}, []container.DeviceRequest{c.req})
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got := strings.Join(s.asked, " "); got != c.want || text != c.err {
			t.Errorf("%s: %q, %q; want %q, %q", c.name, got, text, c.want, c.err)
		}
	}
}
