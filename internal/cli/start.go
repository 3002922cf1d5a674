package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
)

type startOptions struct {
	attach, stdin                   bool
	keys, checkpoint, checkpointDir string
}

func startCommand(a *app) *cobra.Command {
	o := &startOptions{}
	cmd := &cobra.Command{
		Use:               "start [OPTIONS] CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if o.attach || o.stdin {
				if len(args) > 1 {
					return errors.New("you cannot start and attach multiple containers at once")
				}
				return o.attached(cmd.Context(), a, c, args[0])
			}
			return o.start(cmd.Context(), a, c, args)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.attach, "attach", "a", false, "Attach STDOUT and STDERR and forward signals")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "Attach the container's STDIN")
	f.StringVar(&o.keys, "detach-keys", "", "Keys that detach from the container (default ctrl-p,ctrl-q)")
	f.StringVar(&o.checkpoint, "checkpoint", "", "Start from this checkpoint")
	f.StringVar(&o.checkpointDir, "checkpoint-dir", "", "Folder of the checkpoint")
	f.Lookup("checkpoint").Hidden = true
	f.Lookup("checkpoint-dir").Hidden = true
	return orAppFirst(a, cmd)
}

func (o *startOptions) options() moby.ContainerStartOptions {
	return moby.ContainerStartOptions{CheckpointID: o.checkpoint, CheckpointDir: o.checkpointDir}
}

func (o *startOptions) start(ctx context.Context, a *app, c *client.Client, names []string) error {
	if o.checkpoint != "" && len(names) > 1 {
		return errors.New("you cannot restore multiple containers at once")
	}
	var failed []string
	for _, n := range names {
		if _, err := c.ContainerStart(ctx, n, o.options()); err != nil {
			if moby.IsErrConnectionFailed(err) {
				return err
			}
			a.complain(err)
			failed = append(failed, n)
			continue
		}
		a.println(n)
	}
	if len(failed) > 0 {
		return fmt.Errorf("Error: failed to start containers: %s", strings.Join(failed, ", ")) //nolint:staticcheck // Docker's words.
	}
	return nil
}

func (o *startOptions) attached(ctx context.Context, a *app, c *client.Client, name string) error {
	res, err := c.ContainerInspect(ctx, name, moby.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	ctr := res.Container
	if ctr.Config == nil || ctr.HostConfig == nil {
		return fmt.Errorf("container %s: the engine's answer has no configuration", name)
	}
	stdin := o.stdin && ctr.Config.OpenStdin
	if err := a.checkTTY(stdin, ctr.Config.Tty); err != nil {
		return err
	}
	if !ctr.Config.Tty {
		defer a.forwardSignals(ctx, c, ctr.ID)()
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, closeStream, err := a.attach(ctx, c, ctr.ID, attachment{
		stdin: stdin, stdout: true, stderr: true, tty: ctr.Config.Tty, detachKeys: o.keys,
	})
	if err != nil {
		return err
	}
	defer closeStream()
	code := a.exitOf(ctx, c, ctr.ID, ctr.HostConfig.AutoRemove)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if _, err := c.ContainerStart(ctx, ctr.ID, o.options()); err != nil {
		closeStream()
		cancel()
		<-done
		return err
	}
	if ctr.Config.Tty {
		a.watchSize(ctx, resizeContainer(c, ctr.ID))
	}
	return follow(ctx, cancel, s, done, code)
}
