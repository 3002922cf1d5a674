// Command escale-shim is the monitor of one container; the engine starts it.
package main

import (
	"os"

	"escale.dev/escale/internal/runtime/shim/monitor"
)

func main() { os.Exit(monitor.Main()) }
