package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// initOf makes an init layer with two files in it and counts how often.
func initOf(version string, made *int) *InitLayer {
	return &InitLayer{Version: version, Make: func(dir string) error {
		*made++
		return errors.Join(os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, "etc/hosts"), nil, 0o755), os.WriteFile(filepath.Join(dir, "mark"), []byte(version), 0o755))
	}}
}

func TestInitLayerIsBelowAll(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	made := 0
	root := filepath.Join(t.TempDir(), "with:colon")
	s := open(t, Config{Root: root, Init: initOf("1", &made)})
	plain := importTar(t, s, "plain:1", file{name: "f", data: "f"})
	own := importTar(t, s, "own:1", file{name: "etc/"}, file{name: "etc/hosts", data: "of the image"})
	for c, img := range map[string]string{"plain": plain.ID, "own": own.ID} {
		if err := s.Roots().Prepare(ctx, c, img); err != nil {
			t.Fatal(err)
		}
	}
	if got := tree(t, s, "plain"); got != "etc/hosts= f=f mark=1" {
		t.Errorf("below an image: %s", got)
	}
	if got := tree(t, s, "own"); got != "etc/hosts=of the image mark=1" {
		t.Errorf("an image with files of these names: %s", got)
	}
	upper, lowers, err := s.Roots().Layers(ctx, "plain")
	if err != nil || len(lowers) != 2 || filepath.Base(lowers[1]) != "init-1" {
		t.Fatalf("layers %q, %v", lowers, err)
	}
	for _, dir := range append(lowers, upper) {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			t.Errorf("layer %s: %v", dir, err)
		}
	}
	// What a container does stays in its own layer.
	target := mountRoot(t, s, "plain")
	if err := errors.Join(os.Remove(filepath.Join(target, "mark")), os.WriteFile(filepath.Join(target, "etc/hosts"), []byte("mine"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := s.Roots().Unmount(target); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s, "plain"); got != "etc/hosts=mine f=f" {
		t.Errorf("what the container changed: %s", got)
	}
	if got := tree(t, s, "own"); got != "etc/hosts=of the image mark=1" {
		t.Errorf("another after it: %s", got)
	}
	if rw, all, err := s.Roots().Size(ctx, "own"); err != nil || rw != 0 || all != int64(len("of the image")) {
		t.Errorf("size %d %d %v", rw, all, err)
	}
	// The next engine finds it; one with another idea makes its own beside it.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root, Init: initOf("1", &made)})
	if got := tree(t, s, "own"); made != 1 || got != "etc/hosts=of the image mark=1" {
		t.Errorf("made %d times; %s", made, got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root, Init: initOf("2", &made)})
	if err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s, "own"); made != 2 || got != "etc/hosts=of the image mark=1" {
		t.Errorf("made before a later version, which was made %d times: %s", made, got)
	}
	if got := rootOf(t, s, own.ID); got != "etc/hosts=of the image mark=2" {
		t.Errorf("of a later version: %s", got)
	}
}

func TestInitLayerHalfMade(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	fail := &InitLayer{Version: "1", Make: func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), errors.New("no more room"))
	}}
	if _, err := Open(context.Background(), Config{Root: root, Init: fail}); err == nil || !strings.Contains(err.Error(), "no more room") {
		t.Fatalf("opened: %v", err)
	}
	// Left by an engine that was killed amid the making.
	if err := os.MkdirAll(filepath.Join(root, "snapshots/new-init-1/half"), 0o755); err != nil {
		t.Fatal(err)
	}
	made := 0
	s := open(t, Config{Root: root, Init: initOf("1", &made)})
	img := importTar(t, s, "plain:1", file{name: "f", data: "f"})
	if got := rootOf(t, s, img.ID); made != 1 || got != "etc/hosts= f=f mark=1" {
		t.Errorf("made %d times; %s", made, got)
	}
	left, _ := filepath.Glob(filepath.Join(root, "snapshots/new-*"))
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A container made by an engine that knew no init layer stays as it was: what it made
// itself in its place would be changes.
func TestInitLayerNotBelowOlder(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, Config{Root: root})
	img := importTar(t, s, "plain:1", file{name: "f", data: "f"})
	if err := s.Roots().Prepare(ctx, "old", img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	made := 0
	s = open(t, Config{Root: root, Init: initOf("1", &made)})
	if got := tree(t, s, "old"); made != 1 || got != "f=f" {
		t.Errorf("made %d times; %s", made, got)
	}
	if _, lowers, err := s.Roots().Layers(ctx, "old"); err != nil || len(lowers) != 1 {
		t.Errorf("layers %q, %v", lowers, err)
	}
	if err := s.Roots().Prepare(ctx, "new", img.ID); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s, "new"); got != "etc/hosts= f=f mark=1" {
		t.Errorf("a new one: %s", got)
	}
}
