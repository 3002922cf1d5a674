package compose

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/tty"
)

// help writes the page of one command, as those of escale look.
func help(w io.Writer, cmd *cobra.Command) {
	_, cols := tty.Size(w)
	if cols == 0 {
		cols = 80
	}
	use := cmd.UseLine()
	if !cmd.HasParent() {
		use = cmd.CommandPath() + " [OPTIONS] COMMAND"
	}
	fmt.Fprintf(w, "Usage:  %s\n\n%s\n", use, cmd.Short)
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", strings.ReplaceAll(cmd.Example, "escale", strings.TrimSuffix(cmd.Root().CommandPath(), " compose")))
	}
	width := 0
	for _, c := range cmd.Commands() {
		width = max(width, len(c.Name()))
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprint(w, "\nCommands:\n")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && c.Name() != "help" {
				fmt.Fprintf(w, "  %-*s %s\n", width, c.Name(), c.Short)
			}
		}
	}
	if f := cmd.LocalFlags(); f.HasAvailableFlags() {
		fmt.Fprintf(w, "\nOptions:\n%s", f.FlagUsagesWrapped(int(cols)-1))
	}
	if !cmd.HasParent() {
		fmt.Fprintf(w, "\nRun '%s COMMAND --help' for more information on a command.\n", cmd.CommandPath())
	}
}
