package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli/tty"
)

// showHelp is what a command without its arguments does: the help on stderr.
func showHelp(a *app, cmd *cobra.Command) error {
	printHelp(a.err, cmd)
	return nil
}

func helpCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:              "help [command]",
		Short:            "Help about the command",
		PersistentPreRun: func(*cobra.Command, []string) {},
		Hidden:           true,
		RunE: func(c *cobra.Command, args []string) error {
			cmd, rest, err := c.Root().Find(args)
			if cmd == nil || err != nil || len(rest) > 0 {
				return errors.New("unknown help topic: " + strings.Join(args, " "))
			}
			printHelp(a.out, cmd)
			return nil
		},
	}
}

// printHelp writes the page of one command. It is plain code and no template:
// cobra's would be parsed at every start of the program.
func printHelp(w io.Writer, cmd *cobra.Command) {
	_, cols := tty.Size(w)
	if cols == 0 {
		cols = 80
	}
	use := cmd.UseLine()
	if cmd.HasAvailableSubCommands() {
		use = cmd.CommandPath() + " [OPTIONS] COMMAND"
		if cmd.HasParent() {
			use = cmd.CommandPath() + " COMMAND"
		}
	}
	fmt.Fprintf(w, "Usage:  %s\n\n%s\n", use, cmd.Short)
	if cmd.Long != "" {
		fmt.Fprintf(w, "\n%s\n", cmd.Long)
	}
	if also := otherNames(cmd); also != "" {
		fmt.Fprintf(w, "\nAliases:\n  %s\n", also)
	}
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", indent(cmd.Example, cmd.Root().Name()))
	}
	for _, g := range []struct{ id, title string }{
		{groupCommon, "Common Commands"}, {groupManage, "Management Commands"}, {groupOther, "Commands"}, {"", "Commands"},
	} {
		listCommands(w, cmd, g.id, g.title)
	}
	title := "Options"
	if !cmd.HasParent() {
		title = "Global Options"
	}
	if f := cmd.LocalFlags(); f.HasAvailableFlags() {
		fmt.Fprintf(w, "\n%s:\n%s", title, flagUsages(f, int(cols)))
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\nRun '%s COMMAND --help' for more information on a command.\n", cmd.CommandPath())
	}
}

func flagUsages(f *pflag.FlagSet, cols int) string {
	return f.FlagUsagesWrapped(max(cols-1, 40))
}

func listCommands(w io.Writer, cmd *cobra.Command, id, title string) {
	var found []*cobra.Command
	width := 11
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.GroupID == id {
			found = append(found, c)
			width = max(width, len(c.Name()))
		}
	}
	if len(found) == 0 {
		return
	}
	if id != groupCommon {
		slices.SortFunc(found, func(x, y *cobra.Command) int { return strings.Compare(x.Name(), y.Name()) })
	} else {
		// cobra sorts by name; the daily verbs stand in the order of a day.
		slices.SortStableFunc(found, func(x, y *cobra.Command) int { return dailyRank(x) - dailyRank(y) })
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	for _, c := range found {
		fmt.Fprintf(w, "  %-*s %s\n", width, c.Name(), c.Short)
	}
}

func dailyRank(c *cobra.Command) int {
	return slices.Index([]string{"run", "exec", "ps", "build", "up", "down", "apps", "logs", "stop", "rm", "images", "pull", "import", "version", "info", "daemon"}, c.Name())
}

// otherNames lists the forms a command can be called by, when there are more
// than one.
func otherNames(cmd *cobra.Command) string {
	full, short := longForm(cmd), cmd.Name()
	if full == "" {
		if len(cmd.Aliases) == 0 || !cmd.HasParent() {
			return ""
		}
		full, short = strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" "), ""
	}
	group, verb, _ := strings.Cut(full, " ")
	forms := []string{verb}
	switch full {
	case "container ls":
		forms, short = append(forms, "list", "ps"), "ps"
	case "image ls":
		forms, short = append(forms, "list"), "images"
	case "image rm":
		forms, short = append(forms, "remove"), "rmi"
	default:
		forms = append(forms, cmd.Aliases...)
	}
	for i, f := range forms {
		forms[i] = cmd.Root().Name() + " " + group + " " + f
	}
	if short != "" {
		forms = append(forms, cmd.Root().Name()+" "+short)
	}
	return strings.Join(forms, ", ")
}

// longForm is the grouped form of a command that has a short one too, "" of
// those that have one form.
func longForm(cmd *cobra.Command) string {
	path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	switch path {
	case "container inspect", "image inspect", "container prune", "image prune", "system dial-stdio", "system df", "system prune", "inspect",
		"version", "daemon", "completion", "login", "logout", "search", "help", "compose", "up", "down", "apps", "rollback", "release", "container", "image", "network", "system", "volume", cmd.Root().Name():
		return ""
	case "ps":
		return "container ls"
	case "images":
		return "image ls"
	case "rmi":
		return "image rm"
	case "history", "import", "load", "pull", "push", "save", "tag":
		return "image " + path
	case "events", "info":
		return "system " + path
	}
	switch group, _, _ := strings.Cut(path, " "); group {
	case "volume", "network", "plugin", "registry", "swarm", "node", "service", "stack", "secret", "config", "cluster":
		return "" // these groups have no verbs elsewhere
	}
	if strings.Contains(path, " ") {
		return path
	}
	return "container " + path
}

func indent(text, name string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		lines[i] = "  " + strings.Replace(strings.TrimSpace(l), "escale", name, 1)
	}
	return strings.Join(lines, "\n")
}
