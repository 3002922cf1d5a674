package cli

import (
	"context"
	"errors"
	"io"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/tty"
)

func exportCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export [OPTIONS] CONTAINER",
		Example: `escale export -o web.tar web
escale export web | escale import - web:flat`,
		Args:              exactArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, 1),
		RunE:              func(cmd *cobra.Command, args []string) error { return export(cmd.Context(), a, args[0], output) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to this file instead of STDOUT")
	return cmd
}

func export(ctx context.Context, a *app, container, output string) error {
	if output == "" && tty.IsTerminal(a.out) {
		return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if output == "" {
		r, err := c.ContainerExport(ctx, container, moby.ContainerExportOptions{})
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(a.out, r)
		return err
	}
	return writeWhole("export container", output, func(w io.Writer) error {
		r, err := c.ContainerExport(ctx, container, moby.ContainerExportOptions{})
		if err != nil {
			return err
		}
		defer r.Close()
		m := newMeter(a, "Exporting", 0)
		defer m.done()
		_, err = io.Copy(w, m.reader(r))
		return err
	})
}
