package daemon

import (
	"slices"
	"testing"

	"escale.dev/escale/internal/runtime"
)

func TestChangesOfTheConfiguration(t *testing.T) {
	base := func(file string, args ...string) *Config {
		c, err := parse(t, file, args...)
		if err != nil {
			t.Fatal(err)
		}
		c.ConfigFile = ""
		return c
	}
	for _, c := range []struct {
		file        string
		can, cannot []string
	}{
		{`{}`, nil, nil},
		{`{"debug": true}`, []string{"debug", "log-level"}, nil},
		{`{"labels": ["a=b"], "restart-unhealthy": "5m", "shutdown-timeout": 3}`, []string{"labels", "restart-unhealthy", "shutdown-timeout"}, nil},
		{`{"runtimes": {"x": {"path": "/x", "runtimeArgs": ["--y"]}}, "default-runtime": "x", "live-restore": false}`, []string{"default-runtime", "runtimes", "stop-containers"}, nil},
		{`{"labels": ["a=b"], "bip": "10.1.2.1/24", "mtu": 1400, "log-opts": {"max-size": "1m"}, "data-root": "/x"}`, []string{"labels"}, []string{"bip", "data-root", "log-opts", "mtu"}},
		{`{"registry-mirrors": ["http://m"], "insecure-registries": ["r:1"], "max-concurrent-downloads": 7, "proxies": {"no-proxy": "x"}}`,
			[]string{"insecure-registries", "max-concurrent-downloads", "no-proxy", "registry-mirrors"}, nil},
		{`{"no-new-privileges": true}`, nil, []string{"no-new-privileges"}},
		{`{"default-address-pools": [{"base": "10.9.0.0/16", "size": 24}], "dns-opts": ["ndots:2"], "cgroup-parent": "/x"}`, nil, []string{"cgroup-parent", "default-address-pools", "dns-opts"}},
	} {
		can, cannot := changes(base(`{}`), base(c.file))
		if !slices.Equal(can, c.can) || !slices.Equal(cannot, c.cannot) {
			t.Errorf("%s: can %v, cannot %v; want %v and %v", c.file, can, cannot, c.can, c.cannot)
		}
	}
}

func TestReloadTakesRuntimesAway(t *testing.T) {
	runc, both := map[string]runtime.Binary{"runc": {}}, map[string]runtime.Binary{"runc": {}, "x": {}}
	for _, c := range []struct {
		old, next map[string]runtime.Binary
		used      string
		want      bool
	}{
		{both, runc, "x", true},
		{both, both, "x", false},
		{runc, both, "x", false},
		{runc, runc, "x", false}, // an earlier engine knew it
		{both, runc, "runc", false},
	} {
		if got := takenAway(c.old, c.next, c.used); got != c.want {
			t.Errorf("%v to %v, %s in use: %v", c.old, c.next, c.used, got)
		}
	}
}
