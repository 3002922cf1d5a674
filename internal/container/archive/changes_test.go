package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestChanges(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts are devices")
	}
	upper, mid, low := t.TempDir(), t.TempDir(), t.TempDir()
	at := time.Unix(1e9, 0)
	put := func(root, name, content string) {
		t.Helper()
		name = filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, []byte(content), 0o644))
		must(t, os.Chtimes(name, at, at))
	}
	gone := func(root, name string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755))
		must(t, unix.Mknod(filepath.Join(root, name), unix.S_IFCHR, 0))
	}
	opaque := func(root, name string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(root, name), 0o755))
		must(t, unix.Setxattr(filepath.Join(root, name), "trusted.overlay.opaque", []byte("y"), 0))
	}
	put(low, "etc/passwd", "a")
	put(low, "etc/same", "a")
	put(low, "etc-x/f", "a")
	put(low, "old/deep/f", "a")
	put(low, "replaced/kept", "a")
	put(low, "replaced/lost", "a")
	put(low, "buried/f", "a")
	put(low, "rm", "a")
	put(low, "rm-in-image", "a")
	put(low, "dir-to-file/x", "a")
	put(low, "file-to-dir", "a")
	gone(mid, "rm-in-image")
	opaque(mid, "buried")
	put(mid, "buried/g", "a")

	put(upper, "etc/passwd", "ab")   // changed
	put(upper, "etc/same", "a")      // copied up, nothing changed
	put(upper, "etc-x/new", "n")     // added beside
	put(upper, "old/deep/f", "long") // its parents are told
	put(upper, "new/a/b", "n")
	opaque(upper, "replaced")
	put(upper, "replaced/kept", "changed")
	put(upper, "replaced/new", "n")
	put(upper, "buried/f", "n") // it was not there any more
	gone(upper, "buried/g")
	gone(upper, "rm")
	put(upper, "rm-in-image", "n")
	gone(upper, "nothing-was-here")
	put(upper, "dir-to-file", "n")
	put(upper, "file-to-dir/x", "n")
	must(t, os.Chmod(filepath.Join(upper, "old/deep/f"), 0o600))
	put(upper, "run/mounted", "") // the engine's own

	got, err := Changes(t.Context(), upper, []string{mid, low}, func(name string) bool { return name == "/run/mounted" || name == "/run" })
	must(t, err)
	var lines []string
	for _, c := range got {
		lines = append(lines, fmt.Sprint(c.Kind, " ", c.Path))
	}
	want := `C /buried
A /buried/f
D /buried/g
C /dir-to-file
C /etc
C /etc/passwd
C /etc-x
A /etc-x/new
C /file-to-dir
A /file-to-dir/x
A /new
A /new/a
A /new/a/b
C /old
C /old/deep
C /old/deep/f
C /replaced
C /replaced/kept
D /replaced/lost
A /replaced/new
D /rm
A /rm-in-image`
	if s := strings.Join(lines, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
}
