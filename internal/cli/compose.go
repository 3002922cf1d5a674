package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// composeWords are the commands of `escale compose`, as completion offers them.
var composeWords = []string{
	"attach", "build", "commit", "config", "cp", "create", "down", "events", "exec", "export", "history", "images", "kill", "logs", "ls", "pause",
	"port", "ps", "pull", "push", "release", "restart", "rm", "rollback", "run", "scale", "start", "stats", "stop", "top", "unpause", "up", "version",
	"volumes", "wait", "watch",
}

// composeCommand is `escale compose …`. What stands behind it is read by escaled.
func composeCommand(a *app) *cobra.Command {
	c := through(a, "compose")
	c.Use = "compose [OPTIONS] COMMAND"
	return c
}

// Verbs of compose at the top.
func upCommand(a *app) *cobra.Command       { return through(a, "up") }
func downCommand(a *app) *cobra.Command     { return through(a, "down") }
func appsCommand(a *app) *cobra.Command     { return through(a, "apps", "ls") }
func rollbackCommand(a *app) *cobra.Command { return through(a, "rollback") }
func releaseCommand(a *app) *cobra.Command  { return through(a, "release") }

// through is a command whose arguments escaled reads: those of compose's command of
// that name, or of another name.
func through(a *app, name string, as ...string) *cobra.Command {
	words := as
	if len(words) == 0 && name != "compose" {
		words = []string{name}
	}
	return &cobra.Command{
		Use: name + " [OPTIONS] [ARG...]", DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			// Help is escaled's, too: it knows the flags.
			return a.compose(cmd.Context(), false, append(slices.Clone(words), args...)...)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			return a.composeWords(cmd, append(slices.Clone(words), args...), typed)
		},
	}
}

// composeWords asks escaled what may follow.
func (a *app) composeWords(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 && !strings.HasPrefix(typed, "-") {
		return composeWords, cobra.ShellCompDirectiveNoFileComp
	}
	if err := a.finishFlags(cmd.Root().Flags()); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out strings.Builder
	child := *a
	child.out, child.err, child.conn = &out, &strings.Builder{}, nil
	if err := child.compose(cmd.Context(), false, append(append([]string{"__complete"}, args...), typed)...); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	directive := cobra.ShellCompDirectiveNoFileComp
	if last := lines[len(lines)-1]; last == ":0" {
		directive = cobra.ShellCompDirectiveDefault
	}
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" || strings.HasPrefix(l, ":") }), directive
}

// isApp tells whether there is an app of the name, kept by the engine or not.
func (a *app) isApp(ctx context.Context, name string) bool {
	c, err := a.client()
	if err != nil {
		return false
	}
	if _, err := c.App(ctx, name); err == nil {
		return true
	}
	const label = "com.docker.compose.project"
	list, err := c.ContainerList(ctx, moby.ContainerListOptions{All: true, Filters: moby.Filters{}.Add("label", label+"="+name)})
	return err == nil && slices.ContainsFunc(list.Items, func(x container.Summary) bool { return x.Labels[label] == name })
}

// orApp makes a command on one container or image do compose's of that name on an app,
// when there is no such container or image.
func orApp(a *app, c *cobra.Command) *cobra.Command {
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		if len(args) == 1 && errdefs.IsNotFound(err) && a.isApp(cmd.Context(), args[0]) {
			return a.appVerb(cmd, args[0], cmd.Name())
		}
		return err
	}
	return c
}

// appVerb does a verb of compose with the flags of this one. Those that compose does
// not know it refuses.
func (a *app) appVerb(cmd *cobra.Command, name, verb string) error {
	args := []string{"-p", name, verb}
	at := slices.Index(a.args, cmd.CalledAs())
	for _, arg := range a.args[at+1:] {
		if arg != name {
			args = append(args, arg)
		}
	}
	return a.compose(cmd.Context(), true, args...)
}

// orAppFirst is orApp for commands that tell of a missing container themselves.
func orAppFirst(a *app, c *cobra.Command) *cobra.Command {
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			engine, err := a.client()
			if err != nil {
				return err
			}
			_, err = engine.ContainerInspect(cmd.Context(), args[0], moby.ContainerInspectOptions{})
			if errdefs.IsNotFound(err) && a.isApp(cmd.Context(), args[0]) {
				return a.appVerb(cmd, args[0], cmd.Name())
			}
		}
		return run(cmd, args)
	}
	return c
}
