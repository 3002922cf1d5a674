// Command escale-runtime is an OCI runtime: it makes containers as the runtime
// specification describes them, by runc's command line. The engine's monitors
// call it for containers of `--runtime native`.
package main

import (
	"os"
	"runtime"

	"escale.dev/escale/internal/runtime/native"
)

// The first thread becomes the container's process. It can be held on to only while
// packages are initialised, when the main goroutine is on it for sure.
var _ = lock()

func lock() bool {
	runtime.LockOSThread()
	return true
}

func main() { os.Exit(native.Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
