package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// fakeRegistry is one repository, to pull from and to push to.
type fakeRegistry struct {
	mu     sync.Mutex
	docs   map[string][]byte // by tag and digest
	types  map[string]string
	blobs  map[digest.Digest][]byte
	opened map[digest.Digest]int
	// body is what reading a blob from an offset gives, if not what it is.
	body func(d digest.Digest, data []byte, offset int64) io.Reader
	sent []string // what was pushed, and how
}

var errPassing = errors.New("connection reset")

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{docs: map[string][]byte{}, types: map[string]string{}, blobs: map[digest.Digest][]byte{}, opened: map[digest.Digest]int{}}
}

func (f *fakeRegistry) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	d, _, err := f.Manifest(ctx, ref)
	return d, err
}

func (f *fakeRegistry) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.docs[ref]
	if !ok {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", ref, errdefs.ErrNotFound)
	}
	return ocispec.Descriptor{MediaType: f.types[ref], Digest: digest.FromBytes(data), Size: int64(len(data))}, data, nil
}

func (f *fakeRegistry) Blob(_ context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.blobs[d]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	f.opened[d]++
	if f.body != nil {
		if r := f.body(d, data, offset); r != nil {
			return io.NopCloser(r), nil
		}
	}
	return io.NopCloser(bytes.NewReader(data[offset:])), nil
}

