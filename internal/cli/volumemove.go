package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/client"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

type volumeMoveOptions struct {
	client.VolumeMoveOptions
	detach, quiet, cancel bool
}

func volumeMoveCommand(a *app) *cobra.Command {
	var o volumeMoveOptions
	cmd := &cobra.Command{
		Use:   "move [OPTIONS] VOLUME [VOLUME...] NODE",
		Short: "Move volumes to another node of the cluster, with the tasks that have them",
		Long: `Move volumes to another node of the cluster, with the tasks that have them: these end, all of the volumes is copied from
node to node and read again there, and the tasks start on the other node. Until all is there the volumes stay what they
were, whatever fails; a move that was begun goes on without this command, and when a manager or a node was
restarted amid it. Volumes that a service has together move together. The old ones are removed, unless --keep is given.`,
		Example: `escale volume move data worker2
escale volume move --from worker1 --keep data worker2
escale volume move --cancel data`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.cancel {
				return o.undo(cmd.Context(), a, args)
			}
			if len(args) < 2 {
				return minArgs(2)(cmd, args)
			}
			o.Volumes, o.To = args[:len(args)-1], args[len(args)-1]
			return o.run(cmd.Context(), a)
		},
	}
	nodes := completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.NodeList(ctx, moby.NodeListOptions{})
		var names []string
		for i := range res.Items {
			names = append(names, res.Items[i].Description.Hostname)
		}
		return names, err
	})
	volumes := completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		list, _, err := c.ClusterVolumes(ctx)
		var names []string
		for i := range list {
			names = append(names, list[i].Name) // of each node that has one
		}
		slices.Sort(names)
		return slices.Compact(names), err
	})
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		names, how := volumes(cmd, args, word)
		if len(args) == 0 || o.cancel {
			return names, how
		}
		more, how := nodes(cmd, args, word)
		return append(more, names...), how
	}
	f := cmd.Flags()
	f.StringVar(&o.From, "from", "", "Node that has them, when several have volumes of the name")
	f.BoolVar(&o.Keep, "keep", false, "Do not remove what the first node has")
	f.BoolVarP(&o.detach, "detach", "d", false, "Do not wait until it is done")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Do not show how far it is")
	f.BoolVar(&o.cancel, "cancel", false, "Undo the move of a volume, as long as not all of it is there")
	_ = cmd.RegisterFlagCompletionFunc("from", nodes)
	return cmd
}

func (o *volumeMoveOptions) run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	id, err := c.VolumeMoveBegin(ctx, o.VolumeMoveOptions)
	if err != nil {
		return err
	}
	if o.detach {
		a.println(id)
		return nil
	}
	err = o.follow(ctx, a, c, id)
	if ctx.Err() != nil {
		fmt.Fprintf(a.err, "The move goes on. Use \"%s volume move --cancel %s\" to undo it.\n", a.name, o.Volumes[0])
		return err
	}
	if err == nil {
		a.println(strings.Join(o.Volumes, "\n"))
	}
	return err
}

func (o *volumeMoveOptions) undo(ctx context.Context, a *app, args []string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return a.each(ctx, args, func(ctx context.Context, name string) error {
		m, err := c.VolumeMove(ctx, name)
		if err == nil {
			err = c.VolumeMoveCancel(ctx, m.ID)
		}
		if err != nil || o.detach {
			return err
		}
		var u undone
		if err := o.follow(ctx, a, c, m.ID); !errors.As(err, &u) {
			return err
		}
		return nil
	}, nil)
}

// undone is why volumes stay where they were.
type undone struct{ why string }

func (u undone) Error() string { return "the volumes stay where they were: " + u.why }

const moveInterval = 200 * time.Millisecond

// follow shows how far a move is, until it is over. While the engine cannot be asked it goes on asking
// for a while: the move does not depend on it.
func (o *volumeMoveOptions) follow(ctx context.Context, a *app, c *client.Client, id string) error {
	said, missed := "", 0
	var copying *meter
	defer func() {
		if copying != nil {
			copying.done()
		}
	}()
	for {
		m, err := c.VolumeMove(ctx, id)
		switch {
		case err == nil:
			missed = 0
		case ctx.Err() != nil:
			return ctx.Err()
		case missed < 50:
			missed++
		default:
			return err
		}
		if words := movePhase(&m); err == nil && words != "" && words != said {
			said = words
			if copying != nil {
				copying.done()
				copying = nil
			}
			if !o.quiet {
				fmt.Fprintln(a.err, words)
			}
			if m.Phase == "copying" && !o.quiet {
				copying = newMeter(a, "Copying", m.Total)
			}
		}
		if copying != nil && m.Total > 0 {
			copying.at(m.Bytes, m.Total)
		}
		if m.Phase == "undone" {
			return undone{m.Message}
		}
		if m.Over {
			return nil
		}
		select {
		case <-time.After(moveInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// movePhase says in words what a move does; "": nothing any more.
func movePhase(m *client.VolumeMove) string {
	words := map[string]string{
		"":         "Waiting for its turn",
		"holding":  "Tasks that have " + strings.Join(m.Volumes, ", ") + " on " + m.From.Name + " end",
		"copying":  fmt.Sprintf("Copying from %s to %s (%d of %d)", m.From.Name, m.To.Name, min(len(m.Come)+1, len(m.Volumes)), len(m.Volumes)),
		"moved":    "All is on " + m.To.Name,
		"dropping": "Tasks start on " + m.To.Name,
		"undoing":  "Undoing",
	}[m.Phase]
	if m.Message != "" && !m.Over {
		words += ": " + m.Message
	}
	return words
}
