package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// On a disk that is full, or cannot be written, crashes that were noted before count: an engine
// that falls for want of room holds back all the same. What is noted is not lost.
func TestCrashesWithoutRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	for name, limit := range map[string]func(dir string) error{
		"full": func(dir string) error {
			for i := range 100 {
				if os.WriteFile(filepath.Join(dir, "filler"+strconv.Itoa(i)), nil, 0o600) != nil {
					return nil
				}
			}
			return os.ErrInvalid
		},
		"read-only": func(dir string) error {
			return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,nr_inodes=20"); err != nil {
				t.Skip("needs a mount: ", err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			c := crashLog{filepath.Join(dir, "crashes.json"), "a"}
			now := time.Now()
			for range 3 {
				now = now.Add(time.Second)
				if _, err := c.begin(now); err != nil {
					t.Fatal(err)
				}
			}
			before, err := os.ReadFile(c.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := limit(dir); err != nil {
				t.Fatal(err)
			}
			rec, err := c.begin(now.Add(time.Second))
			if err == nil || !rec.Safe || len(rec.Crashes) != 3 {
				t.Errorf("%+v, %v", rec, err)
			}
			if after, err := os.ReadFile(c.path); err != nil || string(after) != string(before) {
				t.Errorf("the record is %q, %v; it was %q", after, err, before)
			}
			if id, err := engineID(filepath.Join(dir, "engine-id")); err == nil || len(id) != 36 {
				t.Errorf("engine's id %q, %v", id, err)
			}
		})
	}
}

// A record of crashes that is a directory is told of; the engine goes on.
func TestCrashRecordIsADirectory(t *testing.T) {
	c := crashLog{filepath.Join(t.TempDir(), "crashes.json"), "a"}
	if err := os.Mkdir(c.path, 0o700); err != nil {
		t.Fatal(err)
	}
	if rec, err := c.begin(time.Now()); err == nil || rec.Safe {
		t.Errorf("%+v, %v", rec, err)
	}
}

// An id that is none, as a power cut may leave it, is made anew.
func TestDamagedEngineID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine-id")
	for _, text := range []string{"", "\n", strings.Repeat("\x00", 37), "a\nb", strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := engineID(path)
		if err != nil || len(id) != 36 {
			t.Errorf("%.20q: %q, %v", text, id, err)
		}
		if again, err := engineID(path); err != nil || again != id {
			t.Errorf("%.20q: then %q, %v", text, again, err)
		}
	}
}
