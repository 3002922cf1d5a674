package native

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Options of mounts, new ones and binds with something mounted below: the kernel shows
// the same flags and propagation as with runc.
func TestMountOptionsAsRunc(t *testing.T) {
	runc, err := filepath.Abs("../../../bin/runc")
	if err != nil || !exists(runc) {
		t.Skip("needs bin/runc: make build makes it")
	}
	l := newLab(t, "cat /proc/self/mountinfo")
	source := filepath.Join(l.bundle, "source")
	// On a mount of its own: runc makes the one private that the bundle lies on.
	for _, m := range []struct {
		at    string
		flags uintptr
	}{{source, 0}, {filepath.Join(source, "below"), unix.MS_NODEV}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Mount("tmpfs", m.at, "tmpfs", m.flags, ""), unix.Mount("", m.at, "", unix.MS_PRIVATE, "")); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // before the lab looks for mounts that are left
		if err := unix.Unmount(source, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n := 0
	mount := func(kind, from string, options ...string) {
		n++
		if err := os.MkdirAll(filepath.Join(l.bundle, fmt.Sprintf("root/at/%02d", n)), 0o755); err != nil {
			t.Fatal(err)
		}
		l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: fmt.Sprintf("/at/%02d", n), Type: kind, Source: from, Options: options})
	}
	for _, list := range []string{"", "ro", "rw", "nosuid", "nodev", "noexec", "nosymfollow", "noatime", "strictatime", "relatime", "nodiratime", "noatime,nodiratime", "ro,nosuid,nodev,noexec",
		"rro", "rnosuid", "rnodev,rnoexec", "rnoatime", "rstrictatime", "rrelatime", "rnodiratime", "rnosymfollow", "rro,rw", "rdev", "rrw", "ro,rrw", "nosuid,suid", "async", "sync", "dirsync",
		"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable", "rprivate,rshared"} {
		options := strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
		mount("bind", source, append([]string{"rbind"}, options...)...)
		mount("bind", source, append([]string{"bind"}, options...)...)
		// Attributes of all below are those of a new mount too; runc passes them over there.
		if !strings.Contains(list, "unbindable") && (!strings.HasPrefix(list, "r") || list == "ro" || list == "rw" || list == "relatime" || list == "rprivate" || list == "rslave") {
			mount("tmpfs", "tmpfs", options...)
		}
	}
	l.write()
	ours := l.must("run", l.id)
	cmd := exec.Command(runc, "--root", l.states+"-runc", "run", l.id)
	cmd.Dir = l.bundle
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("runc: %v: %s", err, said)
	}
	// What of a line is of the mount: not numbers, nor of which group of peers it is.
	read := func(text string) map[string][]string {
		list := map[string][]string{}
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) < 7 || !strings.HasPrefix(f[4], "/at/") {
				continue
			}
			options := strings.Split(f[5], ",")
			slices.Sort(options)
			about := options
			for _, tag := range f[6:slices.Index(f, "-")] {
				kind, _, _ := strings.Cut(tag, ":")
				about = append(about, kind)
			}
			access, _, _ := strings.Cut(f[len(f)-1], ",") // of the file system, whose own options follow
			list[f[4]] = append(about, access)
		}
		return list
	}
	got, want := read(ours), read(string(said))
	if len(want) < n {
		t.Fatalf("runc shows %d mounts of %d", len(want), n)
	}
	for _, at := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(got[at], want[at]) {
			i := 0
			fmt.Sscanf(at, "/at/%02d", &i)
			m := l.spec.Mounts[len(l.spec.Mounts)-n+i-1]
			t.Errorf("%s %s %v:\n here %v\n runc %v", at, m.Type, m.Options, got[at], want[at])
		}
	}
	m := specs.Mount{Destination: "/at/new", Type: "tmpfs", Source: "tmpfs", Options: []string{"rro", "rnosuid"}}
	l.spec.Mounts = append(l.spec.Mounts, m)
	if all := read(l.run()); !slices.Equal(all["/at/new"], []string{"nosuid", "relatime", "ro", "rw"}) {
		t.Errorf("a new mount with attributes of all below: %v", all["/at/new"])
	}
	for at := range got {
		if want[at] == nil {
			t.Errorf("%s: %v, with runc there is none", at, got[at])
		}
	}
}
