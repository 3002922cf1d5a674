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
	t.Run("scripts", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/compose",
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
				return nil
			},
			Cmds:      commands(),
			Condition: condition("escale"),
		})
	})
	clean(t, e)
	noLeaks(t, e)
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
