// Command escaled is Escale's engine.
package main

import (
	"os"

	"escale.dev/escale/internal/daemon"
)

func main() {
	os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
}
