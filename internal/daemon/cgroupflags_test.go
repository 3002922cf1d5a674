package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Who makes cgroups is chosen as dockerd chooses, and told to the OCI runtimes.
func TestCgroupDriver(t *testing.T) {
	oldBooted, oldPure := booted, pure
	defer func() { booted, pure = oldBooted, oldPure }()
	there, none := t.TempDir(), filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		name             string
		file             string
		args             []string
		systemd, version bool // it runs; cgroups are of version 2 alone
		driver, parent   string
		words            string // of a refusal
	}{
		{name: "nothing said, version 1", systemd: true, driver: "cgroupfs", parent: "/escale-two"},
		{name: "nothing said, no systemd", version: true, driver: "cgroupfs", parent: "/escale-two"},
		{name: "nothing said", systemd: true, version: true, driver: "systemd"},
		{name: "asked for", args: []string{"--exec-opt", "native.cgroupdriver=systemd"}, systemd: true, driver: "systemd"},
		{name: "by the file", file: `{"exec-opts": ["NATIVE.CgroupDriver=systemd"], "cgroup-parent": "a-b.slice"}`, systemd: true, driver: "systemd", parent: "a-b.slice"},
		{name: "refused by the user", args: []string{"--exec-opt", "native.cgroupdriver=cgroupfs"}, systemd: true, version: true, driver: "cgroupfs", parent: "/escale-two"},
		{name: "other options", args: []string{"--exec-opt", "isolation=hyperv"}, driver: "cgroupfs", parent: "/escale-two"},
		{name: "no such", args: []string{"--exec-opt", "native.cgroupdriver=x"}, words: "native.cgroupdriver option x not supported"},
		{name: "none", args: []string{"--exec-opt", "native.cgroupdriver=none"}, words: "native.cgroupdriver option none is internally used and cannot be specified manually"},
		{name: "not running", args: []string{"--exec-opt", "native.cgroupdriver=systemd"}, words: "systemd is not running on this host"},
		{name: "no slice", args: []string{"--exec-opt", "native.cgroupdriver=systemd", "--cgroup-parent", "/x"}, systemd: true, words: `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`},
	} {
		booted, pure = none, none
		if c.systemd {
			booted = there
		}
		if c.version {
			pure = there
		}
		file := filepath.Join(t.TempDir(), "daemon.json")
		if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ParseConfig(append([]string{"--config-file", file, "--instance", "two", "--add-runtime", "mine=/bin/mine", "--default-runtime", "mine"}, c.args...), func(*pflag.FlagSet) {})
		if c.words != "" {
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || got.driver != c.driver || got.CgroupParent != c.parent {
			t.Errorf("%s: %+v, %v", c.name, got, err)
			continue
		}
		runtimes, err := got.runtimes()
		if err != nil {
			t.Fatal(err)
		}
		if with := slices.Contains(runtimes["mine"].Args, "--systemd-cgroup"); with != (c.driver == "systemd") || (got.scopes() == "escale-two") != with {
			t.Errorf("%s: runtime %+v, scopes %q", c.name, runtimes["mine"], got.scopes())
		}
	}
}
