package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/test/internal/harness"
)

// nested is what goes on in the container: an engine, a container of its own, its
// changes made an image; then the engine is killed, and the next one has it all.
const nested = `
up() { escaled >>/log 2>&1 & for i in $(seq 100); do escale version >/dev/null 2>&1 && return; sleep 0.1; done; cat /log; exit 1; }
up
escale import /busybox.tar inner >/dev/null
escale run --name made inner sh -c 'echo new > /added; rm /var/www/index.html'
escale diff made
escale commit made made >/dev/null
escale run -d --name stays inner sleep 1000 >/dev/null
kill -9 $!
up
escale inspect -f '{{.State.Status}}' stays
escale run --rm made cat /added
escale rm -f made stays >/dev/null
grep -q 'file system of their own' /log && echo in a file
grep -e WARN -e ERROR /log
true
`

// TestEngineInEngine runs an engine in a container: with a volume for its data
// root, and without, where overlayfs cannot stack layers.
func TestEngineInEngine(t *testing.T) {
	e := start(t, harness.Options{})
	client := filepath.Join(harness.BinDir(), "escale")
	busybox, err := harness.BusyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(t.TempDir(), "busybox.tar")
	if err := os.WriteFile(tar, busybox, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-H", e.Host(), "run", "--rm", "--privileged", "-v", harness.BinDir() + ":/escale:ro", "-v", tar + ":/busybox.tar:ro", "-e", "PATH=/escale:/bin"}
	for _, kind := range []string{"volume", "overlay"} {
		t.Run(kind, func(t *testing.T) {
			args, inFile := args, ""
			if kind == "volume" {
				args = append(args, "-v", "/var/lib/escale")
			} else {
				inFile = "in a file\n"
				for _, f := range mkfs(t) {
					args = append(args, "-v", f+":"+f+":ro")
				}
			}
			out, err := exec.CommandContext(t.Context(), client, append(args, image, "sh", "-c", nested)...).CombinedOutput()
			want := "C /var\nC /var/www\nD /var/www/index.html\nA /added\nrunning\nnew\n" + inFile
			if sorted(string(out)) != sorted(want) || err != nil {
				t.Errorf("%v: it says\n%swant\n%s", err, out, want)
			}
		})
	}
	noLeaks(t, e)
}

func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// mkfs lists the files of the program that makes file systems.
func mkfs(t *testing.T) []string {
	t.Helper()
	const program = "/usr/sbin/mkfs.ext4"
	out, err := exec.CommandContext(t.Context(), "ldd", program).Output()
	if err != nil {
		t.Skip("needs mkfs.ext4, of the package e2fsprogs:", err)
	}
	return append(regexp.MustCompile(`/\S+`).FindAllString(string(out), -1), program)
}
