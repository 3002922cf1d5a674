package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestRoots(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	img := importTar(t, s, "base:1", file{name: "d/"}, file{name: "d/f", data: "base"}, file{name: "g", data: "gone"})
	r := s.Roots()
	for _, c := range []string{"c1", "c2"} {
		if err := r.Prepare(ctx, c, img.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Prepare(ctx, "c1", img.ID); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	if err := r.Prepare(ctx, "c3", "sha256:"+strings.Repeat("0", 64)); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
	if err := r.Mount(ctx, "c3", t.TempDir()); !errdefs.IsNotFound(err) {
		t.Errorf("unknown container: %v", err)
	}
	if err := r.Mount(ctx, "c1", "/nonexistent/dir"); err == nil {
		t.Error("mounted on nothing")
	}
	target := mountRoot(t, s, "c1")
	if err := os.WriteFile(filepath.Join(target, "d/f"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(target, "g")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	if rw, all, err := r.Size(ctx, "c1"); err != nil || rw != 12 || all != 12+8 {
		t.Errorf("size %d %d %v", rw, all, err)
	}
	if err := r.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if err := r.Unmount(target); err != nil {
		t.Errorf("unmounting twice: %v", err)
	}
	if err := r.Unmount(filepath.Join(target, "nothing")); err != nil {
		t.Errorf("unmounting nothing: %v", err)
	}
	if got := tree(t, s, "c1"); got != "d/f=changed new=12345" {
		t.Errorf("c1: %s", got)
	}
	if got := tree(t, s, "c2"); got != "d/f=base g=gone" {
		t.Errorf("c2: %s", got)
	}
	// The image goes by force, its containers stay.
	got, err := s.Remove(ctx, img.ID, RemoveOptions{Force: true, Users: func(string) []User { return []User{{"c1", false}} }})
	if err != nil || len(got) != 2 {
		t.Errorf("removal: the layer is said to be gone: %v %v", got, err)
	}
	if err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s, "c2"); got != "d/f=base g=gone" {
		t.Errorf("c2 without its image: %s", got)
	}
	if list, _ := r.Containers(ctx); fmt.Sprint(list) != "[c1 c2]" {
		t.Errorf("containers: %v", list)
	}
	for _, c := range []string{"c1", "c2", "c1", "never"} {
		if err := r.Remove(ctx, c); err != nil {
			t.Errorf("remove %s: %v", c, err)
		}
	}
	if got := count(t, s); got != (census{}) {
		t.Errorf("left: %+v", got)
	}
}

// TestManyLayers: the most layers that an image may have can be mounted, below
// a root whose name mount(2) would misread, and each hides what it should.
func TestManyLayers(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), strings.Repeat("long,name:", 12))
	s := open(t, Config{Root: root})
	var layers [][]byte
	for i := range maxLayers {
		files := []file{{name: fmt.Sprintf("f%03d", i), data: "1"}, {name: "last", data: fmt.Sprint(i)}}
		if i > 0 {
			files = append(files, file{name: fmt.Sprintf(".wh.f%03d", i-1)})
		}
		layers = append(layers, makeTar(t, files...))
	}
	if _, err := load(t, s, dockerArchive{layers: layers, tags: []string{"deep:1"}}.build(t)); err != nil {
		t.Fatal(err)
	}
	if got := rootOf(t, s, "deep:1"); got != "f126=1 last=126" {
		t.Errorf("files: %s", got)
	}
	_, err := load(t, s, dockerArchive{layers: append(layers, makeTar(t, file{name: "x"})), tags: []string{"deeper:1"}}.build(t))
	if err == nil || err.Error() != "max depth exceeded" {
		t.Errorf("128 layers: %v", err)
	}
	if err := s.Roots().Prepare(ctx, "c", "deep:1"); err != nil {
		t.Fatal(err)
	}
	if _, all, err := s.Roots().Size(ctx, "c"); err != nil || all != 127+10+90*2+27*3 {
		t.Errorf("size %d %v", all, err)
	}
}

// TestRootsAtOnce makes and removes many at the same time as images come and
// go: nothing is lost, nothing left.
func TestRootsAtOnce(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	img := importTar(t, s, "base:1", file{name: "f", data: "base"})
	before := count(t, s)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 8 {
				id := fmt.Sprintf("c%d-%d", w, i)
				if err := s.Roots().Prepare(ctx, id, img.ID); err != nil {
					t.Error(err)
					return
				}
				target := t.TempDir()
				if err := s.Roots().Mount(ctx, id, target); err != nil {
					t.Error(err)
				} else {
					if b, err := os.ReadFile(target + "/f"); string(b) != "base" {
						t.Errorf("%s: %q %v", id, b, err)
					}
					unix.Unmount(target, unix.MNT_DETACH)
				}
				if err := s.Roots().Remove(ctx, id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for w := range 2 {
		wg.Go(func() {
			for i := range 4 {
				ref := fmt.Sprintf("img%d:%d", w, i)
				importTar(t, s, ref, file{name: "f", data: ref})
				if err := s.Collect(ctx); err != nil {
					t.Error(err)
				}
				if _, err := s.Remove(ctx, ref, RemoveOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if after := count(t, s); after != before {
		t.Errorf("left: %+v, before %+v", after, before)
	}
}

// TestPrepareWhileCollecting: a collection looks at what is committed, and may
// not take what is being made.
func TestPrepareWhileCollecting(t *testing.T) {
	needRoot(t)
	s := open(t, Config{Root: t.TempDir()})
	img := importTar(t, s, "debian:latest", file{name: "f", data: "x"})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.Collect(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for i := range 150 {
		id, gone := fmt.Sprintf("%064d", i), fmt.Sprintf("%064d", 1000+i)
		for _, c := range []string{id, gone} {
			if err := s.Roots().Prepare(t.Context(), c, img.ID); err != nil {
				t.Fatal(err)
			}
		}
		// Something to collect, so that the collector looks at the backend.
		if err := s.Roots().Remove(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	for i := range 150 {
		if _, err := s.Roots().Mounts(t.Context(), fmt.Sprintf("%064d", i)); err != nil {
			t.Errorf("container %d: %v", i, err)
		}
	}
}
