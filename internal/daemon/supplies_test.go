package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/executor"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/image"
	enginenet "escale.dev/escale/internal/network"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/mountinfo"
)

// stock is what an engine has, made up.
type stock struct {
	images   map[string]image.Image
	networks map[string]enginenet.Info
	volumes  map[string]volume.Volume
	pulled   []string
	pullErr  error
	busy     bool // networks and volumes are in use
}

func (s *stock) supplies(dir string) taskSupplies {
	return taskSupplies{images: s, registries: s, networks: stockNetworks{s}, volumes: stockVolumes{s}, files: taskFiles{dir, new(sync.Mutex)}, making: new(sync.Mutex), log: slog.New(slog.DiscardHandler)}
}

func (s *stock) Get(_ context.Context, ref string) (image.Image, error) {
	img, ok := s.images[ref]
	if !ok {
		return img, errdefs.ErrNotFound.WithMessage("No such image: " + ref)
	}
	return img, nil
}

func (s *stock) Pull(_ context.Context, ref reference.Named, o engine.PullOptions) error {
	s.pulled = append(s.pulled, strings.TrimSpace(ref.String()+" "+o.Platform+" "+o.Auth.Username))
	return s.pullErr
}

type stockNetworks struct{ *stock }

func (s stockNetworks) List() []enginenet.Info { return nil }

func (s stockNetworks) Inspect(ref string) (enginenet.Info, error) { return s.Find(ref) }
func (s stockNetworks) Find(ref string) (enginenet.Info, error) {
	i, ok := s.networks[ref]
	if !ok {
		return i, errdefs.ErrNotFound.WithMessage("network " + ref + " not found")
	}
	return i, nil
}

func (s stockNetworks) Create(_ context.Context, c enginenet.Create) (enginenet.Info, error) {
	i := enginenet.Info{Name: c.Name, ID: c.Name, Driver: c.Driver, Labels: c.Labels}
	s.networks[c.Name] = i
	return i, nil
}

func (s stockNetworks) Remove(_ context.Context, ref string) error {
	if s.busy {
		return errdefs.ErrPermissionDenied.WithMessage("it has active endpoints")
	}
	delete(s.networks, ref)
	return nil
}

type stockVolumes struct{ *stock }

func (s stockVolumes) List(context.Context) ([]volume.Volume, []string) { return nil, nil }
func (s stockVolumes) Size(context.Context, string) (int64, error)      { return 0, nil }
func (s stockVolumes) Remove(_ context.Context, name string, _ bool) error {
	delete(s.volumes, name)
	return nil
}

func (s stockVolumes) Get(_ context.Context, name string) (volume.Volume, error) {
	v, ok := s.volumes[name]
	if !ok {
		return v, volume.ErrNone(name)
	}
	return v, nil
}

func (s stockVolumes) Create(_ context.Context, r volume.Request) (volume.Volume, error) {
	v := volume.Volume{Name: r.Name, Labels: r.Labels}
	s.volumes[r.Name] = v
	return v, nil
}

// login is {"username":"u","password":"p"} as X-Registry-Auth has it.
const login = "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ=="

// A network of the cluster's bears its object's id here; one of this host's with the same name
// stays.
func TestSuppliesRemoveOverlay(t *testing.T) {
	s := &stock{networks: map[string]enginenet.Info{"front": {Name: "front", ID: "local"}, "net1": {Name: "front", ID: "net1"}}}
	n := &cluster.Network{Meta: cluster.Meta{ID: "net1", Name: "front"}, Spec: cluster.NetworkSpec{Name: "front", Create: &network.CreateRequest{Driver: "overlay"}}}
	if err := s.supplies(t.TempDir()).RemoveNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if _, there := s.networks["front"]; !there || len(s.networks) != 1 {
		t.Errorf("left: %v", s.networks)
	}
}

// clusters are the cluster's networks, by name, and what of them was made here.
type clusters struct {
	*stock
	all  map[string]enginenet.Spanned
	made []string
}

func (c *clusters) Find(_ context.Context, ref string) (enginenet.Spanned, error) {
	n, ok := c.all[ref]
	if !ok {
		return n, errdefs.ErrNotFound.WithMessage("network " + ref + " not found")
	}
	return n, nil
}

func (c *clusters) Here(name string) (enginenet.Info, error) {
	return stockNetworks{c.stock}.Find(name)
}

func (c *clusters) Span(_ context.Context, n enginenet.Spanned) error {
	c.made = append(c.made, n.ID)
	c.networks[n.Name] = enginenet.Info{Name: n.Name, ID: n.ID}
	return nil
}