func (f *fakeRegistry) Passing(err error) bool {
	return errors.Is(err, errPassing) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (f *fakeRegistry) Push(_ context.Context, d ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (Sent, error) {
	f.mu.Lock()
	_, ok := f.blobs[d.Digest]
	f.mu.Unlock()
	if ok {
		return Sent{Existed: true}, nil
	}
	r, err := open()
	if err != nil {
		return Sent{}, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return Sent{}, err
	}
	if int64(len(data)) != d.Size || digest.FromBytes(data) != d.Digest {
		return Sent{}, fmt.Errorf("%s is not what it says: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[d.Digest] = data
	f.sent = append(f.sent, d.Digest.String()+" "+strings.Join(from, ","))
	return Sent{}, nil
}

func (f *fakeRegistry) PushManifest(_ context.Context, ref string, d ocispec.Descriptor, data []byte) error {
	f.put(ref, d.MediaType, data)
	return nil
}

func (f *fakeRegistry) put(tag, mediaType string, data []byte) ocispec.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(data)
	for _, ref := range []string{tag, d.String()} {
		f.docs[ref], f.types[ref] = data, mediaType
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (f *fakeRegistry) blob(mediaType string, data []byte) ocispec.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(data)
	f.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func packedTar(t testing.TB, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image puts an image of layers, each a tar, under a tag. change may spoil it.
func (f *fakeRegistry) image(t testing.TB, tag, arch string, change func(*ocispec.Manifest, *dockerspec.DockerOCIImage), layers ...[]byte) ocispec.Descriptor {
	t.Helper()
	conf := dockerspec.DockerOCIImage{}
	conf.OS, conf.Architecture, conf.RootFS.Type = "linux", arch, "layers"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, l := range layers {
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, f.blob(ocispec.MediaTypeImageLayerGzip, packedTar(t, l)))
	}
	if change != nil {
		change(&m, &conf)
	}
	data, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	if c := f.blob(ocispec.MediaTypeImageConfig, data); m.Config.Digest == "" {
		m.Config = c
	}
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	d := f.put(tag, m.MediaType, data)
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

func named(t testing.TB, s string) reference.Named {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return reference.TagNameOnly(ref)
}

func noise(n int, seed byte) string {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

func someLayers(t testing.TB) [][]byte {
	return [][]byte{makeTar(t, file{name: "a", data: noise(300_000, 1)}), makeTar(t, file{name: "b", data: noise(200_000, 2)}, file{name: "d/", data: ""}), makeTar(t, file{name: "d/c", data: "top"})}
}

// Fifty pulls of one image fetch and unpack it once.
func TestPullOnce(t *testing.T) {
	needRoot(t)
	s, f := open(t, Config{}), newFakeRegistry()
	f.image(t, "1", "amd64", nil, someLayers(t)...)
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			if _, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64", Progress: func(Progress) {}}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, l := range someLayers(t) {
		if n := f.opened[digest.FromBytes(packedTar(t, l))]; n != 1 {
			t.Errorf("a layer was fetched %d times", n)
		}
	}
	for d, n := range f.opened {
		if n != 1 {
			t.Errorf("%s was fetched %d times", d, n)
		}
	}
	if len(f.opened) != len(someLayers(t))+1 {
		t.Errorf("%d blobs fetched, want the layers and the config", len(f.opened))
	}
	if got, want := count(t, s), (census{images: 1, leases: 1, snapshots: 3, blobs: 5, blobFiles: 5, snapshotDirs: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if len(s.remotes.byChain)+len(s.remotes.blobs)+len(s.remotes.configs) != 0 {
		t.Errorf("flights left: %v %v %v", s.remotes.byChain, s.remotes.blobs, s.remotes.configs)
	}
	if got := rootOf(t, s, "r.test/x:1"); !strings.HasSuffix(got, " d/c=top") {
		t.Errorf("its root: %.40q", got)
	}
	p, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64"})
	if err != nil || p.New {
		t.Errorf("pulled again: %+v, %v", p.New, err)
	}
}

// A connection that breaks costs what was on its way, and no more.
func TestPullResumes(t *testing.T) {
	needRoot(t)
	s, f := open(t, Config{}), newFakeRegistry()
	s.Remotes().Set(Transfers{Pause: time.Millisecond})
	f.image(t, "1", "amd64", nil, someLayers(t)[0])
	var offsets []int64
	f.body = func(_ digest.Digest, data []byte, offset int64) io.Reader {
		if len(data) < 1000 {
			return nil
		}
		offsets = append(offsets, offset)
		end := min(offset+100_000, int64(len(data)))
		if len(offsets) == 2 {
			return io.MultiReader(bytes.NewReader(data[offset:end]), breaking{errPassing})
		}
		return bytes.NewReader(data[offset:end])
	}
	var steps []string
	_, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64", Progress: func(p Progress) { steps = append(steps, p.Status) }})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(offsets, []int64{0, 100_000, 200_000, 300_000}) {
		t.Errorf("read from %v", offsets)
	}
	for _, want := range []string{"Pulling from x", "Pulling fs layer", "Downloading", "Download complete", "Pull complete"} {
		if !slices.Contains(steps, want) {
			t.Errorf("no step %q in %q", want, steps)
		}
	}
}

type breaking struct{ err error }

func (f breaking) Read([]byte) (int, error) { return 0, f.err }

// What is not what it says is refused, nothing is left, and a retry works.
func TestPullRefuses(t *testing.T) {
	needRoot(t)
	layers := someLayers(t)[1:]
	for _, c := range []struct {
		name string
		make func(f *fakeRegistry)
		want string
		kind error
	}{
		{"another blob", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", nil, layers...)
			// A layer of just that many bytes, with "tip" for "top".
			f.body = func(d digest.Digest, data []byte, _ int64) io.Reader {
				if d != digest.FromBytes(packedTar(t, layers[1])) {
					return nil
				}
				other := packedTar(t, makeTar(t, file{name: "d/c", data: "tip"}))
				return bytes.NewReader(append(other, make([]byte, max(0, len(data)-len(other)))...)[:len(data)])
			}
		}, "layer", errdefs.ErrInvalidArgument},
		{"a spoilt blob", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", nil, layers...)
			f.body = func(d digest.Digest, data []byte, _ int64) io.Reader {
				if d != digest.FromBytes(packedTar(t, layers[1])) {
					return nil
				}
				spoilt := bytes.Clone(data)
				spoilt[4]++ // the time in gzip's header: it unpacks all the same
				return bytes.NewReader(spoilt)
			}
		}, "filesystem layer verification failed for digest sha256:", errdefs.ErrInvalidArgument},
		{"longer", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", nil, layers...)
			f.body = func(_ digest.Digest, data []byte, _ int64) io.Reader {
				return io.MultiReader(bytes.NewReader(data), strings.NewReader("more"))
			}
		}, "more than its", errdefs.ErrDataLoss},
		{"always cut", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", nil, layers...)
			f.body = func(_ digest.Digest, data []byte, offset int64) io.Reader {
				return bytes.NewReader(data[offset:min(offset+10, int64(len(data)))])
			}
		}, "unexpected EOF", nil},
		{"refused", func(f *fakeRegistry) {
			d := f.image(t, "1", "amd64", nil, layers...)
			_ = d
			delete(f.blobs, digest.FromBytes(packedTar(t, layers[1])))
		}, "not found", errdefs.ErrNotFound},
		{"another diff id", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", func(_ *ocispec.Manifest, c *dockerspec.DockerOCIImage) { c.RootFS.DiffIDs[1] = digest.FromString("x") }, layers...)
		}, "unpacks to", errdefs.ErrInvalidArgument},
		{"a layer too few", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", func(m *ocispec.Manifest, _ *dockerspec.DockerOCIImage) { m.Layers = m.Layers[:1] }, layers...)
		}, "layers length mismatch: expected 1, got 2", errdefs.ErrInvalidArgument},
		{"no image", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", func(m *ocispec.Manifest, _ *dockerspec.DockerOCIImage) {
				m.Config = ocispec.Descriptor{MediaType: "application/vnd.cncf.helm.config.v1+json", Digest: digest.FromString("x")}
			}, layers...)
		}, "unsupported media type application/vnd.cncf.helm", errdefs.ErrInvalidArgument},
		{"no layer", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", func(m *ocispec.Manifest, _ *dockerspec.DockerOCIImage) { m.Layers[0].MediaType = "text/html" }, layers...)
		}, "unsupported media type text/html", errdefs.ErrInvalidArgument},
		{"schema 1", func(f *fakeRegistry) {
			f.put("1", "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"name":"x"}`))
		}, "schema version 1", errdefs.ErrNotImplemented},
		{"no JSON", func(f *fakeRegistry) { f.put("1", ocispec.MediaTypeImageManifest, []byte("<html>")) }, "invalid manifest", errdefs.ErrInvalidArgument},
		{"Windows", func(f *fakeRegistry) {
			f.image(t, "1", "amd64", func(_ *ocispec.Manifest, c *dockerspec.DockerOCIImage) { c.OS = "windows" }, layers...)
		}, `"windows" cannot be used`, errdefs.ErrInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, f := open(t, Config{}), newFakeRegistry()
			s.Remotes().Set(Transfers{Pause: time.Microsecond})
			f.image(t, "base", "amd64", nil, layers[0])
			o := PullOptions{Source: f}
			if _, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:base"), PullOptions{Source: f, Platform: "linux/amd64"}); err != nil {
				t.Fatal(err)
			}
			before := count(t, s)
			c.make(f)
			_, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), o)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("%v, want %q of kind %v", err, c.want, c.kind)
			}
			if after := count(t, s); after != before {
				t.Errorf("left behind: %+v, before %+v", after, before)
			}
			f.body = nil
			f.image(t, "1", "amd64", nil, layers...)
			if _, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), o); err != nil {
				t.Errorf("a retry: %v", err)
			}
		})
	}
}

