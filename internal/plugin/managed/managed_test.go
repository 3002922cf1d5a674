package managed

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/runtime"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const config = `{"Description":"d","Entrypoint":["/p"],"Interface":{"Socket":"s.sock","Types":["docker.volumedriver/1.0"]},
"Network":{"Type":"host"},"PropagatedMount":"/mnt","PidHost":true,"IpcHost":true,
"Env":[{"Name":"A","Settable":["value"],"Value":"1"},{"Name":"B","Value":"2"}],
"Mounts":[{"Name":"m","Source":"/src","Destination":"/dst","Type":"bind","Options":["rbind","ro"],"Settable":["source"]}],
"Args":{"Name":"args","Settable":["value"],"Value":["x"]},
"Linux":{"Capabilities":["CAP_SYS_ADMIN"],"AllowAllDevices":true,"Devices":[{"Name":"fuse","Path":"/dev/fuse","Settable":["path"]}]}}`

func parsed(t *testing.T) apiplugin.Config {
	t.Helper()
	var c apiplugin.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// archiveOf is a plugin as `plugin create` sends it.
func archiveOf(t *testing.T, config string, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name, text string) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, text)
	}
	if config != "" {
		put("config.json", config)
	}
	for _, f := range files {
		put(f, "content of "+f)
	}
	w.Close()
	return b.Bytes()
}

// shelf is a registry of one repository, and nobody's runtime.
type shelf struct {
	blobs     map[digest.Digest][]byte
	manifests map[string][]byte
	told      []string
}

func (s *shelf) Publish(m events.Message) {
	s.told = append(s.told, string(m.Action)+" "+m.Actor.Attributes["name"])
}
func (s *shelf) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	b, ok := s.manifests[ref]
	if !ok {
		return ocispec.Descriptor{}, nil, errdefs.ErrNotFound
	}
	return ocispec.Descriptor{MediaType: manifestType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b, nil
}
func (s *shelf) Blob(_ context.Context, d digest.Digest, _ int64) (io.ReadCloser, error) {
	b, ok := s.blobs[d]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}
func (s *shelf) Push(_ context.Context, d ocispec.Descriptor, _ []string, open func() (io.ReadCloser, error)) (image.Sent, error) {
	r, err := open()
	if err != nil {
		return image.Sent{}, err
	}
	defer r.Close()
	s.blobs[d.Digest], err = io.ReadAll(r)
	return image.Sent{}, err
}
func (s *shelf) PushManifest(_ context.Context, ref string, _ ocispec.Descriptor, b []byte) error {
	s.manifests[ref] = b
	return nil
}
func (*shelf) Close() {}

// idle is a runtime under which nothing runs.
type idle struct{ runtime.Runtime }

func (idle) Adopt(context.Context, string, string, string) (runtime.Task, error) {
	return nil, errdefs.ErrNotFound
}
func (idle) Cleanup(context.Context, runtime.Cleanup) error { return nil }

func open(t *testing.T, dir string, s *shelf) *Manager {
	t.Helper()
	m := New(Config{Dir: dir + "/plugins", RunDir: dir + "/run", Events: s, Logger: slog.New(slog.DiscardHandler)})
	err := m.Open(t.Context(), Engine{
		Runtime: idle{}, Binary: func() runtime.Binary { return runtime.Binary{} }, InUse: func(string) bool { return false },
		Open: func(context.Context, reference.Named, registry.AuthConfig, bool) (Repository, error) { return s, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func newShelf() *shelf {
	return &shelf{blobs: map[digest.Digest][]byte{}, manifests: map[string][]byte{}}
}

func remote(t *testing.T, name string) reference.Named {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return reference.TagNameOnly(ref)
}

// A plugin that is made, sent and brought is the one it was, and nothing is left of it.
func TestTransfer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners")
	}
	s, dir := newShelf(), t.TempDir()
	m := open(t, dir, s)
	told := func(string, string, int64, int64) {}
	if err := m.Create(t.Context(), "ann/shelf", bytes.NewReader(archiveOf(t, config, "rootfs/p", "rootfs/etc/x", "other"))); err != nil {
		t.Fatal(err)
	}
	if err := m.Create(t.Context(), "ann/shelf:latest", nil); !errdefs.IsConflict(err) || err.Error() != "plugin ann/shelf:latest already exists" {
		t.Errorf("made twice: %v", err)
	}
	made, err := m.Inspect("ann/shelf")
	if err != nil || made.Enabled || made.Name != "ann/shelf:latest" || !slices.Equal(made.Settings.Env, []string{"A=1", "B=2"}) {
		t.Errorf("made %+v, %v", made, err)
	}
	if byID, err := m.Inspect(made.ID[:8]); err != nil || byID.Name != made.Name {
		t.Errorf("by id: %+v, %v", byID, err)
	}
	if err := m.Push(t.Context(), "ann/shelf", registry.AuthConfig{}, told); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(t.Context(), "ann/shelf", false); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir + "/plugins/blobs"); len(left) != 0 {
		t.Errorf("blobs left: %v", left)
	}
	needs, err := m.Privileges(t.Context(), Transfer{Remote: remote(t, "ann/shelf")})
	var names []string
	for _, p := range needs {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, ","); err != nil || got != "network,host ipc namespace,host pid namespace,mount,device,allow-all-devices,capabilities" {
		t.Errorf("needs %s, %v", got, err)
	}
	for _, wrong := range []apiplugin.Privileges{nil, needs[1:], append(slices.Clone(needs), needs[0])} {
		if err := m.Pull(t.Context(), "here", Transfer{Remote: remote(t, "ann/shelf"), Privileges: wrong, Told: told}); !errdefs.IsInvalidArgument(err) || err.Error() != "incorrect privileges" {
			t.Errorf("granted %v: %v", wrong, err)
		}
	}
	slices.Reverse(needs)
	if err := m.Pull(t.Context(), "here", Transfer{Remote: remote(t, "ann/shelf"), Privileges: needs, Told: told}); err != nil {
		t.Fatal(err)
	}
	if err := m.Set("here", []string{"A=9"}); err != nil {
		t.Fatal(err)
	}
	m = open(t, dir, s) // another engine
	p, err := m.Inspect("here")
	if err != nil || !slices.Contains(p.Settings.Env, "A=9") || p.PluginReference != "docker.io/ann/shelf:latest" {
		t.Fatalf("read again: %+v, %v", p, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "plugins", p.ID, "rootfs/etc/x")); err != nil || string(b) != "content of rootfs/etc/x" {
		t.Errorf("its files: %q, %v", b, err)
	}
	if err := m.Upgrade(t.Context(), "here", Transfer{Remote: remote(t, "ann/shelf"), Privileges: needs, Told: told}); err != nil {
		t.Fatal(err)
	}
	if p, err := m.Inspect("here"); err != nil || !slices.Contains(p.Settings.Env, "A=9") {
		t.Errorf("upgraded: %+v, %v", p, err)
	}
	if _, err := m.Find("here"); !errdefs.IsFailedPrecondition(err) || err.Error() != "plugin here:latest found but disabled" {
		t.Errorf("found: %v", err)
	}
	if _, err := m.Find("nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("found: %v", err)
	}
	if err := m.Remove(t.Context(), "here", true); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir + "/plugins")
	if err != nil || len(left) != 1 { // blobs
		t.Errorf("left: %v, %v", left, err)
	}
	if got := strings.Join(s.told, ","); got != "create ann/shelf:latest,remove ann/shelf:latest,pull here:latest,pull here,remove here:latest" {
		t.Errorf("told %s", got)
	}
}

// What is no plugin is refused, and leaves nothing.
func TestBadPlugins(t *testing.T) {
	s, dir := newShelf(), t.TempDir()
	m := open(t, dir, s)
	for want, b := range map[string][]byte{
		"config not found":           archiveOf(t, "", "rootfs/p"),
		"no rootfs found":            archiveOf(t, config, "other"),
		"failed to parse config":     archiveOf(t, "{", "rootfs/p"),
		"no entrypoint":              archiveOf(t, `{}`, "rootfs/p"),
		"no name of a socket":        archiveOf(t, `{"Entrypoint":["/p"],"Interface":{"Socket":"../../s"}}`, "rootfs/p"),
		"must be an absolute path":   archiveOf(t, `{"Entrypoint":["/p"],"Interface":{"Socket":"s"},"PropagatedMount":"x"}`, "rootfs/p"),
		"plugin protocol not suppor": archiveOf(t, `{"Entrypoint":["/p"],"Interface":{"Socket":"s","ProtocolScheme":"x"}}`, "rootfs/p"),
		"failed to read from tar":    []byte(strings.Repeat("no archive ", 100)),
	} {
		if err := m.Create(t.Context(), "bad", bytes.NewReader(b)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	s.manifests["latest"] = []byte(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}`)
	if err := m.Pull(t.Context(), "bad", Transfer{Remote: remote(t, "an/image")}); err == nil || !strings.Contains(err.Error(), "did not find plugin config") {
		t.Errorf("an image: %v", err)
	}
	left, err := os.ReadDir(dir + "/plugins")
	if err != nil || len(left) != 1 || len(m.List()) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if left, _ := os.ReadDir(dir + "/plugins/blobs"); len(left) != 0 {
		t.Errorf("blobs left: %v", left)
	}
}

