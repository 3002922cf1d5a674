package archive

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFind: the layers tell of a path what their overlay would show, or that they are not sure.
func TestFind(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts are devices")
	}
	top, mid, low := t.TempDir(), t.TempDir(), t.TempDir()
	dir := func(root, name string) { t.Helper(); must(t, os.MkdirAll(filepath.Join(root, name), 0o755)) }
	file := func(root, name string) {
		t.Helper()
		dir(root, filepath.Dir(name))
		must(t, os.WriteFile(filepath.Join(root, name), nil, 0o644))
	}
	gone := func(root, name string) {
		t.Helper()
		dir(root, filepath.Dir(name))
		must(t, unix.Mknod(filepath.Join(root, name), unix.S_IFCHR, 0))
	}
	file(low, "a/b/f")
	dir(mid, "a/c")
	file(low, "rm/f")
	gone(top, "rm")
	gone(mid, "a/b/f")
	file(top, "a/b/g")
	file(low, "hidden/f")
	dir(mid, "hidden")
	must(t, unix.Setxattr(filepath.Join(mid, "hidden"), "trusted.overlay.opaque", []byte("y"), 0))
	dir(top, "hidden")
	file(low, "was-dir/f")
	file(mid, "was-dir")
	file(mid, "was-file/f")
	file(low, "was-file")
	must(t, os.Symlink("/a", filepath.Join(mid, "link")))
	dir(low, "link/under")
	file(low, "came-back/f")
	gone(mid, "came-back")
	dir(top, "came-back")
	for name, want := range map[string]Found{
		"/": Directory, "": Directory, "/a": Directory, "a/b/": Directory, "/a/c": Directory, "/a/../a/c/.": Directory, "/../a": Directory,
		"/a/b/g": File, "/a/b/f": Nothing, "/rm": Nothing, "/rm/f": Nothing, "/no/such": Nothing,
		"/hidden": Directory, "/hidden/f": Nothing, "/was-dir": File, "/was-dir/f": Unsure, "/was-file": Directory, "/was-file/f": File,
		"/link": Unsure, "/link/under": Unsure, "/came-back": Directory, "/came-back/f": Nothing,
	} {
		if got, err := Find([]string{top, mid, low}, name); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", name, got, err, want)
		}
	}
	if _, err := Find([]string{top, filepath.Join(low, "nosuch")}, "/a"); err == nil {
		t.Error("a layer that is missing is not told of")
	}
}
