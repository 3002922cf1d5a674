// Command escaled is Escale's engine, and does what is too heavy for escale.
package main

import (
	"os"

	"escale.dev/escale/internal/cli/compose"
	"escale.dev/escale/internal/cli/devcluster"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/swarm/stack/deploy"
	"escale.dev/escale/internal/daemon"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case handed.Compose:
			os.Exit(compose.Main(os.Args[2:]))
		case handed.DevCluster:
			os.Exit(devcluster.Main(os.Args[2:]))
		case handed.StackWord:
			os.Exit(deploy.Main())
		}
	}
	os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
}
