package container

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"
)

func TestParseBind(t *testing.T) {
	for _, c := range []struct {
		spec string
		want Mount
	}{
		{"/data", Mount{Type: mount.TypeVolume, Destination: "/data", RW: true}},
		{"/a/../b:/data/", Mount{Type: mount.TypeBind, Source: "/b", Destination: "/data", RW: true, Propagation: mount.PropagationRPrivate}},
		{"vol:/data:ro", Mount{Type: mount.TypeVolume, Name: "vol", Destination: "/data", Mode: "ro"}},
		{"/a:/b:ro,rshared", Mount{Type: mount.TypeBind, Source: "/a", Destination: "/b", Mode: "ro,rshared", Propagation: mount.PropagationRShared}},
		{"/a:/b:z", Mount{Type: mount.TypeBind, Source: "/a", Destination: "/b", Mode: "z", RW: true, Propagation: mount.PropagationRPrivate}},
	} {
		got, err := parseBind(c.spec)
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", c.spec, got, err, c.want)
		}
	}
	for spec, words := range map[string]string{
		"":               "invalid volume specification",
		":/a":            "invalid volume specification",
		"/a:b":           "mount path must be absolute",
		"/a:/":           "destination can't be '/'",
		"/a:/b:rw,ro":    "invalid mode",
		"/a:/b:nocopy":   "invalid mount config for type \"bind\": field VolumeOptions must not be specified",
		"vol:/b:rshared": "invalid mount config for type \"volume\": field BindOptions must not be specified",
		"/a:/b:copy":     "invalid mode: copy",
		"/a:ro":          "invalid volume specification: '/a:ro'",
		"/a:/b:ro:more":  "invalid volume specification",
	} {
		if got, err := parseBind(spec); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: got %+v, %v; want an error with %q", spec, got, err, words)
		}
	}
}

func FuzzParseBind(f *testing.F) {
	f.Add("/a:/b:ro")
	f.Add("v:/x")
	f.Fuzz(func(t *testing.T, spec string) {
		p, err := parseBind(spec)
		if err == nil && (!strings.HasPrefix(p.Destination, "/") || p.Destination == "/" || strings.Contains(p.Destination, "/../")) {
			t.Fatalf("%q accepted as %+v", spec, p)
		}
	})
}