func TestSet(t *testing.T) {
	c := parsed(t)
	for _, x := range []struct{ arg, want string }{
		{"A=5", ""}, {"A.value=5", ""}, {"m.source=/other", ""}, {"m=/other", ""}, {"fuse.path=/dev/null", ""}, {"args=a b", ""},
		{"B=5", `"B" is not settable`}, {"A.name=5", `"A.name" is not settable`}, {"m.destination=/x", `"m.destination" is not settable`},
		{"nosuch=1", `setting "nosuch" not found in the plugin configuration`}, {"=x", "invalid format"},
	} {
		p := apiplugin.Plugin{Config: c, Settings: settingsOf(&c)}
		err := set(&p, []string{x.arg})
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", x.arg, err, x.want)
		}
	}
	p := apiplugin.Plugin{Config: c, Settings: settingsOf(&c)}
	if err := set(&p, []string{"A=5", "m=/other", "args=a b", "nosuch=1"}); err == nil || *p.Settings.Mounts[0].Source != "/src" || slices.Contains(p.Settings.Env, "A=5") {
		t.Errorf("half set: %+v, %v", p.Settings, err)
	}
	if err := set(&p, []string{"A=5", "m=/other", "args=a b"}); err != nil || *p.Settings.Mounts[0].Source != "/other" || *p.Config.Mounts[0].Source != "/src" || !slices.Equal(p.Settings.Args, []string{"a", "b"}) {
		t.Errorf("set: %+v, %v", p.Settings, err)
	}
	p.Enabled = true
	if err := set(&p, []string{"A=6"}); !errdefs.IsConflict(err) {
		t.Errorf("set while it runs: %v", err)
	}
}

