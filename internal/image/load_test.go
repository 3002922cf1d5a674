package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func TestLoad(t *testing.T) {
	needRoot(t)
	one := makeTar(t, file{name: "d/"}, file{name: "d/a", data: "1"}, file{name: "b", data: "2"})
	two := makeTar(t, file{name: "d/c", data: "3"}, file{name: ".wh.b"}) // d is only implied
	const want = "d/a=1 d/c=3"
	for name, data := range map[string][]byte{
		"blobs":      dockerArchive{layers: [][]byte{one, two}, tags: []string{"a:1", "b:2"}}.build(t),
		"legacy":     dockerArchive{layers: [][]byte{one, two}, tags: []string{"a:1", "b:2"}, legacy: true}.build(t),
		"gzip":       gz(t, dockerArchive{layers: [][]byte{one, two}, tags: []string{"a:1", "b:2"}}.build(t)),
		"zstd":       zst(t, dockerArchive{layers: [][]byte{one, two}, tags: []string{"a:1", "b:2"}}.build(t)),
		"gzipped":    dockerArchive{layers: [][]byte{one, two}, packed: [][]byte{gz(t, one), zst(t, two)}, tags: []string{"a:1", "b:2"}}.build(t),
		"twice":      dockerArchive{layers: [][]byte{one, two, two}, tags: []string{"a:1", "b:2"}}.build(t),
		"with links": linked(t, one, two),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Config{})
			lines, err := load(t, s, data)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(lines, "\n"); got != "Loaded image: a:1\nLoaded image: b:2" {
				t.Errorf("said:\n%s", got)
			}
			if got := rootOf(t, s, "a:1"); got != want {
				t.Errorf("files: %s", got)
			}
			first := count(t, s)
			if lines, err = load(t, s, data); err != nil || len(lines) != 2 { // again
				t.Errorf("again: %q %v", lines, err)
			}
			if second := count(t, s); second != first {
				t.Errorf("again: %+v, first %+v", second, first)
			}
			if _, err := s.Remove(context.Background(), "a:1", RemoveOptions{}); err != nil {
				t.Error(err)
			}
			if _, err := s.Remove(context.Background(), "b:2", RemoveOptions{}); err != nil {
				t.Error(err)
			}
			if got := count(t, s); got != (census{}) {
				t.Errorf("left: %+v", got)
			}
		})
	}
}

// linked is an archive in which the second layer is a symbolic link.
func linked(t *testing.T, one, two []byte) []byte {
	a := dockerArchive{layers: [][]byte{one, two}, legacy: true, tags: []string{"a:1", "b:2"}}
	a.last = []file{{name: "moved/layer.tar", data: string(two)}, {name: digest.FromBytes(two).Encoded() + "/layer.tar", link: "../moved/layer.tar"}}
	return a.build(t)
}

// TestInherited: a directory that a layer only implies keeps its owner.
func TestInherited(t *testing.T) {
	needRoot(t)
	s := open(t, Config{})
	one := makeTar(t, file{name: "d/"}, file{name: "d/a", data: "1"})
	two := makeTar(t, file{name: "d/b", data: "2"})
	one = bytes.Replace(one, []byte("0000755"), []byte("0001777"), 1)
	one = fixChecksum(one)
	if _, err := load(t, s, dockerArchive{layers: [][]byte{one, two}, tags: []string{"a:1"}}.build(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Roots().Prepare(context.Background(), "c", "a:1"); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mountRoot(t, s, "c"), "d"), &st); err != nil || st.Mode&0o7777 != 0o1777 {
		t.Errorf("mode %o %v", st.Mode, err)
	}
}

