package stack

import (
	"context"

	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/verb"
)

func deployCommand(a *verb.App) *cobra.Command {
	d := handed.Stack{Do: handed.StackDeploy}
	cmd := &cobra.Command{
		Use:               "deploy [OPTIONS] STACK",
		Aliases:           []string{"up"},
		Short:             "Make a stack as its compose files have it, or change it",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		Example: `escale stack deploy -c compose.yaml shop
escale stack deploy --prune -d=false -c compose.yaml -c prod.yaml shop`,
	}
	f := cmd.Flags()
	addFiles(cmd, &d)
	f.BoolVar(&d.Auth, "with-registry-auth", false, "Send logins to registries along, for the nodes")
	f.BoolVar(&d.Prune, "prune", false, "Remove services that the files have no more")
	f.StringVar(&d.ResolveImage, "resolve-image", "always", `When registries are asked for an image's digest and platforms: "always", "changed", "never"`)
	f.BoolVarP(&d.Detach, "detach", "d", true, "Do not wait until the services are what they are to be")
	f.BoolVarP(&d.Quiet, "quiet", "q", false, "Do not show how far that is")
	_ = cmd.RegisterFlagCompletionFunc("resolve-image", verb.Words("always", "changed", "never"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d.Name, d.DetachGiven = args[0], f.Changed("detach")
		if err := checkName(d.Name); err != nil {
			return err
		}
		return hand(cmd.Context(), a, d)
	}
	return cmd
}

func configCommand(a *verb.App) *cobra.Command {
	d := handed.Stack{Do: handed.StackConfig}
	cmd := &cobra.Command{
		Use:               "config [OPTIONS]",
		Short:             "Print what compose files come to, merged and filled in",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return hand(cmd.Context(), a, d) },
	}
	addFiles(cmd, &d)
	cmd.Flags().BoolVar(&d.SkipInterpolation, "skip-interpolation", false, "Do not fill in variables")
	return cmd
}

func addFiles(cmd *cobra.Command, d *handed.Stack) {
	cmd.Flags().StringSliceVarP(&d.Files, "compose-file", "c", nil, `Compose file, or "-" for what is read`)
	_ = cmd.MarkFlagFilename("compose-file", "yaml", "yml")
}

func hand(ctx context.Context, a *verb.App, d handed.Stack) error {
	return a.Hand(ctx, handed.StackWord, func(e handed.Engine) any {
		d.Engine = e
		return d
	})
}
