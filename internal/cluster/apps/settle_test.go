package apps

import (
	"context"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// machine is the engine of node n1, with networks, by their drivers, and volumes.
type machine struct {
	strangers
	node     string
	networks map[string]string
	volumes  []string
}

func (m machine) Node() string                            { return m.node }
func (m machine) Driver(name string) string               { return m.networks[name] }
func (m machine) Has(_ context.Context, name string) bool { return slices.Contains(m.volumes, name) }

// inCluster opens apps on node n1 of two.
func inCluster(t *testing.T) (*Apps, store.Store) {
	a, s := open(t)
	a.n = machine{node: "n1", networks: map[string]string{"lan": "macvlan"}, volumes: []string{"shop_data"}}
	change(t, s, store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}))
	for _, id := range []string{"n1", "n2"} {
		change(t, s, store.Create(&cluster.Node{Meta: cluster.Meta{ID: id, Name: "host-" + id}}))
	}
	return a, s
}

func change(t *testing.T, s store.Store, changes ...store.Change) {
	t.Helper()
	if _, err := s.Commit(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

// whole is an app with one of everything that a cluster has otherwise than a host.
func whole() cluster.AppSpec {
	plain := func(f func(*cluster.ServiceSpec)) cluster.ServiceSpec {
		s := service("a:1", 1)
		s.Networks = []cluster.Attachment{{Network: "shop_default", Settings: &network.EndpointSettings{Aliases: []string{"x"}}}}
		f(&s)
		return s
	}
	bind := []mount.Mount{{Type: mount.TypeBind, Source: "/srv/site", Target: "/w"}}
	out := spec(map[string]cluster.ServiceSpec{
		"web": plain(func(s *cluster.ServiceSpec) {
			s.Ports = []cluster.Port{{Proto: "tcp", Target: 80, Published: 8080, Address: "0.0.0.0"}}
		}),
		"named": plain(func(s *cluster.ServiceSpec) { s.Task.Name = "db" }),
		"site":  plain(func(s *cluster.ServiceSpec) { s.Task.Host.Mounts = bind }),
		"clock": plain(func(s *cluster.ServiceSpec) { s.Task.Host.Binds = []string{"/etc/localtime:/etc/localtime:ro"} }),
		"agent": plain(func(s *cluster.ServiceSpec) { s.Mode, s.Task.Host.Mounts = cluster.Mode{Global: true}, bind }),
		"told": plain(func(s *cluster.ServiceSpec) {
			s.Task.Placement.Constraints, s.Task.Host.Mounts = []string{"node.hostname == host-n2"}, bind
		}),
		"where": plain(func(s *cluster.ServiceSpec) {
			s.Labels, s.Task.Host.Mounts = map[string]string{LabelBinds: "anywhere"}, bind
		}),
		"local": plain(func(s *cluster.ServiceSpec) {
			s.Ports = []cluster.Port{{Proto: "tcp", Target: 80, Published: 81, Address: "127.0.0.1"}}
		}),
		"bridged": plain(func(s *cluster.ServiceSpec) { s.Networks[0].Network = "shop_br" }),
		"lan":     plain(func(s *cluster.ServiceSpec) { s.Networks[0].Network = "lan" }),
		"side":    plain(func(s *cluster.ServiceSpec) { s.Networks, s.Task.Host.NetworkMode = nil, "container:shop-main-1" }),
		"main":    plain(func(*cluster.ServiceSpec) {}),
		"keys": plain(func(s *cluster.ServiceSpec) {
			s.Task.Secrets = []cluster.FileRef{{Name: "key", Target: "/run/secrets/key"}}
			s.Task.Configs = []cluster.FileRef{{Name: "conf", Target: "/conf"}}
		}),
	})
	out.Networks = map[string]cluster.NetworkSpec{
		"default": {Name: "shop_default", Create: &network.CreateRequest{}}, "br": {Name: "shop_br", Create: &network.CreateRequest{Driver: "bridge"}},
		"opts": {Name: "shop_opts", Create: &network.CreateRequest{Options: map[string]string{"com.docker.network.bridge.name": "br9"}}}, "lan": {Name: "lan", External: true},
	}
	out.Volumes = map[string]cluster.VolumeSpec{"data": {Name: "shop_data"}, "new": {Name: "shop_new"}}
	out.Secrets = map[string]cluster.SecretSpec{"key": {Name: "swarms", External: true}}
	out.Configs = map[string]cluster.ConfigSpec{"conf": {External: true}}
	return out
}

func TestSettle(t *testing.T) {
	a, s := inCluster(t)
	if _, err := a.Put(t.Context(), "shop", whole(), Put{}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "secret not found: swarms") {
		t.Errorf("a secret that the swarm has not: %v", err)
	}
	change(t, s, store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "swarms"}}), store.Create(&cluster.Config{Meta: cluster.Meta{Name: "conf"}}))
	p, err := a.Put(t.Context(), "shop", whole(), Put{})
	if err != nil {
		t.Fatal(err)
	}
	want := "create agent; create bridged (kept on node host-n1: network br (bridge)); create clock; create keys; create lan (kept on node host-n1: network lan (macvlan)); " +
		"create local (kept on node host-n1: port 127.0.0.1:81); create main (kept on node host-n1: what shares with it, side); create named; " +
		"create side (kept on node host-n1: container shop-main-1); create site (kept on node host-n1: bind /srv/site); create told; create web; create where"
	if got := steps(p); got != want {
		t.Errorf("the plan is\n%s, want\n%s", got, want)
	}
	app, err := store.Named[*cluster.App](s.View(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	is := app.Spec
	for part, driver := range map[string]string{"default": "overlay", "br": "bridge", "opts": ""} {
		if c := is.Networks[part].Create; c.Driver != driver || c.Attachable != (driver == "overlay") {
			t.Errorf("network %s is %+v", part, c)
		}
	}
	if got := is.Services["web"].Ports[0].Address; got != "" {
		t.Errorf("a port at every address is at %q", got)
	}
	if got := is.Services["named"].Networks[0].Settings.Aliases; !slices.Equal(got, []string{"x", "db"}) {
		t.Errorf("a container with a name is found as %v", got)
	}
	keys := is.Services["keys"].Task
	if _, ok := is.Secrets["swarms"]; !ok || keys.Secrets[0].Name != "swarms" || keys.Configs[0].Name != "conf" {
		t.Errorf("of the swarm it has %v, and %v %v", is.Secrets, keys.Secrets, keys.Configs)
	}
	if v, err := store.Named[*cluster.Volume](s.View(), "shop_data"); err != nil || v.Status.Node != "n1" {
		t.Errorf("a volume that was here: %v, %+v", err, v)
	}
	if _, err := store.Named[*cluster.Volume](s.View(), "shop_new"); err == nil {
		t.Error("a volume that is nowhere is known")
	}
	if p, err := a.Put(t.Context(), "shop", whole(), Put{}); err != nil || p.To != p.From {
		t.Errorf("the same again: %v, %s", err, steps(p))
	}
}

// What uses this node's is where up is called last; networks alone stay where they are.
func TestSettleElsewhere(t *testing.T) {
	a, _ := inCluster(t)
	asked := func(binds bool) cluster.AppSpec {
		br, site := service("a:1", 1), service("b:1", 1)
		br.Networks = []cluster.Attachment{{Network: "shop_br"}}
		if binds {
			site.Task.Host = &container.HostConfig{Binds: []string{"/srv:/w"}}
		}
		out := spec(map[string]cluster.ServiceSpec{"br": br, "site": site})
		out.Networks["br"] = cluster.NetworkSpec{Name: "shop_br", Create: &network.CreateRequest{Driver: "bridge"}}
		return out
	}
	put := func(node string, binds bool, want string) {
		t.Helper()
		a.n = machine{node: node}
		p, err := a.Put(t.Context(), "shop", asked(binds), Put{})
		if err != nil || steps(p) != want {
			t.Errorf("%v, %s; want %s", err, steps(p), want)
		}
	}
	put("n1", false, "create br (kept on node host-n1: network br (bridge)); create site")
	put("n2", false, "keep br; keep site")
	put("n2", true, "replace br (placement, kept on node host-n2: network br (bridge)); replace site (placement, volumes, kept on node host-n2: bind /srv)")
}

// An app that was there before the cluster has networks of its host until its next up, and goes
// back to none of them.
func TestSettleAfterInit(t *testing.T) {
	a, s := open(t)
	a.n = machine{node: "n1"}
	put := func(image, want string) {
		t.Helper()
		web := service(image, 1)
		web.Networks = []cluster.Attachment{{Network: "shop_default"}}
		p, err := a.Put(t.Context(), "shop", spec(map[string]cluster.ServiceSpec{"web": web}), Put{})
		if err != nil || steps(p) != want {
			t.Errorf("%v, %s; want %s", err, steps(p), want)
		}
	}
	driver := func() string {
		app, err := store.Named[*cluster.App](s.View(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		if c := app.Spec.Networks["default"].Create; c != nil {
			return c.Driver
		}
		return ""
	}
	put("web:1", "create web")
	change(t, s, store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}))
	if driver() != "" {
		t.Error("it has changed by itself")
	}
	put("web:2", "replace web (image: web:1 → web:2, networks)")
	if driver() != "overlay" {
		t.Errorf("its network is of driver %q", driver())
	}
	if _, err := a.Rollback(t.Context(), "shop", 0, false); err != nil || driver() != "overlay" {
		t.Errorf("back: %v, driver %q", err, driver())
	}
}

// Volumes that an app has left behind go when it is removed once more, with its volumes.
func TestForget(t *testing.T) {
	a, s := inCluster(t)
	labels := map[string]string{labelProject: "shop"}
	change(t, s,
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "shop_data"}, Spec: cluster.VolumeSpec{Name: "shop_data", Labels: labels}, Status: cluster.VolumeStatus{Node: "n2"}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "other_data"}, Spec: cluster.VolumeSpec{Name: "other_data"}, Status: cluster.VolumeStatus{Node: "n2"}}))
	if err := a.Remove(t.Context(), "shop", false); !errdefs.IsNotFound(err) {
		t.Errorf("without volumes: %v", err)
	}
	if err := a.Remove(t.Context(), "shop", true); err != nil {
		t.Error(err)
	}
	for _, v := range store.List[*cluster.Volume](s.View()) {
		if v.Spec.Removed != (v.Name == "shop_data") {
			t.Errorf("%s is to go: %t", v.Name, v.Spec.Removed)
		}
	}
}

// Of volumes that are on one node it is told where they are, whether that node is there, and what goes.
func TestVolumes(t *testing.T) {
	a, s := inCluster(t)
	labels := map[string]string{labelProject: "shop"}
	change(t, s, store.Create(&cluster.Node{Meta: cluster.Meta{ID: "far", Name: "host9"}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "shop_data@1"}, Spec: cluster.VolumeSpec{Name: "shop_data", Labels: labels, Removed: true}, Status: cluster.VolumeStatus{Node: "far", Owed: true}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "shop_more"}, Spec: cluster.VolumeSpec{Name: "shop_more", Labels: labels}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "other_data"}, Spec: cluster.VolumeSpec{Name: "other_data"}, Status: cluster.VolumeStatus{Node: "far"}}))
	if got, want := a.Volumes("shop"), (VolumeView{Name: "shop_data", Node: "host9", Away: true, Removed: true}); len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
