// Command gen writes the functions of package codec, into the current directory, by
// reflection over the types that they are for.
package main

import (
	"fmt"
	"os"

	"escale.dev/escale/internal/runtime/native/codec/gen/source"
)

func main() {
	for name, text := range source.Files() {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
