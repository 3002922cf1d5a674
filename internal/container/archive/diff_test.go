package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listing gives each entry of an archive: name, mode, owner, link, content, attributes.
func listing(t *testing.T, r io.Reader) string {
	t.Helper()
	var b strings.Builder
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		must(t, err)
		content, err := io.ReadAll(tr)
		must(t, err)
		fmt.Fprintf(&b, "%s %o %d:%d", h.Name, h.Mode, h.Uid, h.Gid)
		if h.Linkname != "" {
			fmt.Fprintf(&b, " ->%s", h.Linkname)
		}
		if len(content) > 0 {
			fmt.Fprintf(&b, " %q", content)
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, paxXattr); ok {
				fmt.Fprintf(&b, " %s=%s", name, v)
			}
		}
		b.WriteByte('\n')
	}
}

func TestDiff(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts are devices")
	}
	upper, mid, low := t.TempDir(), t.TempDir(), t.TempDir()
	at := time.Unix(1e9, 0)
	dir := func(root, name string) string {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(root, name), 0o755))
		return filepath.Join(root, name)
	}
	put := func(root, name, content string) string {
		t.Helper()
		name = filepath.Join(dir(root, filepath.Dir(name)), filepath.Base(name))
		must(t, os.WriteFile(name, []byte(content), 0o644))
		must(t, os.Chtimes(name, at, at))
		return name
	}
	gone := func(root, name string) {
		t.Helper()
		must(t, unix.Mknod(filepath.Join(dir(root, filepath.Dir(name)), filepath.Base(name)), unix.S_IFCHR, 0))
	}
	opaque := func(root, name string) {
		t.Helper()
		must(t, unix.Setxattr(dir(root, name), "trusted.overlay.opaque", []byte("y"), 0))
	}
	put(low, "etc/passwd", "a")
	put(low, "capable", "a")
	put(low, "copied/up/f", "a")
	put(low, "marked/f", "a")
	put(low, "opaque/lost", "a")
	put(low, "opaque/sub/lost", "a")
	put(low, "rm", "a")
	put(low, "rm-in-image", "a")
	gone(mid, "rm-in-image")

	put(upper, "etc/passwd", "ab")
	put(upper, "etc/hosts", "") // made for a mount
	must(t, os.Symlink("/proc/mounts", filepath.Join(upper, "etc/mtab")))
	dir(upper, "dev")
	must(t, os.Symlink("/proc/mounts/of-the-container", filepath.Join(upper, "dev/mounts")))
	must(t, unix.Setxattr(put(upper, "capable", "a"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	dir(upper, "copied/up") // for something that changed nothing
	must(t, unix.Setxattr(dir(upper, "marked"), "user.mark", []byte("m"), 0))
	must(t, unix.Setxattr(dir(upper, "marked"), "trusted.overlay.origin", []byte("o"), 0))
	opaque(upper, "opaque")
	put(upper, "opaque/sub/new", "n")
	gone(upper, "opaque/lost") // of no use in an opaque directory
	opaque(upper, "fresh")     // nothing is hidden: it is just new
	put(upper, "fresh/a", "n")
	must(t, os.Link(filepath.Join(upper, "fresh/a"), filepath.Join(upper, "fresh/b")))
	must(t, os.Symlink("../a", filepath.Join(upper, "fresh/c")))
	must(t, unix.Mkfifo(filepath.Join(upper, "fresh/d"), 0o600))
	must(t, os.Chown(filepath.Join(upper, "fresh/d"), 7, 8))
	must(t, unix.Chmod(filepath.Join(upper, "fresh/d"), 0o4711))
	gone(upper, "rm")
	gone(upper, "nothing-was-here")
	gone(upper, "rm-in-image")
	dir(upper, "dev/pts")
	for _, d := range []string{"etc", "copied", "copied/up"} { // as they were
		must(t, os.Chtimes(filepath.Join(upper, d), at, at))
		must(t, os.Chtimes(filepath.Join(low, d), at, at))
	}
	placed := func(name string) bool {
		return strings.HasPrefix(name, "/dev") || name == "/etc/hosts" || name == "/etc/mtab"
	}

	var b bytes.Buffer
	n, err := Diff(t.Context(), upper, []string{mid, low}, placed, &b)
	must(t, err)
	want := `capable 644 0:0 "a" security.capability=CAP
dev/ 755 0:0
dev/mounts 777 0:0 ->/proc/mounts/of-the-container
etc/ 755 0:0
etc/passwd 644 0:0 "ab"
fresh/ 755 0:0
fresh/a 644 0:0 "n"
fresh/b 644 0:0 ->fresh/a
fresh/c 777 0:0 ->../a
fresh/d 4711 7:8
marked/ 755 0:0 user.mark=m
opaque/ 755 0:0
opaque/.wh..wh..opq 0 0:0
opaque/sub/ 755 0:0
opaque/sub/new 644 0:0 "n"
.wh.rm 0 0:0
`
	got := strings.Replace(listing(t, &b), "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "CAP", 1)
	if got != want || n != strings.Count(want, "\n") {
		t.Errorf("%d entries:\n%s\nwant\n%s", n, got, want)
	}
}

func TestDiffOfNothing(t *testing.T) {
	upper, low := t.TempDir(), t.TempDir()
	var b bytes.Buffer
	none := func(string) bool { return false }
	if n, err := Diff(t.Context(), upper, []string{low}, none, &b); n != 0 || err != nil || listing(t, &b) != "" {
		t.Errorf("%d entries, %v", n, err)
	}
	must(t, os.Chmod(upper, 0o700)) // the root itself
	must(t, os.Chmod(low, 0o755))
	b.Reset()
	if n, err := Diff(t.Context(), upper, []string{low}, none, &b); n != 1 || err != nil || !strings.HasPrefix(listing(t, &b), "./ 700 ") {
		t.Errorf("%d entries, %v", n, err)
	}
}

// What a layer cannot say is refused, and not said wrongly.
func TestDiffRefuses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sets trusted attributes")
	}
	for name, make := range map[string]func(upper string) error{
		"redirect": func(upper string) error {
			return errors.Join(os.Mkdir(upper+"/d", 0o755), unix.Setxattr(upper+"/d", "trusted.overlay.redirect", []byte("e"), 0))
		},
		"metacopy": func(upper string) error {
			return errors.Join(os.WriteFile(upper+"/f", nil, 0o644), unix.Setxattr(upper+"/f", "trusted.overlay.metacopy", nil, 0))
		},
		"whiteout's name": func(upper string) error { return os.WriteFile(upper+"/.wh.f", nil, 0o644) },
	} {
		upper := t.TempDir()
		must(t, make(upper))
		if _, err := Diff(t.Context(), upper, []string{t.TempDir()}, func(string) bool { return false }, io.Discard); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
