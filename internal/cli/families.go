package cli

import (
	"context"

	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/endpoint"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/swarm"
	"escale.dev/escale/internal/cli/verb"
)

// verb is the program as commands in packages of their own see it.
func (a *app) verb() *verb.App {
	return &verb.App{
		Name: a.name, In: a.in, Out: a.out, Err: a.err,
		Connect: a.client,
		Config:  func() endpoint.Config { return a.config },
		Auth:    a.registryAuth,
		Hand: func(ctx context.Context, word string, payload func(handed.Engine) any) error {
			return a.handEngine(ctx, word, nil, payload)
		},
		Completing: func(cmd *cobra.Command) (*client.Client, error) { return a.completionClient(cmd) },
		Help:       func(cmd *cobra.Command) { printHelp(a.err, cmd) },
	}
}

// swarmGroups are the groups of commands about many machines.
func swarmGroups(a *app) []*cobra.Command {
	var groups []*cobra.Command
	for _, f := range swarm.Families() {
		g := group(a, f.Name, f.Short, func(a *app) []*cobra.Command { return f.Commands(a.verb()) })
		groups = append(groups, g)
	}
	return groups
}
