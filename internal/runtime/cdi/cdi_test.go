package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const vendor = `cdiVersion: "0.6.0"
kind: vendor.com/thing
containerEdits:
  env: [ALL=1]
devices:
- name: one
  containerEdits:
    env: [THING=one]
    deviceNodes:
    - {path: /dev/thing, hostPath: /dev/null, permissions: rw}
    mounts:
    - {hostPath: /etc/hostname, containerPath: /thing, options: [ro, bind]}
    hooks:
    - {hookName: createRuntime, path: /bin/true, args: ["true"]}
`

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	d, err := New([]string{dir, dir + "/nosuch"})
	if err != nil {
		t.Fatal(err)
	}
	if names, warnings := d.List(); len(names)+len(warnings) != 0 || d.Has("vendor.com/thing") {
		t.Errorf("nothing there: %q %q", names, warnings)
	}
	for name, text := range map[string]string{"vendor.yaml": vendor, "bad.yaml": "kind: [", "none.txt": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names, warnings := d.List()
	if !slices.Equal(names, []string{"vendor.com/thing=one"}) || len(warnings) != 1 || !strings.Contains(warnings[0], "bad.yaml") {
		t.Errorf("%q %q", names, warnings)
	}
	if !d.Has("vendor.com/thing") || d.Has("vendor.com/thin") {
		t.Error("kinds")
	}
	spec := &specs.Spec{Process: &specs.Process{Env: []string{"A=1"}}, Linux: &specs.Linux{}}
	if err := d.Inject(spec, []string{"vendor.com/thing=one"}); err != nil {
		t.Fatal(err)
	}
	if env := strings.Join(spec.Process.Env, " "); env != "A=1 THING=one ALL=1" && env != "A=1 ALL=1 THING=one" {
		t.Error(env)
	}
	if len(spec.Linux.Devices) != 1 || len(spec.Mounts) != 1 || spec.Hooks == nil || len(spec.Hooks.CreateRuntime) != 1 {
		t.Errorf("%+v", spec)
	}
	if err := d.Inject(spec, []string{"vendor.com/thing=two"}); err == nil || !strings.Contains(err.Error(), "unresolvable CDI devices vendor.com/thing=two") {
		t.Error(err)
	}
}

// FuzzFiles: whatever a file holds, it is a warning at worst.
func FuzzFiles(f *testing.F) {
	f.Add([]byte(vendor))
	f.Add([]byte(`{"cdiVersion":"0.5.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{}}]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, "f.yaml"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := New([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		names, _ := d.List()
		for _, n := range names {
			_ = d.Inject(&specs.Spec{}, []string{n})
		}
	})
}
