// Escale is the command line of the Escale container engine; see internal/cli.
package main

import (
	"context"
	"os"

	"escale.dev/escale/internal/cli"
)

func main() { os.Exit(cli.Main(context.Background(), os.Args)) }
