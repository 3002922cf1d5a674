package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

// fakeVolumes keeps volumes in memory; each has ten bytes a letter of its name.
type fakeVolumes struct {
	list     []volume.Volume
	warnings []string
}

func (f *fakeVolumes) Create(_ context.Context, r volume.Request) (volume.Volume, error) {
	if r.Name == "bad" {
		return volume.Volume{}, fmt.Errorf("create bad: %w", errdefs.ErrInvalidArgument)
	}
	v := volume.Volume{Name: r.Name, Driver: "local", Scope: "local", Path: "/v/" + r.Name + "/_data", Labels: maps.Clone(r.Labels), Options: r.Options, CreatedAt: time.Unix(1700000000, 0).UTC()}
	f.list = append(f.list, v)
	return v, nil
}
func (f *fakeVolumes) Get(_ context.Context, name string) (volume.Volume, error) {
	for _, v := range f.list {
		if v.Name == name {
			return v, nil
		}
	}
	return volume.Volume{}, noSuch("volume")
}
func (f *fakeVolumes) List(context.Context) ([]volume.Volume, []string) {
	return append([]volume.Volume(nil), f.list...), f.warnings
}
func (f *fakeVolumes) Remove(_ context.Context, name string, force bool) error {
	for i, v := range f.list {
		switch {
		case v.Name != name:
		case len(v.Users) > 0:
			return errdefs.ErrConflict.WithMessage("remove " + name + ": volume is in use")
		default:
			f.list = append(f.list[:i:i], f.list[i+1:]...)
			return nil
		}
	}
	if force {
		return nil
	}
	return noSuch("volume")
}
func (f *fakeVolumes) Size(_ context.Context, name string) (int64, error) {
	if name == "unreadable" {
		return 0, errors.New("input/output error")
	}
	return int64(10 * len(name)), nil
}

func withVolumes(r *rig) {
	r.server.cfg.Volumes = &fakeVolumes{list: []volume.Volume{
		{Name: "anon", Driver: "local", Scope: "local", Labels: map[string]string{volume.Anonymous: ""}},
		{Name: "held", Driver: "local", Scope: "local", Users: []string{"c0ffee"}},
		{Name: "mounted", Driver: "local", Scope: "local", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}},
		{Name: "named", Driver: "local", Scope: "local", Labels: map[string]string{"keep": "yes"}},
	}}
}

func TestVolumeRoutes(t *testing.T) {
	r := newRig(t, withVolumes)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/volumes/create", `{"Name":"one","Labels":{"a":"b"}}`, 201,
			`{"CreatedAt":"2023-11-14T22:13:20Z","Driver":"local","Labels":{"a":"b"},"Mountpoint":"/v/one/_data","Name":"one","Options":null,"Scope":"local"}`},
		{"POST", "/volumes/create", `{"Name":"bad"}`, 400, `create bad`},
		{"POST", "/volumes/create", `{"ClusterVolumeSpec":{}}`, 503, `This node is not a swarm manager.`},
		{"PUT", "/volumes/one?version=1", `{}`, 503, `not a swarm manager`},
		{"GET", "/volumes/one", "", 200, `"Name":"one"`},
		{"GET", "/volumes/nosuch", "", 404, `No such volume`},
		{"GET", "/volumes?filters=" + url.QueryEscape(`{"dangling":{"false":true}}`), "", 200, `{"Volumes":[{"CreatedAt":"0001-01-01T00:00:00Z","Driver":"local","Labels":null,"Mountpoint":"","Name":"held"`},
		{"GET", "/volumes?filters=" + url.QueryEscape(`{"name":{"^na":true}}`), "", 200, `"Name":"named"`},
		{"GET", "/volumes?filters=" + url.QueryEscape(`{"driver":{"nosuch":true}}`), "", 200, `{"Volumes":[],"Warnings":null}`},
		{"GET", "/volumes?filters=" + url.QueryEscape(`{"nosuch":{"x":true}}`), "", 400, `invalid filter 'nosuch'`},
		{"GET", "/volumes?filters=" + url.QueryEscape(`{"dangling":{"perhaps":true}}`), "", 400, `invalid filter 'dangling=[perhaps]'`},
		{"DELETE", "/volumes/held", "", 409, `in use`},
		{"DELETE", "/volumes/one", "", 204, ``},
		{"DELETE", "/volumes/one", "", 404, `No such volume`},
		{"DELETE", "/volumes/one?force=1", "", 204, ``},
	} {
		status, _, body := r.do(c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, status, body, c.status, c.want)
		}
	}
}