// fixChecksum recomputes that of the first header.
func fixChecksum(b []byte) []byte {
	copy(b[148:156], "        ")
	n := 0
	for _, c := range b[:512] {
		n += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", n))
	return b
}

// ociArchive builds an OCI layout with an index for two platforms.
func ociArchive(t *testing.T, annotations map[string]string, spoil string) []byte {
	t.Helper()
	var files []file
	put := func(mt string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mt, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if spoil == mt {
			data = append(bytes.Clone(data), ' ')
		}
		files = append(files, file{name: "blobs/sha256/" + d.Digest.Encoded(), data: string(data)})
		return d
	}
	js := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var manifests []ocispec.Descriptor
	for _, arch := range []string{"s390x", "amd64", "arm64"} {
		plain := makeTar(t, file{name: "arch", data: arch})
		var conf dockerspec.DockerOCIImage
		conf.OS, conf.Architecture, conf.RootFS = "linux", arch, ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}}
		m := ocispec.Manifest{Config: put(ocispec.MediaTypeImageConfig, js(conf)), Layers: []ocispec.Descriptor{put(ocispec.MediaTypeImageLayerGzip, gz(t, plain))}}
		m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
		d := put(ocispec.MediaTypeImageManifest, js(m))
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		manifests = append(manifests, d)
	}
	att := put(ocispec.MediaTypeImageManifest, []byte("{}"))
	att.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: append(manifests, att)}
	idx.SchemaVersion = 2
	d := put(ocispec.MediaTypeImageIndex, js(idx))
	d.Annotations = annotations
	top := ocispec.Index{Manifests: []ocispec.Descriptor{d}}
	top.SchemaVersion = 2
	files = append(files, file{name: "index.json", data: string(js(top))}, file{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`})
	return makeTar(t, files...)
}

func TestLoadOCI(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	for want, annotations := range map[string]map[string]string{
		"Loaded image: full/name:1": {"io.containerd.image.name": "docker.io/full/name:1", ocispec.AnnotationRefName: "1"},
		"Loaded image: name:2":      {ocispec.AnnotationRefName: "name:2"},
		"Loaded image ID: ":         {ocispec.AnnotationRefName: "only-a-tag"},
	} {
		s := open(t, Config{})
		data := ociArchive(t, annotations, "")
		lines, err := load(t, s, data)
		if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], want) {
			t.Fatalf("%q %v, want %s", lines, err, want)
		}
		list, _ := s.List(ctx)
		if len(list) != 1 || rootOf(t, s, list[0].ID) != "arch=amd64" {
			t.Errorf("%+v", list)
		}
		if c := count(t, s); c.blobs != 3 || c.snapshots != 1 {
			t.Errorf("other platforms were kept: %+v", c)
		}
		// The manifest stays what it is, so that its digest can be relied on.
		if d := list[0].Target; d.MediaType != ocispec.MediaTypeImageManifest || d.Digest == "" {
			t.Errorf("target: %+v", d)
		}
		if err := s.Load(ctx, bytes.NewReader(data), LoadOptions{Platform: "linux/arm64"}); err != nil {
			t.Error(err)
		}
		if err := s.Load(ctx, bytes.NewReader(data), LoadOptions{Platform: "linux/mips64le"}); !errdefs.IsNotFound(err) {
			t.Errorf("no such platform: %v", err)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	needRoot(t)
	s := open(t, Config{MaxLayer: 1 << 20})
	one := makeTar(t, file{name: "a", data: strings.Repeat("1", 9000)})
	other := makeTar(t, file{name: "a", data: strings.Repeat("2", 9000)})
	good := dockerArchive{layers: [][]byte{one}, tags: []string{"a:1"}}
	whole := good.build(t)
	with := func(f func(a *dockerArchive)) []byte {
		a := good
		f(&a)
		return a.build(t)
	}
	importTar(t, s, "old:1", file{name: "f", data: "old"})
	before := count(t, s)
	diffID := fmt.Sprintf(`invalid diffID for layer 0: expected %q, got %q`, digest.FromBytes(other), digest.FromBytes(one))
	for name, tc := range map[string]struct {
		data []byte
		want string
		kind func(error) bool
	}{
		"empty":        {nil, "invalid archive: does not contain a manifest.json", nil},
		"noise":        {bytes.Repeat([]byte("noise"), 20000), "archive/tar: invalid tar header", nil},
		"cut":          {whole[:5000], "unexpected EOF", nil},
		"cut gzip":     {gz(t, whole)[:200], "unexpected EOF", nil},
		"no manifest":  {with(func(a *dockerArchive) { a.drop = "manifest.json" }), "invalid archive: does not contain a manifest.json", nil},
		"no layer":     {with(func(a *dockerArchive) { a.drop = "blobs/" }), "", nil},
		"no config":    {with(func(a *dockerArchive) { a.drop = ".json" }), "invalid archive: does not contain a manifest.json", nil},
		"null":         {with(func(a *dockerArchive) { a.last = []file{{name: "manifest.json", data: "null"}} }), "invalid manifest, manifest cannot be null (but can be [])", nil},
		"bad manifest": {with(func(a *dockerArchive) { a.last = []file{{name: "manifest.json", data: "[x"}} }), "invalid archive: failed to decode manifest.json: invalid character 'x' looking for beginning of value", nil},
		"bad tag":      {with(func(a *dockerArchive) { a.tags = []string{"a"} }), `invalid tag "a"`, nil},
		"windows":      {with(func(a *dockerArchive) { a.config = func(c *dockerspec.DockerOCIImage) { c.OS = "windows" } }), "cannot load windows image on linux", nil},
		"no rootfs":    {with(func(a *dockerArchive) { a.config = func(c *dockerspec.DockerOCIImage) { c.RootFS = ocispec.RootFS{} } }), "invalid image JSON, no RootFS key", nil},
		"too few": {with(func(a *dockerArchive) {
			a.config = func(c *dockerspec.DockerOCIImage) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:0] }
		}), "invalid manifest, layers length mismatch: expected 1, got 0", nil},
		"wrong diff": {with(func(a *dockerArchive) {
			a.config = func(c *dockerspec.DockerOCIImage) { c.RootFS.DiffIDs[0] = digest.FromBytes(other) }
		}), diffID, nil},
		"bad layer":      {with(func(a *dockerArchive) { a.packed = [][]byte{gz(t, one)[:40]} }), "unexpected EOF", nil},
		"bomb":           {with(func(a *dockerArchive) { a.packed = [][]byte{gz(t, make([]byte, 4<<20))} }), "", errdefs.IsResourceExhausted},
		"spoilt config":  {ociArchive(t, nil, ocispec.MediaTypeImageConfig), "", nil},
		"spoilt layer":   {ociArchive(t, nil, ocispec.MediaTypeImageLayerGzip), "", nil},
		"spoilt index":   {ociArchive(t, nil, ocispec.MediaTypeImageIndex), "", nil},
		"index of noise": {makeTar(t, file{name: "index.json", data: "{}"}), "invalid archive: index.json has schema version 0, not 2", nil},
	} {
		_, err := load(t, s, tc.data)
		if tc.kind == nil {
			tc.kind = errdefs.IsInvalidArgument
		}
		if err == nil || tc.want != "" && err.Error() != tc.want || !tc.kind(err) {
			t.Errorf("%s: %v (%s)", name, err, tc.want)
		}
		if after := count(t, s); after != before {
			t.Fatalf("%s leaves something: %+v, before %+v", name, after, before)
		}
	}
}

func TestSave(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	base, top := makeTar(t, file{name: "a", data: "1"}), makeTar(t, file{name: "b", data: "2"})
	if _, err := load(t, s, dockerArchive{layers: [][]byte{base, top}, packed: [][]byte{gz(t, base), top}, tags: []string{"x:1", "x:2", "y:1"}}.build(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, s, dockerArchive{layers: [][]byte{base}, tags: []string{"x:3"}}.build(t)); err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(ctx, "x:1")
	if err != nil {
		t.Fatal(err)
	}
	for refs, want := range map[string]string{
		"x:1":           "x:1",
		"x":             "x:1 x:2 x:3",
		"x:1 y:1 x:3":   "x:1 y:1 x:3",
		img.ID:          "ID",
		img.ID[7:17]:    "ID",
		"x:2 " + img.ID: "x:2",
		"x:1 x:1":       "x:1",
	} {
		var b bytes.Buffer
		if err := s.Save(ctx, &b, strings.Fields(refs), ""); err != nil {
			t.Errorf("save %s: %v", refs, err)
			continue
		}
		to := open(t, Config{})
		lines, err := load(t, to, b.Bytes())
		if err != nil {
			t.Errorf("load of %s: %v", refs, err)
			continue
		}
		said := strings.ReplaceAll(strings.ReplaceAll(strings.Join(lines, " "), "Loaded image: ", ""), "Loaded image ID: "+img.ID, "ID")
		if !sameWords(said, want) {
			t.Errorf("save %s: loads as %s, want %s", refs, said, want)
		}
		if back, err := to.Get(ctx, img.ID); strings.Contains(refs, "3") == false && (err != nil || back.Target.Digest != img.Target.Digest) {
			t.Errorf("save %s: manifest %s, was %s, %v", refs, back.Target.Digest, img.Target.Digest, err)
		}
		to.Close()
	}
	before := count(t, s)
	for ref, want := range map[string]string{"nosuch": "No such image: nosuch:latest", "x:9": "No such image: x:9", "sha256:zz": ""} {
		var b bytes.Buffer
		if err := s.Save(ctx, &b, []string{"x:1", ref}, ""); err == nil || want != "" && err.Error() != want || b.Len() > 0 {
			t.Errorf("save %s: %v, %d bytes", ref, err, b.Len())
		}
	}
	full := errors.New("client is gone")
	if err := s.Save(ctx, failing{full}, []string{"x"}, ""); !errors.Is(err, full) {
		t.Errorf("client gone: %v", err)
	}
	if after := count(t, s); after != before {
		t.Errorf("left: %+v, before %+v", after, before)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func sameWords(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	if len(x) != len(y) {
		return false
	}
	for _, w := range x {
		if !strings.Contains(" "+b+" ", " "+w+" ") {
			return false
		}
	}
	return true
}

// TestFull fills a small disk: a clear error, nothing left, the store goes on.
func TestFull(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("needs tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	big := makeTar(t, file{name: "big", data: strings.Repeat("x", 20<<20)})
	for _, minFree := range []int64{-1, 8 << 20} {
		root := filepath.Join(disk, fmt.Sprint(minFree))
		s := open(t, Config{Root: root, MinFree: minFree})
		before := count(t, s)
		_, err := s.Import(ctx, bytes.NewReader(big), ImportOptions{Ref: "big:1"})
		if !errors.Is(err, unix.ENOSPC) || !strings.HasSuffix(err.Error(), "no space left on device") {
			t.Errorf("import: %v", err)
		}
		if _, err = load(t, s, dockerArchive{layers: [][]byte{big}, tags: []string{"a:1"}}.build(t)); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("load: %v", err)
		}
		if after := count(t, s); after != before {
			t.Errorf("left: %+v, before %+v", after, before)
		}
		img := importTar(t, s, "small:1", file{name: "f", data: "fits"})
		if got := rootOf(t, s, img.ID); got != "f=fits" {
			t.Errorf("files: %s", got)
		}
		s.Close()
		os.RemoveAll(root)
	}
}