// Of an index the image for the platform comes, and the index is its digest. A
// tag that moves leaves the old image without a name.
func TestPullIndex(t *testing.T) {
	needRoot(t)
	s, f := open(t, Config{}), newFakeRegistry()
	base := someLayers(t)[2]
	index := func(tag string, list ...ocispec.Descriptor) digest.Digest {
		data, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": list})
		if err != nil {
			t.Fatal(err)
		}
		return f.put(tag, ocispec.MediaTypeImageIndex, data).Digest
	}
	attestation := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("att"), Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}}
	amd := f.image(t, "amd", "amd64", nil, base)
	top := index("1", attestation, f.image(t, "386", "386", nil, base, base), amd, f.image(t, "arm", "arm64", nil, base))
	p, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64"})
	if err != nil || p.Digest != top || !p.New || p.Image.Config.Architecture != "amd64" || p.Image.Target.Digest != amd.Digest {
		t.Fatalf("%+v, %v", p, err)
	}
	want := []string{"r.test/x@" + top.String()}
	if got := p.Image; !slices.Equal(got.RepoDigests, want) || !slices.Equal(got.RepoTags, []string{"r.test/x:1"}) {
		t.Errorf("names %v %v", got.RepoTags, got.RepoDigests)
	}
	arm, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/arm64"})
	if err != nil || arm.Image.Config.Architecture != "arm64" || !arm.New {
		t.Fatalf("%+v, %v", arm, err)
	}
	old, err := s.Get(t.Context(), p.Image.ID)
	if err != nil || len(old.RepoTags) != 0 {
		t.Errorf("the old image: %v, %v", old.RepoTags, err)
	}
	by, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x@"+amd.Digest.String()), PullOptions{Source: f})
	if err != nil || by.Image.ID != p.Image.ID || !slices.Contains(by.Image.RepoDigests, "r.test/x@"+amd.Digest.String()) || len(by.Image.RepoTags) != 0 {
		t.Errorf("by digest: %+v, %v", by, err)
	}
	_, err = s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/s390x"})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no matching manifest for linux/s390x in the manifest list entries") {
		t.Errorf("no such platform: %v", err)
	}
	index("loop", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: index("inner", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: index("innermost", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: top})})})
	if _, err = s.Remotes().Pull(t.Context(), named(t, "r.test/x:loop"), PullOptions{Source: f}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("indexes within indexes: %v", err)
	}
}