// A network of the cluster's takes the place of the one that the app had under its name, once
// nobody is on that; of one that is somebody else's it does not.
func TestSuppliesSpan(t *testing.T) {
	ours := map[string]string{projectLabel: "shop", networkLabel: "default"}
	n := cluster.NetworkSpec{Name: "shop_default", Made: 1, Create: &network.CreateRequest{Driver: "overlay", Labels: ours}}
	s := &stock{networks: map[string]enginenet.Info{"shop_default": {Name: "shop_default", ID: "shop_default", Labels: ours}}, busy: true}
	c := &clusters{stock: s, all: map[string]enginenet.Spanned{"shop_default": {ID: "net1", Name: "shop_default"}}}
	x := s.supplies(t.TempDir())
	x.spans = c
	if err := x.Network(t.Context(), n); !errdefs.IsUnavailable(err) || len(c.made) != 0 {
		t.Errorf("while somebody is on the old one: %v, %v", err, c.made)
	}
	s.busy = false
	for range 2 { // it is the cluster's from then on, and never made anew here
		if err := x.Network(t.Context(), n); err != nil || s.networks["shop_default"].ID != "net1" {
			t.Errorf("%v, %v", err, s.networks)
		}
	}
	s.networks["shop_default"] = enginenet.Info{Name: "shop_default", ID: "theirs"}
	if err := x.Network(t.Context(), n); !errdefs.IsConflict(err) || s.networks["shop_default"].ID != "theirs" {
		t.Errorf("somebody else's: %v, %v", err, s.networks)
	}
	external := cluster.NetworkSpec{Name: "shop_default", External: true}
	if err := x.Network(t.Context(), external); err != nil || s.networks["shop_default"].ID != "theirs" {
		t.Errorf("one of this host that is only used: %v, %v", err, s.networks)
	}
}

func TestSuppliesImage(t *testing.T) {
	old := image.Image{LastTagged: time.Now().Add(-48 * time.Hour)}
	arm := image.Image{LastTagged: time.Now()}
	arm.Config.OS, arm.Config.Architecture = "linux", "arm64"
	for _, c := range []struct {
		ref, policy, platform, auth string
		pullErr                     error
		pulled, wrong               string
	}{
		{ref: "old"},
		{ref: "new", pulled: "docker.io/library/new:latest"},
		{ref: "reg.example/new:2", policy: "missing", auth: login, pulled: "reg.example/new:2  u"},
		{ref: "new", auth: "{", wrong: "login"},
		{ref: "new", policy: "if_not_present", pullErr: errors.New("no route"), pulled: "docker.io/library/new:latest", wrong: "no route"},
		{ref: "old", policy: "always", pulled: "docker.io/library/old:latest"},
		{ref: "old", policy: "always", pullErr: errors.New("no route"), pulled: "docker.io/library/old:latest"},
		{ref: "new", policy: "never", wrong: "No such image: new"},
		{ref: "new", policy: "build", wrong: "No such image: new"},
		{ref: "old", policy: "build"},
		{ref: "old", policy: "daily", pulled: "docker.io/library/old:latest"},
		{ref: "old", policy: "weekly"},
		{ref: "old", policy: "every_3d"},
		{ref: "old", policy: "every_47h", pulled: "docker.io/library/old:latest"},
		{ref: "old", policy: "sometimes", wrong: `pull policy "sometimes"`},
		{ref: "arm", platform: "linux/arm64"},
		{ref: "arm", platform: "linux/amd64", pulled: "docker.io/library/arm:latest linux/amd64"},
		{ref: strings.Repeat("a", 64), policy: "always", wrong: "No such image"},
	} {
		s := &stock{images: map[string]image.Image{"old": old, "arm": arm}, pullErr: c.pullErr}
		_, err := s.supplies(t.TempDir()).Image(t.Context(), executor.Image{Name: c.ref, Policy: c.policy, Platform: c.platform, Auth: c.auth})
		if got := strings.Join(s.pulled, ","); got != c.pulled || (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s %s %s: pulled %q, %v; want %q, %q", c.ref, c.policy, c.platform, got, err, c.pulled, c.wrong)
		}
	}
}

// neighbours have images, by what is wanted.
type neighbours struct {
	has     map[image.Wanted]bool
	fetched []string
}

func (n *neighbours) Lookup(_ context.Context, name reference.NamedTagged) (string, error) {
	switch name.Name() {
	case "docker.io/library/theirs":
		return "sha256:5", nil
	case "docker.io/library/several":
		return "", errdefs.ErrConflict.WithMessage("it is this here and that there")
	}
	return "", errdefs.ErrNotFound
}

func (n *neighbours) Fetch(_ context.Context, name reference.Named, w image.Wanted, platform string) error {
	if w.Platform = ""; !n.has[w] {
		return errdefs.ErrNotFound
	}
	n.fetched = append(n.fetched, strings.TrimSpace(name.String()+" "+platform))
	return nil
}

