package cli

import (
	"context"
	"errors"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/spec"
)

// runOptions are the flags of `run` beside those of `create`.
type runOptions struct {
	creation
	detach, sigProxy bool
	keys             string
}

func runCommand(a *app) *cobra.Command {
	o := &runOptions{creation: creation{verb: "run"}}
	cmd := &cobra.Command{
		Use: "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Example: `escale run -it --rm debian bash                      # a shell, gone when left
escale run -d --name web -p 8080:80 nginx            # a service in the background
escale run --rm -v "$PWD":/src -w /src golang go test ./...
escale run --memory 256m --cpus 0.5 --read-only --tmpfs /tmp debian stress`,
		Args:              minArgs(1),
		ValidArgsFunction: completeImages(a, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, c, err := o.request(cmd.Context(), a, cmd.Flags(), args)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), a, c, req)
		},
	}
	f := cmd.Flags()
	o.addFlags(f)
	f.BoolVarP(&o.detach, "detach", "d", false, "Run in the background and print the container's ID")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "Pass the signals this command gets on to the container")
	f.StringVar(&o.keys, "detach-keys", "", "Keys that detach from the container (default ctrl-p,ctrl-q)")
	return cmd
}

func (o *runOptions) run(ctx context.Context, a *app, c *client.Client, req *spec.Request) error {
	cfg := req.Config
	if o.detach {
		if o.AttachGiven() {
			return errors.New("conflicting options: cannot specify both --attach and --detach")
		}
		cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr, cfg.StdinOnce = false, false, false, false
	} else if err := a.checkTTY(cfg.AttachStdin, cfg.Tty); err != nil {
		return err
	}
	if _, _, err := a.detachKeys(o.keys); err != nil {
		return err
	}
	id, err := o.create(ctx, a, c, req)
	if err != nil {
		return a.startError("run", err)
	}
	if o.sigProxy {
		defer a.forwardSignals(ctx, c, id)()
		ctx = context.WithoutCancel(ctx) // Ctrl-C is the container's now
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !cfg.AttachStdin && !cfg.AttachStdout && !cfg.AttachStderr {
		if _, err := c.ContainerStart(ctx, id, moby.ContainerStartOptions{}); err != nil {
			a.println(id) // it exists, and `start` may yet work
			return a.startError("run", err)
		}
		a.println(id)
		return nil
	}
	return o.attached(ctx, cancel, a, c, id, attachment{
		stdin: cfg.AttachStdin, stdout: cfg.AttachStdout, stderr: cfg.AttachStderr, tty: cfg.Tty, detachKeys: o.keys,
	})
}

// attached attaches, asks to be told of the exit, starts, and follows: in this
// order no output and no exit code is lost, however short the container lives.
func (o *runOptions) attached(ctx context.Context, cancel func(), a *app, c *client.Client, id string, at attachment) error {
	s, closeStream, err := a.attach(ctx, c, id, at)
	if err != nil {
		if o.AutoRemove() {
			// It never ran, so it will never remove itself.
			_, rmErr := c.ContainerRemove(context.WithoutCancel(ctx), id, moby.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			err = errors.Join(err, rmErr)
		}
		return err
	}
	defer closeStream()
	code := a.exitOf(ctx, c, id, o.AutoRemove())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if _, err := c.ContainerStart(ctx, id, moby.ContainerStartOptions{}); err != nil {
		closeStream()
		cancel()
		<-done // the terminal is itself again
		return a.startError("run", err)
	}
	if at.tty {
		a.watchSize(ctx, resizeContainer(c, id))
	}
	return follow(ctx, cancel, s, done, code)
}
