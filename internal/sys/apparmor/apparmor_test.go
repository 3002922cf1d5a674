package apparmor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestListed(t *testing.T) {
	list := []byte("docker-default (enforce)\n/usr/bin/man (enforce)\nname with (brackets) (complain)\n")
	for name, want := range map[string]bool{
		"docker-default": true, "/usr/bin/man": true, "name with (brackets)": true, "docker": false, "man": false, "": false, "name with": false,
	} {
		if got := listed(list, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{
		"unconfined\n": "unconfined", "docker-default (enforce)\n": "docker-default", "/usr/bin/x y (complain)\x00": "/usr/bin/x y", "": "",
	} {
		if got := label([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestProfile has the parser read what we write, for kernels and engines of all kinds.
func TestProfile(t *testing.T) {
	no := func(string) bool { return false }
	text := profile("docker-default", "/usr/sbin/escaled", no)
	for _, want := range []string{`profile "docker-default"`, `signal (receive) peer="/usr/sbin/escaled"`, "deny mount,"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "abi <") {
		t.Error("an ABI that is not there is named")
	}
	if got := signallers("unconfined"); !slices.Equal(got, []string{"unconfined", "runc", "crun"}) {
		t.Errorf("%q", got)
	}
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("the parser's own opinion needs apparmor_parser (Debian: apparmor)")
	}
	for _, text := range []string{text, profile("other name", "", exists), profile("escale", "unconfined", exists)} {
		cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, text)
		}
	}
}

// TestEnsure loads the profile into the kernel, and again after it was taken away.
func TestEnsure(t *testing.T) {
	if os.Geteuid() != 0 || !Enabled() {
		t.Skip("needs root and a kernel with AppArmor (make test-vm has one)")
	}
	d, err := New("escale-test-profile")
	if err != nil {
		t.Skip(err)
	}
	remove := func() error { return os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(d.Name), 0) }
	t.Cleanup(func() { _ = remove() })
	for range 2 {
		for range 2 {
			if err := d.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if ok, err := Loaded(d.Name); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := remove(); err != nil {
			t.Fatal(err)
		}
	}
	d.parser = filepath.Join(t.TempDir(), "none")
	if err := d.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), d.Name) {
		t.Error(err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New("x"); err != nil && !errors.Is(err, ErrNoParser) {
		t.Error(err)
	}
}
