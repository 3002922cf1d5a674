package archive

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func digestOf(t *testing.T, dir string) string {
	t.Helper()
	d, err := Digest(bytes.NewReader(backup(t, dir)))
	must(t, err)
	return d
}

// A tree made of an archive has the digest of that archive; whatever differs shows in it, but where
// files have holes.
func TestDigest(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	hard(t, from)
	root := heldDir(t, to)
	must(t, Unpack(context.Background(), root, bytes.NewReader(backup(t, from))))
	want := digestOf(t, from)
	if got := digestOf(t, to); got != want {
		t.Fatalf("%s of a tree made of %s", got, want)
	}
	f := filepath.Join(to, "zeros")
	b, err := os.ReadFile(f)
	must(t, err)
	info, err := os.Stat(f)
	must(t, err)
	times := func() {
		t.Helper()
		must(t, os.Chtimes(f, info.ModTime(), info.ModTime()))
	}
	must(t, os.Truncate(f, 0))
	must(t, os.Truncate(f, int64(len(b)))) // one hole
	times()
	if digestOf(t, to) != want {
		t.Error("a hole counts")
	}
	for what, change := range map[string]func() error{
		"content": func() error { b[len(b)/2] = 1; return os.WriteFile(f, b, 0o644) },
		"mode":    func() error { return os.Chmod(f, 0o604) },
		"owner":   func() error { return os.Chown(f, 7, 0) },
		"time":    func() error { return os.Chtimes(f, time.Time{}, info.ModTime().Add(1)) },
		"attribute": func() error {
			if err := unix.Setxattr(f, "user.more", []byte("x"), 0); err != unix.ENOTSUP {
				return err
			}
			return os.Chmod(f, 0o640)
		},
		"name": func() error { return os.Rename(f, f+"2") },
	} {
		before := digestOf(t, to)
		must(t, change())
		if what != "time" && what != "name" {
			times()
		}
		if digestOf(t, to) == before {
			t.Errorf("%s does not count", what)
		}
		if what == "name" {
			must(t, os.Rename(f+"2", f))
		}
	}
	whole := backup(t, from)
	if _, err := Digest(bytes.NewReader(whole[:len(whole)/2])); !errdefs.IsInvalidArgument(err) {
		t.Errorf("cut off: %v", err)
	}
}

// Whatever another node sends has a digest or is an error.
func FuzzDigest(f *testing.F) {
	f.Add([]byte("x"))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Digest(bytes.NewReader(b))
		if again, failed := Digest(bytes.NewReader(b)); again != d || (err == nil) != (failed == nil) || err == nil && len(d) != 64 {
			t.Errorf("%q, %v, then %q, %v", d, err, again, failed)
		}
	})
}
