package apps

import (
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
)

// What is external is somebody else's: no plan makes or removes it, and it is not told of as the app's.
func TestExternalIsNotMade(t *testing.T) {
	a, _ := open(t)
	put := func(next cluster.AppSpec, want string) {
		t.Helper()
		p, err := a.Put(t.Context(), "shop", next, Put{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range p.Steps {
			if s.Kind != "service" {
				got = append(got, s.Action+" "+s.Kind+" "+s.Name)
			}
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s, want %s", strings.Join(got, ", "), want)
		}
	}
	next := spec(map[string]cluster.ServiceSpec{"web": service("web:1", 1)})
	next.Networks["lan"] = cluster.NetworkSpec{Name: "lan", External: true}
	next.Volumes = map[string]cluster.VolumeSpec{"theirs": {Name: "theirs", External: true}, "ours": {Name: "shop_ours"}}
	put(next, "create network default, keep network lan, create volume ours, keep volume theirs")
	v, err := a.Get("shop")
	if got := strings.Join(append(v.Networks, v.Volumes...), " "); err != nil || got != "shop_default shop_ours" {
		t.Errorf("%s, %v", got, err)
	}
	put(spec(next.Services), "keep network default")
	own := spec(next.Services)
	own.Networks["back"] = cluster.NetworkSpec{Name: "shop_back"}
	put(own, "create network back, keep network default")
	put(spec(next.Services), "keep network default, remove network back")
}
