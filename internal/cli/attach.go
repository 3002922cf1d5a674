package cli

import (
	"context"
	"errors"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
)

type attachOptions struct {
	noStdin, sigProxy bool
	keys              string
}

func attachCommand(a *app) *cobra.Command {
	o := &attachOptions{}
	cmd := &cobra.Command{
		Use:               "attach [OPTIONS] CONTAINER",
		Args:              exactArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return o.attach(cmd.Context(), a, c, args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.noStdin, "no-stdin", false, "Do not attach STDIN")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "Pass the signals this command gets on to the container")
	f.StringVar(&o.keys, "detach-keys", "", "Keys that detach from the container (default ctrl-p,ctrl-q)")
	return cmd
}

func (o *attachOptions) attach(ctx context.Context, a *app, c *client.Client, name string) error {
	waitCtx, endWait := context.WithCancel(context.WithoutCancel(ctx))
	defer endWait()
	// Asked for before anything else: it may end while we look at it.
	wait := c.ContainerWait(waitCtx, name, moby.ContainerWaitOptions{})
	ctr, err := attachable(ctx, c, name)
	if err != nil {
		return err
	}
	stdin := !o.noStdin && ctr.Config.OpenStdin
	if err := a.checkTTY(!o.noStdin, ctr.Config.Tty); err != nil {
		return err
	}
	if o.sigProxy && !ctr.Config.Tty {
		defer a.forwardSignals(ctx, c, name)()
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
	// It may have stopped between the two: then nothing would ever come.
	if _, err := attachable(ctx, c, name); err != nil {
		return err
	}
	if ctr.Config.Tty && tty.IsTerminal(a.out) {
		rows, cols := tty.Size(a.out)
		resize := resizeContainer(c, ctr.ID)
		// A change of size makes full-screen programs draw themselves anew.
		_ = resize(ctx, rows+1, cols+1)
		a.watchSize(ctx, resize)
	}
	if err := s.Run(ctx); err != nil {
		return err
	}
	select {
	case r := <-wait.Result:
		if r.Error != nil {
			return errors.New(r.Error.Message)
		}
		return exitWith(int(r.StatusCode))
	case err := <-wait.Error:
		return err
	}
}

// attachable inspects a container and refuses the states without streams.
func attachable(ctx context.Context, c *client.Client, name string) (container.InspectResponse, error) {
	res, err := c.ContainerInspect(ctx, name, moby.ContainerInspectOptions{})
	if err != nil {
		return container.InspectResponse{}, err
	}
	s := res.Container.State
	switch {
	case s == nil || res.Container.Config == nil:
		return container.InspectResponse{}, errors.New("the engine's answer has no state of the container")
	case !s.Running:
		return container.InspectResponse{}, errors.New("You cannot attach to a stopped container, start it first") //nolint:staticcheck // Docker's words.
	case s.Paused:
		return container.InspectResponse{}, errors.New("You cannot attach to a paused container, unpause it first") //nolint:staticcheck // Docker's words.
	case s.Restarting:
		return container.InspectResponse{}, errors.New("You cannot attach to a restarting container, wait until it is running") //nolint:staticcheck // Docker's words.
	}
	return res.Container, nil
}
