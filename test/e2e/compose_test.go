package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestCompose runs testdata/compose: `escale compose` and the verbs of apps at the top,
// against an engine of its own. $N is the name of a script's app.
func TestCompose(t *testing.T) {
	if foreign != "" {
		t.Skip("another's engine keeps no apps")
	}
	e := startBuilder(t)
	t.Run("scripts", func(t *testing.T) { composeScripts(t, e, "testdata/compose", nil) })
	clean(t, e)
	noLeaks(t, e)
}

// composeVersion is the Docker Compose that `make compose-program` builds from its Go
// module.
const composeVersion = "v2.40.3"

// TestComposePlugin runs testdata/composeplugin: Docker Compose's own program at apps
// that the engine keeps, and at what nobody keeps.
func TestComposePlugin(t *testing.T) {
	if foreign != "" {
		t.Skip("another's engine keeps no apps")
	}
	plugin := composeProgram(t)
	e := start(t, harness.Options{})
	t.Run("scripts", func(t *testing.T) {
		composeScripts(t, e, "testdata/composeplugin", func(env *testscript.Env) error {
			return os.Symlink(plugin, filepath.Join(env.WorkDir, ".bin", "plugin"))
		})
	})
	noLeaks(t, e)
}

// composeProgram is Docker Compose's program, where `make compose-program` puts it.
func composeProgram(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skip("needs a cache directory: ", err)
	}
	bin := filepath.Join(dir, "escale-test", "compose-"+composeVersion, "docker-compose")
	if _, err := os.Stat(bin); err != nil {
		t.Skipf("needs Docker Compose %s, which 'make compose-program' builds in some minutes: %v", composeVersion, err)
	}
	return bin
}

// composeScripts runs the scripts of a directory against an engine.
func composeScripts(t *testing.T, e *harness.Engine, dir string, more func(*testscript.Env) error) {
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			if err := setup(env, "escale", clients()["escale"], e.Host()); err != nil {
				return err
			}
			env.Setenv("PATH", harness.BinDir()+":"+filepath.Join(env.WorkDir, ".bin")+":"+os.Getenv("PATH"))
			env.Setenv("COMPOSE_PROJECT_NAME", env.Getenv("N"))
			tt := env.T().(testing.TB)
			host, n := e.Host(), env.Getenv("N")
			env.Defer(func() {
				if tt.Failed() {
					removeApp(host, n)
					removeNamed(host, n)
				}
			})
			if more == nil {
				return nil
			}
			return more(env)
		},
		Cmds:      commands(),
		Condition: condition("escale"),
	})
}

// removeApp removes the app that a script that failed left.
func removeApp(host, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(30*time.Second))
	defer cancel()
	api := harness.NewAPI(host)
	defer api.Close()
	if api.Do(ctx, "DELETE", "/escale/apps/"+name+"?volumes=1", nil, nil) != nil {
		return
	}
	for ctx.Err() == nil && api.Do(ctx, "GET", "/escale/apps/"+name, nil, nil) == nil {
		time.Sleep(100 * time.Millisecond)
	}
}
