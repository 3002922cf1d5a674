package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"escale.dev/escale/internal/sys/nobind"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Handles are found again by who opens the folder next, and by others through its path.
func TestFolderIsTakenUp(t *testing.T) {
	root(t)
	f := folder(t)
	h, err := f.New("a")
	if err != nil {
		t.Fatal(err)
	}
	want := inside(t, h)
	h.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.New("b"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	for range 3 { // an engine that starts again and again
		again, err := OpenFolder(f.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if names, err := again.List(); err != nil || len(names) != 1 || names[0] != "a" {
			t.Errorf("List: %q, %v", names, err)
		}
		if !Bound(again.Path("a")) {
			t.Error("the handle has lost its namespace")
		}
		h, err := Open(again.Path("a"))
		if err != nil {
			t.Fatal(err)
		}
		if got := inside(t, h); got != want {
			t.Errorf("namespace %s, want %s", got, want)
		}
		h.Close()
	}
}

func inside(t *testing.T, h *Handle) (name string) {
	t.Helper()
	if err := h.Do(func() (err error) { name, err = os.Readlink(self); return err }); err != nil {
		t.Fatal(err)
	}
	return name
}

// The mount namespace holds the handles and nothing of the machine's, and the
// machine's mount namespace has none of the handles.
func TestFolderIsSecluded(t *testing.T) {
	root(t)
	f := folder(t)
	for _, name := range []string{"a", "b", "c"} {
		h, err := f.New(name)
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Dir(f.dir)))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range infos {
		if m.Mountpoint != filepath.Dir(f.pin()) && m.Mountpoint != f.pin() {
			t.Errorf("mounted in sight of all: %s (%s)", m.Mountpoint, m.FSType)
		}
	}
	if len(infos) != 2 {
		t.Errorf("%d mounts, want the folder's two", len(infos))
	}
	err = f.thread.Do(func() error {
		for _, path := range []string{"/proc", "/etc", "/..", "../etc"} {
			if _, err := os.Lstat(path); path != "/.." && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		}
		var st unix.Statfs_t
		if err := unix.Statfs("/..", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			t.Errorf("above the root: type %#x, %v", st.Type, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A folder whose making was cut off is made.
func TestFolderHalfMade(t *testing.T) {
	root(t)
	for name, spoil := range map[string]func(f *Folder) error{
		"never bound": func(f *Folder) error {
			return errors.Join(os.MkdirAll(filepath.Dir(f.pin()), 0o755), os.WriteFile(f.pin(), nil, 0o400))
		},
		"a link that was not renamed": func(f *Folder) error { return os.Symlink("/nowhere", f.dir+".new") },
		"a link of a dead engine":     func(f *Folder) error { return os.Symlink("/proc/0/fd/1", f.dir) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "netns")
			if err := spoil(&Folder{dir: dir}); err != nil {
				t.Fatal(err)
			}
			f, err := OpenFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			h, err := f.New("a")
			if err != nil {
				t.Fatal(err)
			}
			h.Close()
			if err := f.Destroy(); err != nil {
				t.Error(err)
			}
			if err := f.Destroy(); err != nil {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// What is in the way of a folder and is not its own is not touched.
func TestFolderRefused(t *testing.T) {
	root(t)
	dir := filepath.Join(t.TempDir(), "netns")
	precious := filepath.Join(dir, "precious")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(precious, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err := OpenFolder(dir)
	if err == nil || !strings.Contains(err.Error(), "folder of network namespaces") {
		t.Fatalf("OpenFolder over a directory: %v", err)
	}
	if _, err := os.Lstat(precious); err != nil {
		t.Errorf("what was in the directory: %v", err)
	}
	if err := (&Folder{dir: dir}).Destroy(); err == nil {
		t.Error("Destroy removed what is not its own")
	}
	if err := errors.Join(os.Remove(precious), (&Folder{dir: dir}).Destroy()); err != nil {
		t.Error(err)
	}
}

// Handles that an earlier engine bound in a directory are taken over.
func TestFolderWasADirectory(t *testing.T) {
	root(t)
	dir := filepath.Join(t.TempDir(), "netns")
	if err := nobind.Prepare(dir); err != nil {
		t.Fatal(err)
	}
	old, err := New()
	if err != nil {
		t.Fatal(err)
	}
	want, path := inside(t, old), filepath.Join(dir, "a")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", old.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	old.Close()
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Destroy()
	h, err := Open(f.Path("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if got := inside(t, h); got != want {
		t.Errorf("namespace %s, want %s", got, want)
	}
	if err := f.Remove("a"); err != nil {
		t.Error(err)
	}
}

// A path that somebody spoils comes back with the next handle.
func TestFolderPathComesBack(t *testing.T) {
	root(t)
	for name, spoil := range map[string]func(dir string) error{
		"removed":   os.Remove,
		"elsewhere": func(dir string) error { return errors.Join(os.Remove(dir), os.Symlink("/nowhere", dir)) },
		"directory": func(dir string) error { return errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := folder(t)
			if err := spoil(f.dir); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"a", "b"} {
				h, err := f.New(name)
				if err != nil {
					t.Fatal(err)
				}
				h.Close()
				if !Bound(f.Path(name)) {
					t.Errorf("%s cannot be reached by its path", name)
				}
			}
		})
	}
}