// What is not here other nodes may have: they are asked before a registry is, by the id that
// was meant before by a name.
func TestSuppliesOfOtherNodes(t *testing.T) {
	const sum = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, c := range []struct {
		w               executor.Image
		id              string
		fetched, pulled string
		pullErr         error
		wrong           bool
	}{
		{w: executor.Image{Name: "old", ID: "sha256:1"}, id: "sha256:1"},
		{w: executor.Image{Name: "new", ID: "sha256:2"}, id: "sha256:2", fetched: "docker.io/library/new:latest"},
		{w: executor.Image{Name: "new", ID: "sha256:2", Policy: "build"}, id: "sha256:2", fetched: "docker.io/library/new:latest"},
		{w: executor.Image{Name: "old", ID: "sha256:3"}},
		{w: executor.Image{Name: "new", ID: "sha256:3"}, pulled: "docker.io/library/new:latest"},
		{w: executor.Image{Name: "app:1"}, fetched: "docker.io/library/app:1"},
		{w: executor.Image{Name: "app:1", Policy: "never"}, fetched: "docker.io/library/app:1"},
		{w: executor.Image{Name: "app:1", Platform: "linux/arm64"}, fetched: "docker.io/library/app:1 linux/arm64"},
		{w: executor.Image{Name: "app:1", Policy: "always"}, pulled: "docker.io/library/app:1"},
		{w: executor.Image{Name: "app:1", Policy: "always"}, pulled: "docker.io/library/app:1", fetched: "docker.io/library/app:1", pullErr: errors.New("no route")},
		{w: executor.Image{Name: "app@" + sum}, fetched: "docker.io/library/app@" + sum},
		{w: executor.Image{Name: "new:2"}, pulled: "docker.io/library/new:2"},
		{w: executor.Image{Name: "new:2", Policy: "never"}, wrong: true},
	} {
		s := &stock{images: map[string]image.Image{"old": {}, "sha256:1": {}}, pullErr: c.pullErr}
		n := &neighbours{has: map[image.Wanted]bool{{ID: "sha256:2"}: true, {Name: "docker.io/library/app:1"}: true, {Digest: sum}: true}}
		x := s.supplies(t.TempDir())
		x.peers = n
		id, err := x.Image(t.Context(), c.w)
		if id != c.id || strings.Join(s.pulled, ",") != c.pulled+strings.Repeat(" "+c.w.Platform, min(1, len(c.pulled)*len(c.w.Platform))) || strings.Join(n.fetched, ",") != c.fetched || (err != nil) != c.wrong {
			t.Errorf("%+v: %q, fetched %q, pulled %q, %v; want %q, %q, %q", c.w, id, n.fetched, s.pulled, err, c.id, c.fetched, c.pulled)
		}
	}
	s := &stock{images: map[string]image.Image{"mine": {ID: "sha256:4"}}}
	x := serviceImages{supplies: s.supplies(t.TempDir())}
	x.supplies.peers = &neighbours{}
	for ref, want := range map[string]swarm.Image{
		"mine": {ID: "sha256:4"}, "theirs": {ID: "sha256:5"}, "several": {Warning: "it is this here and that there\n"}, "nobodys": {}, "theirs@" + sum: {},
	} {
		if got := x.Resolve(t.Context(), ref, "", false); got.ID != want.ID || got.Warning != want.Warning {
			t.Errorf("%s: %+v, want %+v", ref, got, want)
		}
	}
}

