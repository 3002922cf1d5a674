package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: overlayfs, owners and devices")
	}
}

// open makes a store that the test closes.
func open(t testing.TB, c Config) *Store {
	t.Helper()
	if c.Root == "" {
		c.Root = t.TempDir()
	}
	s, err := Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// file of a tar: a directory ends in "/", a link has one.
type file struct{ name, data, link string }

func makeTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Unix(1_700_000_000, 0)}
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func importTar(t testing.TB, s *Store, ref string, files ...file) Image {
	t.Helper()
	img, err := s.Import(context.Background(), bytes.NewReader(makeTar(t, files...)), ImportOptions{Ref: ref, Message: "Imported from -"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// census is what a store has, of each kind.
type census struct{ images, leases, snapshots, blobs, ingests, blobFiles, ingestDirs, snapshotDirs int }

func count(t testing.TB, s *Store) census {
	t.Helper()
	ctx := s.namespace(context.Background())
	if err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	var c census
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.images = len(list)
	ls, err := s.leases.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.leases = len(ls)
	if err := s.snaps.Walk(ctx, func(context.Context, snapshots.Info) error { c.snapshots++; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.content.Walk(ctx, func(content.Info) error { c.blobs++; return nil }); err != nil {
		t.Fatal(err)
	}
	sts, err := s.content.ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.ingests = len(sts)
	c.blobFiles = entries(t, filepath.Join(s.cfg.Root, "content/blobs/sha256"))
	c.ingestDirs = entries(t, filepath.Join(s.cfg.Root, "content/ingest"))
	c.snapshotDirs = entries(t, filepath.Join(s.cfg.Root, "snapshots/snapshots"))
	return c
}

func entries(t testing.TB, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(list)
}

// tree mounts a container's root and reads it: "name=contents", sorted.
func tree(t testing.TB, s *Store, container string) string {
	t.Helper()
	target := mountRoot(t, s, container)
	defer s.Roots().Unmount(target)
	var out []string
	err := filepath.WalkDir(target, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		out = append(out, strings.TrimPrefix(p, target+"/")+"="+string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func mountRoot(t testing.TB, s *Store, container string) string {
	t.Helper()
	target := t.TempDir()
	if err := s.Roots().Mount(context.Background(), container, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

// rootOf prepares a container of an image and reads its files.
func rootOf(t testing.TB, s *Store, id string) string {
	t.Helper()
	const c = "reader"
	if err := s.Roots().Prepare(context.Background(), c, id); err != nil {
		t.Fatal(err)
	}
	defer s.Roots().Remove(context.Background(), c)
	return tree(t, s, c)
}

// dockerArchive builds an archive as old or new Docker writes it.
type dockerArchive struct {
	layers [][]byte // plain tars, bottom first
	packed [][]byte // as they stand in the archive; nil: plain
	tags   []string
	legacy bool // layers in directories of their own
	config func(*dockerspec.DockerOCIImage)
	last   []file // files that come at the end, or instead
	drop   string // a file to leave out
}

func (a dockerArchive) build(t testing.TB) []byte {
	t.Helper()
	var files []file
	conf := dockerspec.DockerOCIImage{}
	now := time.Unix(1_700_000_000, 0).UTC()
	conf.Created, conf.OS, conf.Architecture = &now, "linux", "amd64"
	conf.RootFS.Type = "layers"
	var names []string
	for i, l := range a.layers {
		d := digest.FromBytes(l)
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, d)
		conf.History = append(conf.History, ocispec.History{Created: &now, CreatedBy: fmt.Sprintf("step %d", i)})
		data := l
		if a.packed != nil {
			data = a.packed[i]
		}
		name := "blobs/sha256/" + digest.FromBytes(data).Encoded()
		if a.legacy {
			name = d.Encoded() + "/layer.tar"
			files = append(files, file{name: d.Encoded() + "/"}, file{name: d.Encoded() + "/VERSION", data: "1.0"}, file{name: d.Encoded() + "/json", data: "{}"})
		}
		files = append(files, file{name: name, data: string(data)})
		names = append(names, name)
	}
	if a.config != nil {
		a.config(&conf)
	}
	data, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	name := digest.FromBytes(data).Encoded() + ".json"
	files = append(files, file{name: name, data: string(data)})
	m, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": a.tags, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, file{name: "manifest.json", data: string(m)})
	var kept []file
	for _, f := range append(files, a.last...) {
		if a.drop == "" || !strings.Contains(f.name, a.drop) {
			kept = append(kept, f)
		}
	}
	return makeTar(t, kept...)
}

func load(t testing.TB, s *Store, data []byte) ([]string, error) {
	t.Helper()
	var lines []string
	err := s.Load(context.Background(), bytes.NewReader(data), LoadOptions{Loaded: func(l string) { lines = append(lines, l) }})
	return lines, err
}
