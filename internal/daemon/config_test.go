package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func parse(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	was := booted
	booted = filepath.Join(t.TempDir(), "none") // what is expected holds where systemd runs, too
	defer func() { booted = was }()
	return ParseConfig(append([]string{"--config-file", path}, args...), func(*pflag.FlagSet) {})
}

func TestConfigDefaults(t *testing.T) {
	c, err := parse(t, "", "--instance", "two")
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		c.DataRoot: "/var/lib/two", c.ExecRoot: "/run/two", c.Hosts[0]: "unix:///run/two/escale.sock",
		c.Pidfile: "/run/two/escaled.pid", c.CgroupParent: "/escale-two", c.LogDriver: "json-file",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if c, err = parse(t, ""); err != nil || c.CgroupParent != "/docker" {
		t.Errorf("default instance: %+v, %v; want cgroups where Docker has them", c, err)
	}
}

func TestConfigFile(t *testing.T) {
	c, err := parse(t, `{
		"debug": true, "data-root": "/file", "hosts": ["unix:///a", "unix:///b"], "log-opts": {"max-size": "5m"},
		"dns": ["10.0.0.1"], "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}},
		"default-address-pools": [{"base": "10.9.0.0/16", "size": 24}], "runtimes": {"crun": {"path": "/usr/bin/crun", "runtimeArgs": ["--x"]}},
		"default-runtime": "crun", "registry-mirrors": ["http://m"], "metrics-addr": "x:1", "live-restore": true
	}`, "--data-root", "/flag")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataRoot != "/flag" {
		t.Errorf("data root %q: a flag wins over the file", c.DataRoot)
	}
	pools, _ := c.pools()
	if c.LogLevel != "debug" || len(c.Hosts) != 2 || c.LogOpts["max-size"] != "5m" || c.Ulimits["nofile"].Hard != 20 ||
		len(pools) != 1 || pools[0].Size != 24 || c.Runtimes["crun"] != "/usr/bin/crun" || c.RuntimeArgs["crun"][0] != "--x" {
		t.Errorf("file read as %+v", c)
	}
	if strings.Join(c.unused, " ") != "metrics-addr" {
		t.Errorf("unused keys: %v", c.unused)
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, c := range []struct {
		file, words string
		args        []string
	}{
		{file: `{"no-such": 1}`, words: "the following directives don't match any configuration option: no-such"},
		{file: `{"debug": `, words: "unexpected end of JSON input"},
		{file: `{"debug": "maybe"}`, words: "debug"},
		{file: `{"live-restore": "yes"}`, words: `live-restore: want true or false, not "yes"`},
		{file: `{"live-restore": false, "stop-containers": false}`, words: "live-restore and stop-containers say the same"},
		{file: `{"label": ["a=1"], "labels": ["b=2"]}`, words: "label and labels say the same"},
		{file: `{"default-ulimits": {"nofile": null}}`, words: "ulimit nofile: null is no limit"},
		{file: `{"labels": [null]}`, words: "labels: null stands where"},
		{file: `{"log-opts": {"max-file": null}}`, words: "log-opts: null stands where"},
		{args: []string{"-H", "tcp://127.0.0.1:2375"}, words: "TCP without TLS"},
		{args: []string{"-H", "npipe://x"}, words: "protocol npipe is not supported"},
		{args: []string{"-H", "/run/x"}, words: "want unix://PATH"},
		{args: []string{"--bip", "1.2.3.4"}, words: "invalid --bip"},
		{args: []string{"--instance", "No Good"}, words: "invalid instance name"},
		{args: []string{"--log-driver", "nosuch"}, words: "no log driver named 'nosuch'"},
		{args: []string{"--log-opt", "max-size=many"}, words: "max-size"},
		{args: []string{"--log-level", "loud"}, words: "invalid logging level"},
		{args: []string{"--default-runtime", "crun"}, words: "--add-runtime crun=PATH"},
		{args: []string{"--default-address-pool", "base=10.0.0.0/24,size=16"}, words: "default-address-pool"},
		{args: []string{"--default-ulimit", "x=1"}, words: "ulimit"},
		{args: []string{"--label", "x"}, words: "want key=value"},
		{args: []string{"--nosuch"}, words: "unknown flag"},
		{args: []string{"extra"}, words: "accepts no arguments"},
	} {
		got, err := parse(t, c.file, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s %v: got %+v, %v; want an error with %q", c.file, c.args, got, err, c.words)
		}
	}
}

func TestConfigFileTakesNullForNothing(t *testing.T) {
	want, err := parse(t, `{}`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse(t, `{"cgroup-parent": null, "data-root": null, "live-restore": null, "debug": null, "labels": null, "default-ulimits": null}`)
	if err != nil {
		t.Fatal(err)
	}
	if can, cannot := changes(want, got); len(can) > 0 || len(cannot) > 1 || len(cannot) == 1 && cannot[0] != "config-file" {
		t.Errorf("null changes %v and %v", can, cannot)
	}
	if c, err := parse(t, `{"shutdown-timeout": 100000000}`); err != nil || c.StopTimeout != 100000000 {
		t.Errorf("a large number: %v", err)
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add(`{"default-ulimits": {"nofile": null}}`)
	f.Add(`{"hosts": ["unix:///a"]}`)
	f.Add(`{"runtimes": {"a": {"path": 1}}}`)
	f.Fuzz(func(t *testing.T, file string) {
		c, err := parse(t, file)
		if err == nil && (c.DataRoot == "" || len(c.Hosts) == 0) {
			t.Fatalf("%q accepted as %+v", file, c)
		}
	})
}
