package cli_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/swarm/stack/deploy"
)

// TestMain puts commands on PATH: this binary under other names.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"escale":  func() { os.Exit(cli.Main(context.Background(), os.Args)) },
		"escaled": escaled,
	})
}

// escaled does what it does for stacks; for all else a script has one of its own.
func escaled() {
	if len(os.Args) > 1 && os.Args[1] == handed.StackWord {
		os.Exit(deploy.Main())
	}
	own := filepath.Join(os.Getenv("WORK"), "bin", "escaled")
	fmt.Fprintln(os.Stderr, syscall.Exec(own, append([]string{"escaled"}, os.Args[1:]...), os.Environ()))
	os.Exit(127)
}