// Paths that a plugin tells lead below its directory only.
func TestHostPath(t *testing.T) {
	e := &entry{dir: "/d", rec: record{Rootfs: "rootfs"}}
	e.rec.Plugin.Config.PropagatedMount = "/mnt"
	path := e.hostPath(&e.rec)
	for in, want := range map[string]string{
		"/mnt/v": "/d/propagated-mount/v", "/mnt": "/d/propagated-mount", "/mnt/../../../etc": "/d/rootfs/etc", "../../etc": "/d/rootfs/etc", "/mntx/v": "/d/rootfs/mntx/v", "": "/d/rootfs",
	} {
		if got := path(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	id := strings.Repeat("a", 64)
	f.Add([]byte(`{"Version":1,"Plugin":{"Id":"` + id + `","Name":"x:latest","Config":` + config + `},"Rootfs":"rootfs"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(id, b)
		if err == nil && (r.Plugin.ID != id || strings.Contains(r.Rootfs, "/") || strings.Contains(r.Plugin.Config.Interface.Socket, "/")) {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzSplitArchive(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "./config.json", Typeflag: tar.TypeReg, Size: 2, Mode: 0o644})
	io.WriteString(w, "{}")
	w.WriteHeader(&tar.Header{Name: "rootfs/a", Typeflag: tar.TypeReg, Mode: 0o644})
	w.WriteHeader(&tar.Header{Name: "rootfs/b", Typeflag: tar.TypeLink, Linkname: "rootfs/a"})
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		if _, err := splitArchive(bytes.NewReader(b), &out); err != nil {
			return
		}
		for r := tar.NewReader(&out); ; {
			if _, err := r.Next(); err == io.EOF {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}
