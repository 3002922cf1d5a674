package cli

import (
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/swarm/status"
)

func clusterCommands(a *app) []*cobra.Command {
	return []*cobra.Command{clusterBackupCommand(a), clusterDev(), clusterRestoreCommand(a), status.Command(a.verb())}
}

// clusterDev becomes the engine's own program, as registryServe does: it makes networks.
func clusterDev() *cobra.Command {
	return &cobra.Command{
		Use: "dev COMMAND", Short: "A cluster on this machine, to try and to break",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findEngine()
			if err != nil {
				return err
			}
			return fmt.Errorf("%s: %w", path, syscall.Exec(path, append([]string{"escaled", handed.DevCluster}, args...), os.Environ()))
		},
	}
}