func TestVolumePrune(t *testing.T) {
	for _, c := range []struct{ path, want, filters string }{
		{"/v1.51/volumes/prune", `{"VolumesDeleted":["anon"],"SpaceReclaimed":40}`, ``},
		{"/v1.51/volumes/prune", `{"VolumesDeleted":["anon","named"],"SpaceReclaimed":90}`, `{"all":{"true":true}}`},
		{"/v1.41/volumes/prune", `{"VolumesDeleted":["anon","named"],"SpaceReclaimed":90}`, ``},
		{"/v1.51/volumes/prune", `{"VolumesDeleted":["named"],"SpaceReclaimed":50}`, `{"all":{"1":true},"label":{"keep=yes":true}}`},
		{"/v1.51/volumes/prune", `{"VolumesDeleted":["anon"],"SpaceReclaimed":40}`, `{"all":{"1":true},"label!":{"keep":true}}`},
		{"/v1.51/volumes/prune", `invalid filter 'until'`, `{"until":{"1h":true}}`},
	} {
		r := newRig(t, withVolumes)
		_, _, body := r.do("POST", c.path+"?filters="+url.QueryEscape(c.filters), "")
		if !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %s, want %s", c.path, c.filters, body, c.want)
		}
	}
}

// Every prune tells what it gave back.
func TestPruneEvents(t *testing.T) {
	r := newRig(t, withVolumes)
	since := time.Now().Add(-time.Second)
	for _, path := range []string{"/containers/prune", "/images/prune", "/volumes/prune", "/networks/prune", "/build/prune"} {
		if status, _, body := r.do("POST", path, ""); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	sub, err := r.events.Subscribe(context.Background(), events.Subscription{Since: since, Until: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	var got []string
	for {
		m, err := sub.Next(context.Background())
		if err != nil {
			break
		}
		got = append(got, string(m.Type)+" "+string(m.Action)+" "+m.Actor.Attributes["reclaimed"])
	}
	if s := strings.Join(got, ","); s != "container prune 84,image prune 7,volume prune 40,network prune 0,builder prune 9" {
		t.Errorf("told: %s", s)
	}
	for path, want := range map[string]string{
		"/build/prune?reserved-space=much":                                         "reserved-space is in bytes and expects an integer, got much",
		"/build/prune?filters=" + url.QueryEscape(`{"until":{"never":true}}`):      "invalid value for until filter",
		"/networks/prune?filters=" + url.QueryEscape(`{"until":{"someday":true}}`): "invalid value for until filter",
	} {
		if status, _, body := r.do("POST", path, ""); status != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestDiskUsage(t *testing.T) {
	r := newRig(t, withVolumes, func(r *rig) {
		r.con.views = []container.View{{}, {}}
		for i, st := range []container.Status{container.Running, container.Exited} {
			v := &r.con.views[i]
			*v = sampleViews()[0]
			v.ID, v.State.Status, v.ImageID = id(fmt.Sprint(i+1)), st, "sha256:a"
		}
		r.img.images = []image.Image{
			{ID: "sha256:a", Size: 150, Layers: []image.Layer{{ChainID: "base", Size: 100}, {ChainID: "a", Size: 50}}},
			{ID: "sha256:b", Size: 130, Layers: []image.Layer{{ChainID: "base", Size: 100}, {ChainID: "b", Size: 30}}},
		}
	})
	var old struct {
		LayersSize int64
		Images     []struct {
			ID                           string `json:"Id"`
			Size, SharedSize, Containers int64
		}
		Containers []struct{ SizeRw, SizeRootFs int64 }
		Volumes    []struct {
			Name      string
			UsageData struct{ RefCount, Size int64 }
		}
		BuildCache     []any
		ImageUsage     *usage[any]
		ContainerUsage *usage[any]
		VolumeUsage    *usage[any]
	}
	get := func(path string) string {
		t.Helper()
		old.Images, old.Containers, old.Volumes, old.ImageUsage, old.ContainerUsage, old.VolumeUsage, old.LayersSize = nil, nil, nil, nil, nil, nil, 0
		status, _, body := r.do("GET", path, "")
		if err := json.Unmarshal([]byte(body), &old); status != 200 || err != nil {
			t.Fatalf("%s: %d %s, %v", path, status, body, err)
		}
		return body
	}
	body := get("/v1.50/system/df")
	if old.LayersSize != 180 || fmt.Sprint(old.Images) != "[{sha256:a 150 100 2} {sha256:b 130 100 0}]" || fmt.Sprint(old.Containers) != "[{42 4242} {42 4242}]" ||
		fmt.Sprint(old.Volumes) != "[{anon {0 40}} {held {1 40}} {named {0 50}}]" || !strings.Contains(body, `"BuildCache":[]`) || strings.Contains(body, "Usage\":{\"Act") {
		t.Errorf("1.50: %s", body)
	}
	if body = get("/v1.50/system/df?type=volume"); len(old.Volumes) != 3 || !strings.Contains(body, `"Images":null`) {
		t.Errorf("volumes only: %s", body)
	}
	check := func(path string, legacy, items bool) {
		t.Helper()
		body := get(path)
		if (len(old.Images) > 0) != legacy || strings.Contains(body, "LayersSize") != legacy || old.ImageUsage == nil || (len(old.ImageUsage.Items) > 0) != items {
			t.Errorf("%s: %s", path, body)
			return
		}
		i, c, v := *old.ImageUsage, *old.ContainerUsage, *old.VolumeUsage
		i.Items, c.Items, v.Items = nil, nil, nil
		if got := fmt.Sprint(i, c, v); got != "{1 [] 30 2 180} {1 [] 42 2 84} {1 [] 90 3 130}" {
			t.Errorf("%s: %s", path, got)
		}
	}
	check("/v1.52/system/df", true, false)
	check("/v1.52/system/df?verbose=1", false, true)
	check("/v1.53/system/df", true, false)
	check("/system/df", true, false)
	check("/v1.53/system/df?verbose=1", false, true)
	if status, _, body := r.do("GET", "/v1.50/system/df?type=nosuch", ""); status != 400 || !strings.Contains(body, "unknown object type: nosuch") {
		t.Errorf("unknown type: %d %s", status, body)
	}
	r.server.cfg.Volumes = &fakeVolumes{list: []volume.Volume{{Name: "unreadable", Driver: "local"}, {Name: "held", Driver: "local"}, {Name: "far", Driver: "plug"}}}
	if status, _, body := r.do("GET", "/v1.50/system/df?type=volume", ""); status != 200 || !strings.Contains(body, `"Size":-1`) || !strings.Contains(body, `"Size":40`) || strings.Contains(body, "far") {
		t.Errorf("what cannot be read: %d %s", status, body)
	}
}

type fakeNetworks []network.Info

func (f fakeNetworks) List() []network.Info { return f }
func (f fakeNetworks) Create(_ context.Context, c network.Create) (network.Info, error) {
	return network.Info{Name: c.Name, ID: strings.Repeat("a", 64)}, nil
}
func (f fakeNetworks) Remove(_ context.Context, ref string) error {
	_, err := f.Inspect(ref)
	return err
}
func (f fakeNetworks) Find(ref string) (network.Info, error) { return f.Inspect(ref) }
func (f fakeNetworks) Inspect(ref string) (network.Info, error) {
	for _, n := range f {
		if n.Name == ref || n.ID == ref {
			return n, nil
		}
	}
	return network.Info{}, noSuch("network")
}

func TestNetworkRoutes(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.server.cfg.Networks = fakeNetworks{
			{Name: "bridge", ID: "b1", Driver: "bridge", Scope: "local", IPAM: network.IPAM{Subnets: []network.Subnet{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Gateway: netip.MustParseAddr("172.17.0.1")}}},
				Containers: map[string]network.Endpoint{string(id("1")): {EndpointID: "e1", IP: "172.17.0.9", PrefixLen: 16, MAC: "02:42:ac:11:00:09"}}},
			{Name: "none", ID: "n1", Driver: "null", Scope: "local"},
		}
	})
	for _, c := range []struct {
		path   string
		status int
		want   string
	}{
		{"/networks", 200, `"Config":[{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1"}]`},
		{"/networks/bridge", 200, `"EndpointID":"e1","MacAddress":"02:42:ac:11:00:09","IPv4Address":"172.17.0.9/16","IPv6Address":""`},
		{"/networks/none", 200, `"Containers":{}`},
		{"/networks/nosuch", 404, `No such network`},
		{"/networks?filters=" + url.QueryEscape(`{"driver":{"null":true}}`), 200, `[{"Name":"none"`},
		{"/networks?filters=" + url.QueryEscape(`{"type":{"custom":true}}`), 200, `[]`},
		{"/networks?filters=" + url.QueryEscape(`{"type":{"odd":true}}`), 400, `invalid filter: 'type'='odd'`},
	} {
		if status, _, body := r.do("GET", c.path, ""); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d %s", c.path, status, body, c.status, c.want)
		}
	}
}
