package native

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Parameters longer than fsconfig(2) takes: the mount is what it would be with shorter
// ones, with its propagation, and nothing else is left of how it was made.
func TestLongParameters(t *testing.T) {
	l := newLab(t, "busybox grep ' /over\\| /long' /proc/self/mountinfo; cat /over/low; ls /long; touch /long/x 2>/dev/null || echo read-only")
	long := filepath.Join(l.bundle, strings.Repeat("l", 200), strings.Repeat("m", 200))
	if err := os.MkdirAll(filepath.Join(long, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(long, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(long, "a/low"), []byte("lower\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	source := strings.Repeat("s", 300)
	l.spec.Mounts = append(l.spec.Mounts,
		specs.Mount{Destination: "/over", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + long + "/a:" + long + "/b", "nosuid", "noexec", "noatime", "rshared"}},
		specs.Mount{Destination: "/long", Type: "tmpfs", Source: source, Options: []string{"size=64k", "ro", "nodev"}},
		specs.Mount{Destination: "/long/in", Type: "tmpfs", Source: "tmpfs"})
	got := strings.Split(l.run(), "\n")
	if len(got) != 6 || got[3] != "lower" || got[4] != "in" || got[5] != "read-only" {
		t.Fatalf("got %q", got)
	}
	for i, words := range [][]string{{" /over ro,nosuid,noexec,noatime ", "shared:", "lowerdir="}, {" /long ro,nodev,relatime ", source, "size=64k"}, {" /long/in rw"}} {
		for _, w := range words {
			// An overlay without an upper directory is read-only as a whole; its mount need not be.
			if !strings.Contains(got[i], w) && !strings.Contains(got[i], strings.Replace(w, " ro,", " rw,", 1)) {
				t.Errorf("%s: without %s", got[i], w)
			}
		}
	}
	l.spec.Mounts[len(l.spec.Mounts)-3].Options[0] += strings.Repeat(":"+long+"/a", 12)
	l.write()
	if out, err := l.call("run", l.id); err == nil || !strings.Contains(out, "longer than a page") {
		t.Errorf("longer than a page: %v: %s", err, out)
	}
	l.nothingLeft()
}

// A tmpfs that begins with what lay there has the mode and owners that it was told.
func TestCopyUpTold(t *testing.T) {
	l := newLab(t, "for d in /etc /tmp /sys; do stat -c '%a %u %g' $d $d/*; done")
	root := filepath.Join(l.bundle, "root")
	for _, d := range []string{"etc", "tmp", "sys"} {
		if err := os.WriteFile(filepath.Join(root, d, "f"), nil, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(root, d), 7, 8); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, d), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	tmpfs := func(to string, more ...string) {
		l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: to, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"tmpcopyup"}, more...)})
	}
	may := []string{"CAP_DAC_OVERRIDE"}
	l.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: may, Effective: may, Permitted: may}
	tmpfs("/etc")
	tmpfs("/tmp", "mode=711")
	tmpfs("/sys", "uid=5", "mode=700")
	if got := l.run(); got != "750 7 8\n640 0 0\n711 7 8\n640 0 0\n700 5 8\n640 0 0" {
		t.Errorf("got\n%s", got)
	}
}
