package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/testregistry"
	"strconv"

	"golang.org/x/sys/unix"
)

// pluginDir is a plugin as its maker has it: the volume plugin of the tests as the only
// file of its root.
func pluginDir(t *testing.T, description string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"rootfs/data", "rootfs/run/docker/plugins", "rootfs/mnt/volumes", "rootfs/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(builtProgram(t, "volumeplugin"))
	if err == nil {
		err = os.WriteFile(dir+"/rootfs/plugin", b, 0o755)
	}
	config := `{
 "description": "` + description + `", "documentation": "",
 "entrypoint": ["/plugin", "-socket", "/run/docker/plugins/shelf.sock"],
 "workdir": "/", "interface": {"types": ["docker.volumedriver/1.0"], "socket": "shelf.sock"},
 "network": {"type": "host"}, "propagatedMount": "/mnt/volumes",
 "env": [{"name": "DEBUG", "description": "", "settable": ["value"], "value": "0"}, {"name": "FIXED", "settable": null, "value": "1"}],
 "mounts": [{"name": "state", "source": "` + dir + `/state", "destination": "/data", "type": "bind", "options": ["rbind"], "settable": ["source"]}],
 "linux": {"capabilities": ["CAP_SYS_ADMIN"]}
}`
	if err == nil {
		err = os.WriteFile(dir+"/config.json", []byte(config), 0o644)
	}
	if err == nil {
		err = os.Mkdir(dir+"/state", 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestManagedPlugin makes a plugin, sends it to a registry, installs it on another engine with
// the privileges it asks for, and has it keep volumes, through both clients.
func TestManagedPlugin(t *testing.T) {
	dir := pluginDir(t, "A shelf")
	reg := testregistry.New(t)
	maker := start(t, harness.Options{})
	user := start(t, harness.Options{})
	for name, path := range clients() {
		t.Run(name, func(t *testing.T) {
			vars := map[string]string{"IMG": image, "N": "mp-" + name, "W": t.TempDir(), "D": dir, "R": reg.Host() + "/ann/shelf-" + name, "S": t.TempDir()}
			t.Cleanup(func() {
				if t.Failed() {
					logs, _ := filepath.Glob(user.DataRoot + "/plugins/*/plugin.log")
					for _, l := range logs {
						b, _ := os.ReadFile(l)
						t.Logf("the plugin wrote: %s", b)
					}
				}
			})
			for _, c := range []try{
				{args: "plugin create $R $D", out: "^$R$"},
				{args: "plugin create $R $D", code: 1, err: "plugin $R:latest already exists"},
				{args: "plugin create $R-x $W", code: 1, err: "config.json: no such file or directory"},
				{args: "plugin ls --format '{{.Name}} {{.Description}} {{.Enabled}} {{.PluginReference}}'", out: "^$R:latest A shelf false $R:latest$"},
				{args: "plugin push $R", out: "The push refers to repository \\[$R\\](.|\n)*latest: digest: sha256:[0-9a-f]{64} size: [0-9]+"},
				{args: "plugin rm $R", out: "^$R$"},
				{args: "plugin ls -q", out: "^$"},
				{args: "plugin inspect $R", code: 1, err: `(?i)plugin "?$R"? not found|no such plugin`},
			} {
				c.run(t, path, maker.Host(), vars)
			}
			for _, c := range []try{
				{args: "plugin install --disable --grant-all-permissions --alias $N $R", out: "Installed plugin $R$"},
				{args: "plugin install --grant-all-permissions --alias $N $R", code: 1, err: "plugin $N:latest already exists"},
				{args: "plugin install --grant-all-permissions $R-nosuch", code: 1},
				{args: "plugin inspect -f '{{.Name}} {{.Enabled}} {{.Settings.Env}} {{.Config.PropagatedMount}}' $N", out: `^$N:latest false \[DEBUG=0 FIXED=1\] /mnt/volumes$`},
				{args: "volume create -d $N $N-v", code: 1, err: "error looking up volume plugin $N: plugin $N:latest found but disabled"},
				{args: "plugin set $N FIXED=2", code: 1, err: `"FIXED" is not settable`},
				{args: "plugin set $N NOSUCH=2", code: 1, err: `setting "NOSUCH" not found in the plugin configuration`},
				{args: "plugin set $N DEBUG=1 state.source=$S"},
				{args: "plugin inspect -f '{{.Settings.Env}} {{(index .Settings.Mounts 0).Source}}' $N", out: "DEBUG=1.* $S$"},
				{args: "plugin enable $N", out: "^$N$"},
				{args: "plugin enable $N", code: 1, err: "already enabled"},
				{args: "plugin set $N DEBUG=0", code: 1, err: "cannot set on an active plugin, disable plugin before setting"},
				{args: "plugin ls --filter enabled=true --filter capability=volumedriver --format '{{.Name}}'", out: "^$N:latest$"},
				{args: "plugin ls -q --filter capability=networkdriver", out: "^$"},
				{args: "info -f '{{.Plugins.Volume}}'", out: `^\[local $N:latest\]$`},
				{args: "volume create -d $N $N-v", out: "^$N-v$"},
				{args: "volume ls --format '{{.Driver}} {{.Name}}'", out: "^$N:latest $N-v$"},
				{args: "run --rm -v $N-v:/d $IMG sh -c 'echo kept >/d/f; grep -c \" /d \" /proc/mounts'", out: "^1$"},
				{args: "run --rm -v $N-v:/d $IMG cat /d/f", out: "^kept$"},
				{args: "plugin disable $N", code: 1, err: "plugin $N:latest is in use"},
				{args: "plugin rm $N", code: 1, err: "plugin $N:latest is in use"},
				{args: "plugin disable -f $N", out: "^$N$"},
				{args: "run --rm -v $N-v:/d $IMG true", code: 125, err: "found but disabled"},
				{args: "plugin upgrade --grant-all-permissions --skip-remote-check $N $R", out: "Upgraded plugin $N:latest to $R"},
				{args: "plugin enable $N"},
				{args: "run --rm -v $N-v:/d $IMG cat /d/f", out: "^kept$"},
				{args: "volume rm $N-v"},
				{args: "plugin rm $N", code: 1, err: "plugin $N:latest is enabled"},
				{args: "plugin rm -f $N", out: "^$N$"},
				{args: "plugin ls -q", out: "^$"},
			} {
				c.run(t, path, user.Host(), vars)
			}
			if _, err := os.Stat(vars["S"] + "/state.json"); err != nil {
				t.Errorf("the setting of its mount: %v", err)
			}
		})
	}
	noLeaks(t, maker)
	noLeaks(t, user)
}

// TestManagedPluginFaults: a plugin outlives its engine, comes back when it dies, and nothing of
// it is left when it is removed; what it needs has to be granted.
func TestManagedPluginFaults(t *testing.T) {
	dir := pluginDir(t, "A shelf")
	reg := testregistry.New(t)
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	vars := map[string]string{"IMG": image, "W": t.TempDir(), "D": dir, "R": reg.Host() + "/ann/shelf"}
	escale := clients()["escale"]
	for _, c := range []try{
		{args: "plugin create $R $D", out: "^$R$"},
		{args: "plugin push $R"},
		{args: "plugin rm $R"},
	} {
		c.run(t, escale, e.Host(), vars)
	}
	api := e.API()
	defer func() { api.Close() }()
	remote := "remote=" + vars["R"] + "&name=shelf"
	if err := api.Do(ctx, "POST", "/plugins/pull?"+remote, []any{}, nil); harness.Status(err) != 400 || !strings.Contains(err.Error(), "incorrect privileges") {
		t.Errorf("nothing granted: %v", err)
	}
	var needs []struct {
		Name  string
		Value []string
	}
	do(t, ctx, api, "GET", "/plugins/privileges?"+remote, nil, &needs)
	if len(needs) != 3 || needs[0].Name != "network" || needs[1].Name != "mount" || needs[2].Name != "capabilities" {
		t.Errorf("it needs %+v", needs)
	}
	if status, b, err := api.Raw(ctx, "POST", "/plugins/pull?"+remote, needs); err != nil || status != 200 || strings.Contains(string(b), "error") {
		t.Fatalf("pull: %d %s, %v", status, b, err)
	}
	do(t, ctx, api, "POST", "/plugins/shelf/enable?timeout=10", nil, nil)
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "date >/d/f; sleep 1000"}, "HostConfig": map[string]any{"VolumeDriver": "shelf", "Binds": []string{"vol:/d"}}}
	live := create(t, ctx, api, "live", spec)
	do(t, ctx, api, "POST", "/containers/"+live+"/start", nil, nil)
	pids := func() (out []string) {
		procs, _ := filepath.Glob("/proc/[0-9]*/root/plugin")
		for _, p := range procs {
			pid := strings.Split(p, "/")[2]
			if b, err := os.ReadFile("/proc/" + pid + "/cgroup"); err == nil && strings.Contains(string(b), e.Instance) {
				out = append(out, pid)
			}
		}
		return out
	}
	before := pids()
	if len(before) != 1 {
		t.Fatalf("processes of the plugin: %v", before)
	}
	// The engine is killed: the plugin lives, and does what it is asked by the next one.
	api.Close()
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	api = e.API()
	if after := pids(); len(after) != 1 || after[0] != before[0] {
		t.Errorf("processes of the plugin: %v, were %v", after, before)
	}
	if c, err := api.Inspect(ctx, live); err != nil || !c.State.Running {
		t.Errorf("what ran: %+v, %v", c.State, err)
	}
	do(t, ctx, api, "DELETE", "/containers/"+live+"?force=1", nil, nil)
	if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"test", "-e", "/d/f"}, "HostConfig": map[string]any{"Binds": []string{"vol:/d"}}}); code != 0 || err != nil {
		t.Errorf("its volume: %d, %v", code, err)
	}
	// The plugin is killed: it is started again.
	killPids(t, pids())
	for until := time.Now().Add(harness.Patience(20 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		var v struct{ Status map[string]any }
		if p := pids(); len(p) == 1 && p[0] != before[0] && api.Do(ctx, "GET", "/volumes/vol", nil, &v) == nil && v.Status != nil {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the plugin does not come back")
		}
	}
	// Both are killed, and the engine finds a plugin that is dead.
	api.Close()
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	killPids(t, pids())
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	api = e.API()
	do(t, ctx, api, "DELETE", "/volumes/vol", nil, nil)
	do(t, ctx, api, "DELETE", "/plugins/shelf?force=1", nil, nil)
	if left := pids(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	api.Close()
	noLeaks(t, e)
}

func killPids(t *testing.T, pids []string) {
	t.Helper()
	for _, p := range pids {
		pid, err := strconv.Atoi(p)
		if err == nil {
			err = unix.Kill(pid, unix.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
