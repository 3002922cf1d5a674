package native

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Whatever starts a process, it has the limit of open files that the runtime's caller has,
// not the one that Go sets itself.
func TestOpenFilesAsCallers(t *testing.T) {
	for _, users := range []bool{false, true} {
		l := newLab(t, "ulimit -Sn; exec sleep 1000")
		if users {
			withUsers(l)
		}
		l.write()
		limited := func(args ...string) string {
			script := []string{"-c", `ulimit -Sn 321 && exec "$0" "$@"`, "/proc/" + strconv.Itoa(os.Getpid()) + "/exe", "--root", l.states}
			out, err := os.Create(filepath.Join(l.bundle, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd := exec.Command("sh", append(script, args...)...)
			cmd.Env, cmd.Dir = append(os.Environ(), asRuntime+"=1"), l.bundle
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Run(); err != nil {
				t.Errorf("%v: %v", args, err)
			}
			return out.Name()
		}
		said := func(name string) string {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(b))
		}
		first := limited("run", "-d", l.id)
		for end := time.Now().Add(5 * time.Second); said(first) == "" && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if got := said(first); got != "321" {
			t.Errorf("users %v: the container's process: %s", users, got)
		}
		if got := said(limited("exec", l.id, "sh", "-c", "ulimit -Sn")); got != "321" {
			t.Errorf("users %v: an exec: %s", users, got)
		}
		l.must("delete", "--force", l.id)
	}
}
