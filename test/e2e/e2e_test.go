// Package e2e drives the built programs as a user does: scripts through the
// stock docker client and through escale, the Go client, and bytes that no
// client would send. It needs root and `make build`; without the stock client
// its half is skipped. $ESCALE_TEST_HOST names another endpoint to run the
// scripts against, which shows that they expect what Docker does.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/rogpeppe/go-internal/testscript"
)

// image is what the scripts run: busybox, users, a page.
const image = "escale-e2e:bb"

// foreign is the endpoint that is not ours, "" usually.
var foreign = os.Getenv("ESCALE_TEST_HOST")

var shared struct {
	sync.Once
	engine *harness.Engine
	err    error
}

func TestMain(m *testing.M) {
	flag.Parse()
	if harness.Needs() == "" && foreign == "" {
		if err := harness.Sweep(); err != nil {
			fmt.Fprintln(os.Stderr, "left by an earlier run:", err)
		}
	}
	code := m.Run()
	removePrograms()
	if foreign != "" {
		api := harness.NewAPI(foreign)
		if err := api.Do(context.Background(), "DELETE", "/images/"+image+"?force=1", nil, nil); err != nil && harness.Status(err) != 404 {
			fmt.Fprintln(os.Stderr, "clean-up:", err)
		}
		api.Close()
	}
	if e := shared.engine; e != nil {
		if err := e.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "clean-up:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// needs skips without root or programs.
func needs(t *testing.T) {
	t.Helper()
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
}

// start runs an engine for one test, with the image in it, marked as the baseline.
func start(t *testing.T, o harness.Options) *harness.Engine {
	t.Helper()
	needs(t)
	e, err := harness.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the engine said last:\n%s", e.Tail(3000))
		}
		if err := e.Close(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	if err := begin(e); err != nil {
		t.Fatal(err)
	}
	return e
}

// begin starts an engine, imports the image, runs one container and marks.
func begin(e *harness.Engine) error {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(30*time.Second))
	defer cancel()
	if err := e.Start(ctx); err != nil {
		return err
	}
	api := e.API()
	defer api.Close()
	if err := importImage(ctx, api); err != nil {
		return err
	}
	if _, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"true"}}); err != nil {
		return err
	}
	time.Sleep(harness.Patience(300 * time.Millisecond))
	return e.Mark()
}

func importImage(ctx context.Context, api *harness.API) error {
	tar, err := harness.BusyboxTar()
	if err != nil {
		return err
	}
	repo, tag, _ := strings.Cut(image, ":")
	return api.Import(ctx, repo, tag, strings.NewReader(string(tar)))
}

// runTo runs a container to its end, removes it and returns its exit code.
func runTo(ctx context.Context, api *harness.API, spec map[string]any) (int, error) {
	var made struct{ ID string }
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		return 0, err
	}
	defer api.Do(context.WithoutCancel(ctx), "DELETE", "/containers/"+made.ID+"?force=1", nil, nil)
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		return 0, err
	}
	var code struct{ StatusCode int }
	err := api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &code)
	return code.StatusCode, err
}

// noLeaks fails when the engine holds what it did not at its mark.
func noLeaks(t *testing.T, e *harness.Engine) {
	t.Helper()
	r, err := e.Leaks(context.Background())
	if err != nil {
		t.Error(err)
	}
	if !r.Empty() {
		t.Errorf("left behind:\n%s", r)
		t.Logf("what the engine complained of:\n%s", complaints(e))
	}
}

