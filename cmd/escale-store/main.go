// Command escale-store is the server of the cluster's store: the child of a manager's
// engine, which tells it on its standard input what to do.
package main

import (
	"os"

	"escale.dev/escale/internal/cluster/store/etcd/server"
)

func main() { os.Exit(server.Main(os.Stdin, os.Stdout, os.Stderr)) }
