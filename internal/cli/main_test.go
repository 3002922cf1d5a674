package cli_test

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/swarm/stack/deploy"
)

// TestMain puts commands on PATH: this binary under other names.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"escale": func() { os.Exit(cli.Main(context.Background(), os.Args)) },
		// What escaled does for stacks, which is all of it that is asked for here.
		"escaled": func() { os.Exit(deploy.Main()) },
	})
}
