// Command escaled is Escale's engine, and does what is too heavy for escale.
package main

import (
	"os"

	"escale.dev/escale/internal/cli/compose"
	"escale.dev/escale/internal/cli/devcluster"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/daemon"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == handed.Compose {
		os.Exit(compose.Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == handed.DevCluster {
		os.Exit(devcluster.Main(os.Args[2:]))
	}
	os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
}