func TestSuppliesNetwork(t *testing.T) {
	ours := map[string]string{projectLabel: "shop", networkLabel: "default"}
	n := cluster.NetworkSpec{Name: "shop_default", Create: &network.CreateRequest{Driver: "bridge", Labels: ours}}
	s := &stock{networks: map[string]enginenet.Info{}}
	x := s.supplies(t.TempDir())
	for range 2 {
		if err := x.Network(t.Context(), n); err != nil || s.networks["shop_default"].Driver != "bridge" {
			t.Fatalf("%v, %v", err, s.networks)
		}
	}
	// One that is to be made anew is, once, when nobody is on it any more.
	s.busy, n.Made, n.Create.Driver = true, 2, "macvlan"
	if err := x.Network(t.Context(), n); !errdefs.IsUnavailable(err) || s.networks["shop_default"].Driver != "bridge" {
		t.Errorf("made anew while in use: %v", err)
	}
	s.busy = false
	if err := x.Network(t.Context(), n); err != nil || s.networks["shop_default"].Driver != "macvlan" || s.networks["shop_default"].Labels[madeLabel] != "2" || ours[madeLabel] != "" {
		t.Errorf("made anew: %v, %v", err, s.networks)
	}
	for _, made := range []uint64{0, 1, 2} {
		n.Made, n.Create.Driver = made, "ipvlan"
		if err := x.Network(t.Context(), n); err != nil || s.networks["shop_default"].Driver != "macvlan" {
			t.Errorf("again: %v, %v", err, s.networks)
		}
	}
	s.busy = true
	if err := x.RemoveNetwork(t.Context(), &cluster.Network{Spec: n}); !errdefs.IsConflict(err) {
		t.Errorf("in use: %v", err)
	}
	s.busy = false
	for _, want := range []bool{false, true} {
		if err := x.RemoveNetwork(t.Context(), &cluster.Network{Spec: n}); errdefs.IsNotFound(err) != want || !want && err != nil {
			t.Errorf("removed: %v", err)
		}
	}
	for words, labels := range map[string]map[string]string{
		`exists but was not created for project "shop"`:  nil,
		`exists but was not created for project "shop".`: {projectLabel: "other", networkLabel: "default"},
		`set to "back" (expected: "default")`:            {projectLabel: "shop", networkLabel: "back"},
	} {
		s.networks["shop_default"] = enginenet.Info{Name: "shop_default", Labels: labels}
		for _, err := range []error{x.Network(t.Context(), n), x.RemoveNetwork(t.Context(), &cluster.Network{Spec: n})} {
			if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), words) {
				t.Errorf("%v: %v, want %q", labels, err, words)
			}
		}
	}
	external := cluster.NetworkSpec{Name: "theirs", External: true}
	if err := x.Network(t.Context(), external); !errdefs.IsNotFound(err) || err.Error() != "network theirs declared as external, but could not be found" {
		t.Error(err)
	}
	s.networks["theirs"] = enginenet.Info{Name: "theirs"}
	if err := x.Network(t.Context(), external); err != nil {
		t.Error(err)
	}
}

func TestSuppliesVolume(t *testing.T) {
	v := cluster.VolumeSpec{Name: "shop_data", Labels: map[string]string{projectLabel: "shop"}}
	s := &stock{volumes: map[string]volume.Volume{}}
	x := s.supplies(t.TempDir())
	for range 2 {
		if err := x.Volume(t.Context(), v); err != nil || s.volumes["shop_data"].Labels[projectLabel] != "shop" {
			t.Fatalf("%v, %v", err, s.volumes)
		}
	}
	if err := x.RemoveVolume(t.Context(), v); err != nil || len(s.volumes) != 0 {
		t.Error(err)
	}
	s.volumes["shop_data"] = volume.Volume{Name: "shop_data"} // it was there before, and is only used
	if err := errors.Join(x.Volume(t.Context(), v)); err != nil {
		t.Error(err)
	}
	if err := x.RemoveVolume(t.Context(), v); !errdefs.IsConflict(err) {
		t.Errorf("another's: %v", err)
	}
	if err := x.Volume(t.Context(), cluster.VolumeSpec{Name: "none", External: true}); !errdefs.IsNotFound(err) || err.Error() != `external volume "none" not found` {
		t.Error(err)
	}
}

// Files of tasks are in memory, as their owners want them, and gone without a trace.
func TestSuppliesFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a tmpfs")
	}
	dir := filepath.Join(t.TempDir(), "tasks")
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	x := new(stock).supplies(dir)
	for range 2 {
		paths, err := x.Files(t.Context(), "t1", []executor.File{{Data: []byte("hush"), UID: 7, GID: 8, Mode: 0o440}, {Data: []byte("a=1")}})
		if err != nil || len(paths) != 2 {
			t.Fatal(paths, err)
		}
		info, err := os.Stat(paths[0])
		if err != nil {
			t.Fatal(err)
		}
		b, _ := os.ReadFile(paths[0])
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 7 || st.Gid != 8 || info.Mode() != 0o440 || string(b) != "hush" {
			t.Errorf("%d:%d %s %q", st.Uid, st.Gid, info.Mode(), b)
		}
		if info, err = os.Stat(paths[1]); err != nil || info.Mode() != 0o444 {
			t.Errorf("%v, %v", info, err)
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil || fs.Type != 0x01021994 {
		t.Errorf("no tmpfs: %x, %v", fs.Type, err)
	}
	if _, err := x.Files(t.Context(), "t2", []executor.File{{}}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, unfinished+"t3"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := x.Sweep(t.Context(), func(task string) bool { return task == "t1" }); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != "t1" {
		t.Errorf("left: %v", left)
	}
	for range 2 {
		if _, err := x.Files(t.Context(), "t1", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Files(t.Context(), "t4", []executor.File{{}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as an engine does that leaves nothing behind
		if err := x.files.leave(); err != nil {
			t.Fatal(err)
		}
	}
	if mounted, err := mountinfo.Mounted(dir); mounted || err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mounted: %t, %v", mounted, err)
	}
	if list, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); slices.Contains(list, dir) {
		t.Error("the directory is left")
	}
}
