// Command escale-runtime is an OCI runtime: it makes containers as the runtime
// specification describes them, by runc's command line. The engine's monitors
// call it for containers of `--runtime native`.
package main

import (
	"os"

	"escale.dev/escale/internal/runtime/native"
)

// Whoever becomes a container's process does so by the first thread, on which packages are
// initialised (runtime.LockOSThread tells so): from here that needs no lock, and the lock
// would cost a thread that waits for nothing.
var _ = half()

func half() bool {
	if status, ok := native.Half(os.Args); ok {
		os.Exit(status)
	}
	return true
}

func main() { os.Exit(native.Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
