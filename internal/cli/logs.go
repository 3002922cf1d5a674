package cli

import (
	"context"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/tty"
)

func logsCommand(a *app) *cobra.Command {
	o := moby.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}
	cmd := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER",
		Example: `escale logs -f --tail 20 web
escale logs --since 10m -t web`,
		Args:              exactArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLogs(cmd.Context(), a, args[0], o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Details, "details", false, "Show the extra attributes of each line")
	f.BoolVarP(&o.Follow, "follow", "f", false, "Go on with what is being written")
	f.StringVar(&o.Since, "since", "", `Show logs since a time (2013-01-02T13:23:37Z) or an age (42m)`)
	f.StringVarP(&o.Tail, "tail", "n", "all", "Show only this many lines from the end")
	f.BoolVarP(&o.Timestamps, "timestamps", "t", false, "Show the time of each line")
	f.StringVar(&o.Until, "until", "", `Show logs before a time (2013-01-02T13:23:37Z) or an age (42m)`)
	return orApp(a, cmd)
}

// taskIDSize is the length of a task's id.
const taskIDSize = 25

func runLogs(ctx context.Context, a *app, name string, o moby.ContainerLogsOptions) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	// Whether lines come multiplexed depends on the container's terminal.
	res, err := c.ContainerInspect(ctx, name, moby.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) && len(name) == taskIDSize { // inspected, a task's id means the task
		if t, none := c.TaskInspect(ctx, name, moby.TaskInspectOptions{}); none == nil && t.Task.Status.ContainerStatus != nil {
			res, err = c.ContainerInspect(ctx, t.Task.Status.ContainerStatus.ContainerID, moby.ContainerInspectOptions{})
		}
	}
	if err != nil {
		return err
	}
	r, err := c.ContainerLogs(ctx, res.Container.ID, o)
	if err != nil {
		return err
	}
	defer r.Close()
	s := &tty.Stream{Out: a.out, Err: a.err, Reader: r, TTY: res.Container.Config != nil && res.Container.Config.Tty}
	return s.Output()
}
