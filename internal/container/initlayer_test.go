package container

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInitLayer(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	dir := t.TempDir()
	if err := InitLayer(dir); err != nil {
		t.Fatal(err)
	}
	own := placed([]Mount{{Destination: "/etc/hosts"}})
	for path, mode := range map[string]os.FileMode{
		"/dev": os.ModeDir, "/dev/pts": os.ModeDir, "/dev/shm": os.ModeDir, "/dev/console": 0, "/etc": os.ModeDir, "/etc/hostname": 0, "/etc/hosts": 0,
		"/etc/mtab": os.ModeSymlink, "/etc/resolv.conf": 0, "/proc": os.ModeDir, "/sys": os.ModeDir, "/.dockerenv": 0,
	} {
		st, err := os.Lstat(filepath.Join(dir, path))
		if err != nil {
			t.Error(err)
			continue
		}
		if st.Mode().Type() != mode || mode != os.ModeSymlink && st.Mode().Perm() != 0o755 || mode == 0 && st.Size() != 0 {
			t.Errorf("%s: %v, %d bytes", path, st.Mode(), st.Size())
		}
		if own(path) != (path != "/etc/hosts") {
			t.Errorf("%s is the engine's: %v", path, own(path))
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "etc/mtab")); to != "/proc/mounts" {
		t.Errorf("/etc/mtab leads to %q, %v", to, err)
	}
	if own("/etc/passwd") || !own("/dev/mqueue") {
		t.Error("names that a start makes")
	}
	if err := InitLayer(dir); err == nil {
		t.Error("made over another")
	}
}
