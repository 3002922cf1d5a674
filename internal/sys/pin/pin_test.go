package pin

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestWalk(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/f", "x")
	if err := os.Symlink(dir+"/a", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	f, err := Walk(dir+"/a/new/deep", true)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if st, err := os.Stat(dir + "/a/new/deep"); err != nil || !st.IsDir() {
		t.Errorf("missing directories are made: %v", err)
	}
	for _, path := range []string{dir + "/link", dir + "/link/f", dir + "/link/other"} {
		if _, err := Walk(path, true); !errors.Is(err, ErrLink) {
			t.Errorf("%s: %v, want %v", path, err, ErrLink)
		}
		if Plain(path) {
			t.Errorf("%s is not plain", path)
		}
	}
	if _, err := os.Stat(dir + "/a/other"); err == nil {
		t.Error("a directory was made behind a link")
	}
	for _, path := range []string{"/", dir + "/a/f", dir + "/nosuch/x"} {
		if !Plain(path) {
			t.Errorf("%s is plain", path)
		}
	}
	if _, err := Walk(dir+"/a/f/below", true); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

func TestBelow(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/secret", "x")
	write(t, dir+"/root/in/f", "x")
	for name, target := range map[string]string{"up": "../secret", "abs": dir + "/secret", "in2": "/in"} {
		if err := os.Symlink(target, dir+"/root/"+name); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for sub, ok := range map[string]bool{"in/f": true, "in2/f": true, "up": false, "abs": false, "../secret": false, "nosuch": false} {
		f, err := Below(root, sub)
		if (err == nil) != ok {
			t.Errorf("%s: %v", sub, err)
		}
		if err == nil {
			f.Close()
		}
	}
}

func TestBind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	write(t, dir+"/src/f", "inside")
	write(t, dir+"/host/f", "SECRET")
	points := dir + "/mnt"
	if err := os.Mkdir(points, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Clear(points); err != nil {
			t.Error(err)
		}
	})
	for i, name := range []string{"src", "src/f"} {
		f, err := Walk(dir+"/"+name, true)
		if err != nil {
			t.Fatal(err)
		}
		// The swap that a container might make.
		if err := os.Rename(dir+"/src", dir+"/away"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(dir+"/host", dir+"/src"); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(points, string(rune('0'+i)))
		if err := Bind(f, target, How{}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		read := target
		if name == "src" {
			read += "/f"
		}
		if b, err := os.ReadFile(read); err != nil || string(b) != "inside" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if err := errors.Join(os.Remove(dir+"/src"), os.Rename(dir+"/away", dir+"/src")); err != nil {
			t.Fatal(err)
		}
	}
	if err := Clear(points); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/src/f"); err != nil || string(b) != "inside" {
		t.Errorf("clearing took the source: %q, %v", b, err)
	}
	if err := Clear(points); err != nil {
		t.Errorf("again: %v", err)
	}
}

// What cannot be unmounted is left alone with all behind it.
func TestClearKeeps(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/mnt/0/precious", "x")
	if err := Clear(dir + "/mnt"); err == nil {
		t.Error("no error although a directory was not empty")
	}
	if _, err := os.Stat(dir + "/mnt/0/precious"); err != nil {
		t.Error(err)
	}
}
