package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"escale.dev/escale/client"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func completionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish",
		Example: `source <(escale completion bash)                    # this shell; needs the package bash-completion
escale completion bash > /etc/bash_completion.d/escale
escale completion zsh > "${fpath[1]}/_escale"
escale completion fish > ~/.config/fish/completions/escale.fish`,
		Args:              exactArgs(1),
		ValidArgsFunction: completeWords("bash", "zsh", "fish", "powershell"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			}
			return fmt.Errorf("completion: unknown shell %q: must be one of bash, zsh, fish, powershell", args[0])
		},
	}
}

func completeWords(words ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// Which containers a verb works on.
const (
	runningContainers = false
	allContainers     = true
)

// completionTime bounds what a press of the Tab key may cost.
const completionTime = 2 * time.Second

// completeListed offers what the engine lists.
func completeListed(a *app, list func(context.Context, *client.Client) ([]string, error)) completer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		c, err := a.completionClient(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFirst offers it for the first n arguments, -1 for all, and then what
// otherwise says.
func completeFirst(n int, offer completer, otherwise cobra.ShellCompDirective) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, otherwise
		}
		return offer(cmd, args, typed)
	}
}

// completeContainers offers names for the first n arguments, -1 for all.
func completeContainers(a *app, all bool, n int) completer {
	return completeFirst(n, completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.ContainerList(ctx, moby.ContainerListOptions{All: all})
		var names []string
		for i := range res.Items {
			names = append(names, (&psRow{c: &res.Items[i], trunc: true}).Names())
		}
		return names, err
	}), cobra.ShellCompDirectiveNoFileComp)
}

// completeImages offers images for the first n arguments, -1 for all; what
// follows may be a file.
func completeImages(a *app, n int) completer {
	return completeFirst(n, completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.ImageList(ctx, moby.ImageListOptions{})
		var names []string
		for _, i := range res.Items {
			for _, t := range i.RepoTags {
				if t != "<none>:<none>" {
					// bash takes a colon for the end of a word; without the
					// default tag most names have none.
					names = append(names, strings.TrimSuffix(t, ":latest"))
				}
			}
		}
		return names, err
	}), cobra.ShellCompDirectiveDefault)
}

// completionClient connects as the line being completed would: its global
// flags have been parsed, but no command has run.
func (a *app) completionClient(cmd *cobra.Command) (*client.Client, error) {
	if err := a.finishFlags(cmd.Root().Flags()); err != nil {
		return nil, err
	}
	return a.client()
}