// A pull that is given up leaves nothing, and does not end another that waits
// for the same layer.
func TestPullGivenUp(t *testing.T) {
	needRoot(t)
	s, f := open(t, Config{}), newFakeRegistry()
	f.image(t, "1", "amd64", nil, someLayers(t)...)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.body = func(_ digest.Digest, data []byte, _ int64) io.Reader {
		if len(data) < 1000 {
			return nil
		}
		return io.MultiReader(bytes.NewReader(data[:500]), waiting{func() { once.Do(func() { close(begun) }); <-goOn }}, bytes.NewReader(data[500:]))
	}
	pull := func(ctx context.Context) chan error {
		out := make(chan error, 1)
		go func() {
			_, err := s.Remotes().Pull(ctx, named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64"})
			out <- err
		}()
		return out
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := pull(ctx)
	<-begun
	second := pull(t.Context())
	for {
		s.remotes.mu.Lock()
		joined := 0
		for _, fl := range s.remotes.byChain {
			joined += fl.refs
		}
		s.remotes.mu.Unlock()
		if joined == 6 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	close(goOn)
	if err := <-second; err != nil {
		t.Errorf("the other one: %v", err)
	}
	if got, want := count(t, s), (census{images: 1, leases: 1, snapshots: 3, blobs: 5, blobFiles: 5, snapshotDirs: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

type waiting struct{ wait func() }

func (w waiting) Read([]byte) (int, error) {
	w.wait()
	return 0, io.EOF
}

func TestPullFullDisk(t *testing.T) {
	needRoot(t)
	root, f := t.TempDir(), newFakeRegistry()
	f.image(t, "1", "amd64", nil, someLayers(t)...)
	s := open(t, Config{Root: root, MinFree: 1 << 60})
	if _, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("with no room: %v", err)
	}
	if got := count(t, s); got != (census{}) {
		t.Errorf("left: %+v", got)
	}
	small := filepath.Join(root, "small")
	if err := unix.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=700k"); err != nil {
		t.Skip("cannot mount a small disk: ", err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	s2, err := Open(t.Context(), Config{Root: small, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	if _, err := s2.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64"}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a disk that fills up: %v", err)
	}
	if got := count(t, s2); got.images+got.leases+got.snapshots+got.blobs != 0 {
		t.Errorf("left: %+v", got)
	}
}

// What was never packed is packed by the first push, and has the same digest
// from then on; what came from a registry goes back as it came.
func TestPushPacksOnce(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s, f := open(t, Config{Root: root}), newFakeRegistry()
	img := importTar(t, s, "r.test/x:1", file{name: "a", data: noise(100_000, 3)})
	ref := named(t, "r.test/x:1").(reference.NamedTagged)
	first, err := s.Remotes().Push(t.Context(), ref, PushOptions{Target: f})
	if err != nil {
		t.Fatal(err)
	}
	now, err := s.Get(t.Context(), img.ID)
	if err != nil || !slices.Equal(now.RepoDigests, []string{"r.test/x@" + first.Digest.String()}) {
		t.Errorf("names %v, %v", now.RepoDigests, err)
	}
	if got, want := count(t, s), (census{images: 1, leases: 1, snapshots: 1, blobs: 3, blobFiles: 3, snapshotDirs: 1}); got != want {
		t.Errorf("%+v, want %+v: the layer is kept twice", got, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root})
	if got := rootOf(t, s, "r.test/x:1"); !strings.HasPrefix(got, "a=") {
		t.Errorf("its root: %.20q", got)
	}
	other := newFakeRegistry()
	again, err := s.Remotes().Push(t.Context(), ref, PushOptions{Target: other})
	if err != nil || again.Digest != first.Digest {
		t.Errorf("pushed again: %s, first %s, %v", again.Digest, first.Digest, err)
	}
	third := open(t, Config{})
	p, err := third.Remotes().Pull(t.Context(), ref, PullOptions{Source: other})
	if err != nil || p.Digest != first.Digest || p.Image.ID != img.ID {
		t.Fatalf("pulled elsewhere: %+v, %v", p, err)
	}
	back := newFakeRegistry()
	if sent, err := third.Remotes().Push(t.Context(), ref, PushOptions{Target: back}); err != nil || sent.Digest != first.Digest {
		t.Errorf("pushed from there: %+v, %v", sent, err)
	}
	if err := third.Tag(t.Context(), "r.test/x:1", "r.test/y:1"); err != nil {
		t.Fatal(err)
	}
	to := newFakeRegistry()
	if _, err := third.Remotes().Push(t.Context(), named(t, "r.test/y:1").(reference.NamedTagged), PushOptions{Target: to}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(to.sent, func(s string) bool { return strings.HasSuffix(s, " x") }) {
		t.Errorf("nobody was asked whether they have it: %q", to.sent)
	}
	if _, err := third.Remotes().Tags(named(t, "r.test/y:2")); err == nil || err.Error() != "tag does not exist: r.test/y:2" {
		t.Errorf("no such tag: %v", err)
	}
	if _, err := third.Remotes().Tags(named(t, "r.test/z:2")); err == nil || err.Error() != "An image does not exist locally with the tag: r.test/z" {
		t.Errorf("no such name: %v", err)
	}
}

// FuzzDocument feeds what registries may give as a manifest.
func FuzzDocument(f *testing.F) {
	f.Add(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:00","size":-1}]}`))
	f.Add(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}`))
	f.Add("application/vnd.docker.distribution.manifest.v1+json", []byte(`{"schemaVersion":1}`))
	match, err := matcher("linux/amd64")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		doc, err := parseDocument(mediaType, data)
		if err != nil {
			if errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err) {
				return
			}
			t.Fatalf("of no kind: %v", err)
		}
		if doc.MediaType == ocispec.MediaTypeImageManifest || doc.MediaType == dockerManifest {
			for _, l := range append(doc.Layers, *doc.Config) {
				if l.Digest.Validate() != nil || l.Size < 0 {
					t.Fatalf("a bad descriptor: %+v", l)
				}
			}
			return
		}
		if d, err := match.choose(doc); err == nil && d.Digest.Validate() != nil {
			t.Fatalf("chosen: %+v", d)
		}
	})
}

// FuzzRecord reads what a damaged database may hold of an image: it is refused, or
// comes out as it went in.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"sha256:e3b0","tags":["docker.io/library/a:1"],"target":{"digest":"sha256:00"},"config":{},"layers":[{"diffID":"x","chainID":"y","blob":{},"size":1}],"later":[1]}`), []byte(`{"config":{},"rootfs":{"type":"layers"}}`))
	f.Add([]byte(`{"id":"","tags":["","a@b"],"digests":[":","x@sha256:1"],"indexes":{"":{}},"lastTagged":"x"}`), []byte(`{"config":null,"comment":7}`))
	f.Add([]byte(`null`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, data, config []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			return
		}
		once, err := r.encode()
		if err != nil {
			t.Fatalf("it was read, and cannot be written: %v", err)
		}
		again, err := decodeRecord(once)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, once)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("it changes: %v\n%s\n%s", err, once, twice)
		}
		if err := r.fill(config); err != nil {
			return
		}
		for _, tag := range r.Tags {
			r.indexOf(tag)
		}
		r.chain()
	})
}
