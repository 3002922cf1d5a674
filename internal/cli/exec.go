package cli

import (
	"context"
	"errors"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/spec"
	"escale.dev/escale/internal/cli/tty"
)

type execOptions struct {
	stdin, tty, detach, privileged bool
	user, workdir, keys            string
	env, envFile                   spec.List
}

func execCommand(a *app) *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use: "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Example: `escale exec -it web bash
escale exec -u www-data -w /srv -e DEBUG=1 web ./check`,
		Args:              minArgs(2),
		ValidArgsFunction: completeContainers(a, runningContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return o.exec(cmd.Context(), a, c, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.env.Check = spec.CheckEnv
	f.BoolVarP(&o.detach, "detach", "d", false, "Run the command in the background")
	f.StringVar(&o.keys, "detach-keys", "", "Keys that detach from the command (default ctrl-p,ctrl-q)")
	f.VarP(&o.env, "env", "e", "Set an environment variable")
	f.Var(&o.envFile, "env-file", "Read environment variables from a file")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	f.BoolVar(&o.privileged, "privileged", false, "Give the command extended privileges")
	f.BoolVarP(&o.tty, "tty", "t", false, "Give the command a terminal")
	f.StringVarP(&o.user, "user", "u", "", "User name or ID: USER[:GROUP]")
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	return cmd
}

func (o *execOptions) exec(ctx context.Context, a *app, c *client.Client, name string, command []string) error {
	env, err := spec.Environment(o.envFile.Values, o.env.Values)
	if err != nil {
		return err
	}
	text, _, err := a.detachKeys(o.keys)
	if err != nil {
		return err
	}
	if !o.detach {
		// Checked before the engine makes an exec that nobody would start; but
		// a container that is not there is the more useful news.
		if err := a.checkTTY(o.stdin, o.tty); err != nil {
			if _, gone := c.ContainerInspect(ctx, name, moby.ContainerInspectOptions{}); gone != nil {
				return gone
			}
			return err
		}
	}
	var size moby.ConsoleSize
	if o.tty {
		size.Height, size.Width = tty.Size(a.out)
	}
	made, err := c.ExecCreate(ctx, name, moby.ExecCreateOptions{
		User: o.user, Privileged: o.privileged, TTY: o.tty, ConsoleSize: size, DetachKeys: text,
		AttachStdin: !o.detach && o.stdin, AttachStdout: !o.detach, AttachStderr: !o.detach,
		Env: env, WorkingDir: o.workdir, Cmd: command,
	})
	if err != nil {
		return err
	}
	if made.ID == "" {
		return errors.New("exec ID empty")
	}
	if o.detach {
		_, err := c.ExecStart(ctx, made.ID, moby.ExecStartOptions{Detach: true, TTY: o.tty, ConsoleSize: size})
		return err
	}
	return o.attached(ctx, a, c, made.ID, size)
}

func (o *execOptions) attached(ctx context.Context, a *app, c *client.Client, id string, size moby.ConsoleSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.ExecAttach(ctx, id, moby.ExecAttachOptions{TTY: o.tty, ConsoleSize: size})
	if err != nil {
		return err
	}
	defer r.Close()
	s, err := a.stream(r.HijackedResponse, attachment{stdin: o.stdin, stdout: true, stderr: true, tty: o.tty, detachKeys: o.keys})
	if err != nil {
		return err
	}
	if o.tty && tty.IsTerminal(a.in) {
		a.watchSize(ctx, func(ctx context.Context, rows, cols uint) error {
			_, err := c.ExecResize(ctx, id, moby.ExecResizeOptions{Height: rows, Width: cols})
			return err
		})
	}
	if err := s.Run(ctx); err != nil {
		return err
	}
	res, err := c.ExecInspect(ctx, id, moby.ExecInspectOptions{})
	if err != nil {
		return err
	}
	return exitWith(res.ExitCode)
}
