package secret

import (
	"strings"

	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/swarm/progress"
	"escale.dev/escale/internal/cli/verb"
)

// updateCommand gives a secret or config other content under its name. Docker has no such verb.
func (k *kind) updateCommand(a *verb.App) *cobra.Command {
	var detach, quiet bool
	cmd := &cobra.Command{
		Use:   "update [OPTIONS] " + strings.ToUpper(k.name) + " file|-",
		Short: "Give a " + k.name + " other content under its name",
		Long: `Give a ` + k.name + ` the content of a file, or what is read (-), under its name. Services that use it exchange their tasks
as for every update of theirs, and have what was there before when they go back (service rollback). Content that is
there already changes nothing.`,
		Example: `escale ` + k.name + ` update key ./key.new
openssl rand -hex 32 | escale ` + k.name + ` update key -`,
		Args: verb.ExactArgs(2),
	}
	names := k.names(a)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault // a file
		}
		return names(cmd, args, word)
	}
	f := cmd.Flags()
	f.BoolVarP(&detach, "detach", "d", false, "Do not wait until the services that use it have it")
	f.BoolVarP(&quiet, "quiet", "q", false, "Do not show how far that is")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		data, err := k.content(a.In, "", args[1])
		if err != nil {
			return err
		}
		c, err := a.Connect()
		if err != nil {
			return err
		}
		renewed, err := k.renew(cmd.Context(), c, args[0], data)
		if err != nil {
			return err
		}
		a.Println(renewed.ID)
		for _, s := range renewed.Services {
			if detach {
				break
			}
			if !quiet {
				a.Println(s + ":")
			}
			if err := progress.Service(cmd.Context(), c, a.Name, s, a.Out, quiet); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}