// complaints are the lines of an engine's log that warn or tell of errors.
func complaints(e *harness.Engine) string {
	b, err := os.ReadFile(e.LogFile)
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// sharedHost is the engine that the scripts share, started at first use.
func sharedHost(t *testing.T) string {
	t.Helper()
	if foreign != "" {
		api := harness.NewAPI(foreign)
		defer api.Close()
		shared.Do(func() { shared.err = importImage(context.Background(), api) })
		if shared.err != nil {
			t.Fatal(shared.err)
		}
		return foreign
	}
	needs(t)
	shared.Do(func() {
		if shared.engine, shared.err = harness.New(harness.Options{}); shared.err == nil {
			shared.err = begin(shared.engine)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.engine.Host()
}

// clients are the command lines that run the scripts.
func clients() map[string]string {
	m := map[string]string{"escale": filepath.Join(harness.BinDir(), "escale")}
	if p, err := exec.LookPath("docker"); err == nil {
		m["docker"] = p
	}
	return m
}

// TestScripts runs testdata/script against one engine, with either client
// under the name docker.
func TestScripts(t *testing.T) {
	host := sharedHost(t)
	for _, name := range []string{"docker", "escale"} {
		t.Run(name, func(t *testing.T) {
			path := clients()[name]
			if _, err := os.Stat(path); err != nil {
				t.Skipf("no client %s: its half of the scripts is not run", name)
			}
			testscript.Run(t, testscript.Params{
				Dir: "testdata/script",
				Setup: func(env *testscript.Env) error {
					return setup(env, name, path, host)
				},
				Cmds:      commands(),
				Condition: condition(name),
			})
		})
	}
	t.Run("nothing left", func(t *testing.T) {
		if shared.engine == nil {
			t.Skip("another's engine: what it leaves is not ours to say")
		}
		noLeaks(t, shared.engine)
	})
}

// TestEngine runs testdata/engine: scripts that start, kill and stop an engine
// of their own, through the stock client, or escale where there is none.
func TestEngine(t *testing.T) {
	if foreign != "" {
		t.Skip("another's engine is not ours to kill")
	}
	needs(t)
	name := "docker"
	if clients()[name] == "" {
		name = "escale"
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/engine",
		Setup: func(env *testscript.Env) error {
			e, err := harness.New(harness.Options{})
			if err != nil {
				return err
			}
			env.Values["engine"] = e
			tt := env.T().(testing.TB)
			env.Defer(func() {
				if tt.Failed() {
					tt.Logf("the engine said last:\n%s", e.Tail(3000))
				}
				if err := e.Close(); err != nil {
					tt.Errorf("clean-up: %v", err)
				}
			})
			env.Setenv("ROOT", e.Root)
			env.Setenv("DATA", e.DataRoot)
			env.Setenv("BRIDGE", e.Bridge)
			env.Setenv("INSTANCE", e.Instance)
			env.Setenv("CONFIG", filepath.Join(e.Root, "daemon.json"))
			env.Setenv("ESCALED", filepath.Join(harness.BinDir(), "escaled"))
			env.Setenv("PROGRAM", filepath.Join(harness.BinDir(), harness.RuntimeProgram()))
			return setup(env, name, clients()[name], e.Host())
		},
		Cmds:      commands(),
		Condition: condition(name),
	})
}

// condition knows [docker] and [escale], the client at work, [foreign], [slow], and
// [cgroup1] and [cgroup2]: limits are set by that version of cgroups, and
// [apparmor]: there is one, and its parser. [chosen]: engines are started with
// the OCI runtime $ESCALE_RUNTIME, by a flag that wins over what a script would have.
func condition(client string) func(string) (bool, error) {
	return func(cond string) (bool, error) {
		switch cond {
		case "docker", "escale":
			return cond == client, nil
		case "slow":
			return harness.Slow() > 1, nil
		case "chosen":
			return len(harness.RuntimeArgs()) > 0, nil
		case "foreign":
			return foreign != "", nil
		case "cgroup1":
			_, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes")
			return err == nil, nil
		case "cgroup2":
			_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
			return err == nil, nil
		case "apparmor":
			b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
			if err != nil || b[0] != 'Y' {
				return false, nil
			}
			_, err = exec.LookPath("apparmor_parser")
			return err == nil, nil
		}
		return false, fmt.Errorf("unknown condition %q", cond)
	}
}

// setup gives a script its client, its names and its clean-up.
func setup(env *testscript.Env, client, path, host string) error {
	bin := filepath.Join(env.WorkDir, ".bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(path, filepath.Join(bin, "docker")); err != nil {
		return err
	}
	if err := slowSleep(bin); err != nil {
		return err
	}
	// N begins every name a script gives; it is unique among the scripts that
	// run at the same time on one engine.
	n := strings.NewReplacer("_", "-", " ", "-").Replace("e2e-" + client + "-" + filepath.Base(env.Getenv("WORK")))
	n = strings.ToLower(n)
	for k, v := range map[string]string{
		"PATH": bin + ":" + os.Getenv("PATH"), "DOCKER_HOST": host, "HOST": host, "DOCKER_CONFIG": filepath.Join(env.WorkDir, ".docker"),
		"DOCKER_CLI_HINTS": "false", "HOME": env.WorkDir, "N": n, "IMG": image, "TERM": "xterm",
	} {
		env.Setenv(k, v)
	}
	env.Values["host"] = host
	if host == foreign || shared.engine != nil && host == shared.engine.Host() {
		env.Defer(func() { removeNamed(host, n) })
	}
	return nil
}

// slowSleep puts a sleep and a timeout into dir that take longer where the machine
// is slow: what a script waits for takes longer, too.
func slowSleep(dir string) error {
	if harness.Slow() == 1 {
		return nil
	}
	for _, name := range []string{"sleep", "timeout"} {
		script := fmt.Sprintf(`#!/bin/sh
case $1 in -s) signal="-s $2"; shift 2 ;; esac
seconds=$(awk "BEGIN { print $1 * %g }"); shift
exec /usr/bin/%s $signal $seconds "$@"
`, harness.Slow(), name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeNamed removes what a script that failed left: containers, images, volumes
// and networks that bear its name or its label.
func removeNamed(host, n string) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(30*time.Second))
	defer cancel()
	api := harness.NewAPI(host)
	defer api.Close()
	var list []struct {
		ID     string
		Names  []string
		Labels map[string]string
	}
	if api.Do(ctx, "GET", "/containers/json?all=1", nil, &list) != nil {
		return
	}
	for _, c := range list {
		if c.Labels["e2e"] == n || len(c.Names) > 0 && strings.HasPrefix(c.Names[0], "/"+n) {
			_ = api.Do(ctx, "DELETE", "/containers/"+c.ID+"?force=1&v=1", nil, nil)
		}
	}
	var images []struct {
		ID       string
		RepoTags []string
	}
	if api.Do(ctx, "GET", "/images/json", nil, &images) != nil {
		return
	}
	for _, img := range images {
		for _, tag := range img.RepoTags {
			if strings.HasPrefix(tag, n) {
				_ = api.Do(ctx, "DELETE", "/images/"+tag+"?force=1", nil, nil)
			}
		}
	}
	var volumes struct {
		Volumes []struct {
			Name   string
			Labels map[string]string
		}
	}
	if api.Do(ctx, "GET", "/volumes", nil, &volumes) != nil {
		return
	}
	for _, v := range volumes.Volumes {
		if v.Labels["e2e"] == n || strings.HasPrefix(v.Name, n) {
			_ = api.Do(ctx, "DELETE", "/volumes/"+v.Name+"?force=1", nil, nil)
		}
	}
	var networks []struct{ Name, ID string }
	if api.Do(ctx, "GET", "/networks", nil, &networks) != nil {
		return
	}
	for _, v := range networks {
		if strings.HasPrefix(v.Name, n) {
			_ = api.Do(ctx, "DELETE", "/networks/"+v.ID, nil, nil)
		}
	}
}
