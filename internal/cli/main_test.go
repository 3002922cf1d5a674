package cli_test

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"escale.dev/escale/internal/cli"
)

// TestMain puts a command `escale` on PATH: this binary under another name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"escale": func() { os.Exit(cli.Main(context.Background(), os.Args)) },
	})
}
