package engine

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/plugin/managed"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/registry"
)

// fakePlugins has two plugins, and notes what it is asked.
type fakePlugins struct {
	asked string
	fail  error // of a pull, after its first step
}

func (f *fakePlugins) note(what string, a ...any) error {
	f.asked = fmt.Sprintf(what, a...)
	return nil
}

func (f *fakePlugins) List() []apiplugin.Plugin {
	var on, off apiplugin.Plugin
	on.Name, on.Enabled = "on:latest", true
	on.Config.Interface.Types = []apiplugin.CapabilityID{{Prefix: "docker", Capability: "volumedriver", Version: "1.0"}}
	off.Name = "off:latest"
	off.Config.Interface.Types = []apiplugin.CapabilityID{{Prefix: "docker", Capability: "networkdriver", Version: "1.0"}}
	return []apiplugin.Plugin{off, on}
}

func (f *fakePlugins) Inspect(ref string) (apiplugin.Plugin, error) {
	if ref != "on" && ref != "ann/on" {
		return apiplugin.Plugin{}, noSuch("plugin")
	}
	return f.List()[1], nil
}

func (f *fakePlugins) Privileges(_ context.Context, t managed.Transfer) (apiplugin.Privileges, error) {
	return apiplugin.Privileges{{Name: "network", Value: []string{"host"}}}, f.note("privileges %s", t.Remote)
}

func (f *fakePlugins) Pull(_ context.Context, name string, t managed.Transfer) error {
	f.note("pull %s as %s with %v for %s", t.Remote, name, t.Privileges, t.Auth.Username)
	t.Told("abc", "Downloading", 1, 2)
	return f.fail
}

func (f *fakePlugins) Upgrade(_ context.Context, ref string, t managed.Transfer) error {
	return f.note("upgrade %s to %s", ref, t.Remote)
}
func (f *fakePlugins) Push(_ context.Context, ref string, _ registry.AuthConfig, told managed.Progress) error {
	told("", "The push refers to repository [x]", 0, 0)
	return f.note("push %s", ref)
}
func (f *fakePlugins) Create(_ context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	f.note("create %s of %q", name, b)
	return err
}
func (f *fakePlugins) Enable(_ context.Context, ref string, d time.Duration) error {
	return f.note("enable %s %s", ref, d)
}
func (f *fakePlugins) Disable(_ context.Context, ref string, force bool) error {
	return f.note("disable %s %v", ref, force)
}
func (f *fakePlugins) Set(ref string, args []string) error { return f.note("set %s %q", ref, args) }
func (f *fakePlugins) Remove(_ context.Context, ref string, force bool) error {
	return f.note("remove %s %v", ref, force)
}

func TestPluginRoutes(t *testing.T) {
	plugins := new(fakePlugins)
	r := newRig(t, func(r *rig) { r.server.cfg.Plugins = plugins })
	const granted = `[{"Name":"network","Value":["host"]}]`
	for _, c := range []struct {
		method, path, body string
		status             int
		want, asked        string
	}{
		{"GET", "/plugins", "", 200, `"Name":"off:latest"`, ""},
		{"GET", `/plugins?filters={"enabled":["true"]}`, "", 200, `"Name":"on:latest"`, ""},
		{"GET", `/plugins?filters={"enabled":["false"],"capability":["volumedriver"]}`, "", 200, "[]", ""},
		{"GET", `/plugins?filters={"nosuch":["x"]}`, "", 400, "invalid filter", ""},
		{"GET", "/plugins/on/json", "", 200, `"Types":["docker.volumedriver/1.0"]`, ""},
		{"GET", "/v1.40/plugins/ann/on/json", "", 200, `"Name":"on:latest"`, ""},
		{"GET", "/plugins/nosuch/json", "", 404, "No such plugin", ""},
		{"GET", "/plugins/privileges?remote=ann/x", "", 200, `"Value":["host"]`, "privileges docker.io/ann/x:latest"},
		{"GET", "/plugins/privileges?remote=", "", 400, "", ""},
		{"POST", "/plugins/pull?remote=h:1/ann/x:2", granted, 200, `"status":"Downloading"`, "pull h:1/ann/x:2 as h:1/ann/x:2 with [{network  [host]}] for "},
		{"POST", "/plugins/pull?remote=h:1/ann/x&name=here", granted, 200, "", "pull h:1/ann/x:latest as here:latest with [{network  [host]}] for "},
		{"POST", "/plugins/pull?remote=ann/x&name=a@sha256:" + strings.Repeat("0", 64), granted, 400, "cannot use digest in plugin tag", ""},
		{"POST", "/plugins/ann/on/upgrade?remote=ann/x:3", "[]", 200, "", "upgrade ann/on:latest to docker.io/ann/x:3"},
		{"POST", "/plugins/ann/on/push", "", 200, "The push refers to", "push ann/on"},
		{"POST", "/plugins/create?name=ann/x", "a tar", 204, "", `create ann/x of "a tar"`},
		{"POST", "/plugins/on/enable?timeout=5", "", 200, "", "enable on 5s"},
		{"POST", "/plugins/on/enable", "", 200, "", "enable on 0s"},
		{"POST", "/plugins/on/enable?timeout=x", "", 400, "invalid timeout", ""},
		{"POST", "/plugins/on/disable?force=1", "", 200, "", "disable on true"},
		{"POST", "/plugins/on/set", `["A=1"]`, 204, "", `set on ["A=1"]`},
		{"DELETE", "/plugins/ann/on?force=true", "", 200, "", "remove ann/on true"},
	} {
		plugins.asked = ""
		status, h, body := r.do(c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.want) || plugins.asked != c.asked {
			t.Errorf("%s %s: %d %s, asked %q", c.method, c.path, status, body, plugins.asked)
		}
		if strings.Contains(c.path, "name=here") && h.Get("Docker-Plugin-Name") != "here:latest" {
			t.Errorf("%s: %v", c.path, h)
		}
	}
	plugins.fail = fmt.Errorf("the disk is full")
	if status, _, body := r.do("POST", "/plugins/pull?remote=x", granted); status != 200 || !strings.Contains(body, `"error":"the disk is full"`) {
		t.Errorf("failed half-way: %d %s", status, body)
	}
}
