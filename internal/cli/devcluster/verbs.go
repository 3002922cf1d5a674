package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"escale.dev/escale/internal/cli/table"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// Main runs a command line, args being what stands behind `cluster dev`, and returns the
// exit code. It blocks until the command is done.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr, args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(ctx context.Context, out, errs io.Writer, args []string) error {
	v := &verbs{out: out, err: errs}
	root := &cobra.Command{
		Use: "dev", Short: "A cluster on this machine, to try and to break",
		Annotations:  map[string]string{cobra.CommandDisplayNameAnnotation: "escale cluster dev"},
		SilenceUsage: true, SilenceErrors: true, DisableFlagsInUseLine: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&v.name, "name", "dev", "Which cluster, where there are several")
	root.SetOut(out)
	root.SetErr(errs)
	root.SetArgs(args)
	root.AddCommand(
		v.up(), v.ls(), v.down(),
		v.each("start NODE...", "Start nodes that were killed or stopped", (*node).revive),
		v.each("stop NODE...", "Stop the engines of nodes; containers run on", (*node).stop),
		v.each("kill NODE...", "End all that runs on nodes at once, as a power cut does", (*node).kill),
		v.each("freeze NODE...", "Let nodes stand still in the middle of whatever they do", func(n *node, _ context.Context) error {
			n.Frozen = true
			return errors.Join(n.c.save(), n.freeze())
		}),
		v.partition(),
		v.each("heal [NODE...]", "Undo kill, freeze and partition: of all nodes, unless some are named", (*node).heal),
	)
	return root.ExecuteContext(ctx)
}

// verbs are the commands.
type verbs struct {
	out, err io.Writer
	name     string
}

// with does something with the cluster, while nobody else does.
func (v *verbs) with(fresh bool, do func(c *cluster) error) error {
	c, err := open(v.name, fresh)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.close())
}

// each does something to some nodes, or, where the line says that it may, to all.
func (v *verbs) each(use, short string, do func(n *node, ctx context.Context) error) *cobra.Command {
	least := 1
	if strings.Contains(use, "[") {
		least = 0
	}
	return &cobra.Command{Use: use, Short: short, Args: cobra.MinimumNArgs(least), RunE: func(cmd *cobra.Command, args []string) error {
		return v.with(false, func(c *cluster) error {
			nodes, err := c.pick(args)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				nodes = c.Nodes
			}
			for _, n := range nodes {
				if err := do(n, cmd.Context()); err != nil {
					return err
				}
				fmt.Fprintln(v.out, n.Name)
			}
			return nil
		})
	}}
}

func (v *verbs) up() *cobra.Command {
	var subnet string
	var managers int
	var options []string
	c := &cobra.Command{
		Use: "up [NODES]", Short: "Make a cluster of so many nodes (3), or make one larger, and start what does not run", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want := 3
			if len(args) > 0 {
				var err error
				if want, err = strconv.Atoi(args[0]); err != nil || want < 1 || want > 50 {
					return fmt.Errorf("%q: a number of nodes from 1 to 50 wanted: %w", args[0], errdefs.ErrInvalidArgument)
				}
			}
			return v.with(true, func(c *cluster) error {
				if err := c.settle(subnet); err != nil {
					if len(c.Nodes) == 0 {
						err = errors.Join(err, os.RemoveAll(c.dir)) // it was made for this call
					}
					return err
				}
				if managers == 0 {
					managers = defaultManagers(want)
				}
				for len(c.Nodes) < want {
					c.add(len(c.Nodes) < managers, options)
				}
				if err := c.save(); err != nil {
					return err
				}
				return v.bring(cmd.Context(), c)
			})
		},
	}
	c.Flags().StringVar(&subnet, "subnet", "", "Subnet of the nodes (a free /24 of 10.213.0.0/16)")
	c.Flags().IntVar(&managers, "managers", 0, "How many of the nodes are managers (3; of less than three nodes one)")
	c.Flags().StringArrayVar(&options, "engine-option", nil, "An option for the engines of new nodes, \"--debug\" for one")
	return c
}

// defaultManagers is how many of some nodes are managers: three, where one may then fail.
func defaultManagers(nodes int) int {
	if nodes >= 3 {
		return 3
	}
	return 1
}

// settle gives a new cluster its subnet.
func (c *cluster) settle(subnet string) (err error) {
	switch {
	case c.Subnet.IsValid() && subnet != "" && subnet != c.Subnet.String():
		return fmt.Errorf("%s has the subnet %s: that cannot be changed: %w", c.Name, c.Subnet, errdefs.ErrFailedPrecondition)
	case c.Subnet.IsValid():
		return nil
	case subnet == "":
		c.Subnet, err = choose()
		return err
	}
	if c.Subnet, err = netip.ParsePrefix(subnet); err != nil || !c.Subnet.Addr().Is4() || c.Subnet.Bits() > 24 {
		return fmt.Errorf("%q: a subnet of IPv4 with at least 256 addresses wanted: %w", subnet, errdefs.ErrInvalidArgument)
	}
	c.Subnet = c.Subnet.Masked()
	return nil
}

// bring starts the nodes and makes one swarm of them.
func (v *verbs) bring(ctx context.Context, c *cluster) error {
	if err := c.wire(); err != nil {
		return err
	}
	group, starting := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, n := range c.Nodes {
		group.Go(func() error { return n.start(starting) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, n := range c.Nodes {
		was, err := n.join(ctx, c.Nodes[:i])
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		if !was {
			fmt.Fprintf(v.out, "%s  %s  %s  unix://%s\n", n.Name, n.role(), n.Addr, n.socket())
		}
	}
	_, err := fmt.Fprintf(v.out, "%d nodes. Look at them: escale -H unix://%s node ls\n", len(c.Nodes), c.Nodes[0].socket())
	return err
}

func (v *verbs) down() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Remove the cluster with all that it is and has", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return v.with(false, func(c *cluster) error { return c.remove(cmd.Context()) })
	}}
}

// remove takes away all that the cluster is. Idempotent.
func (c *cluster) remove(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.remove(ctx))
	}
	if err := errors.Join(append(errs, c.unlink())...); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(filepath.Join(runRoot, c.Name)), os.RemoveAll(c.dir))
}

func (v *verbs) partition() *cobra.Command {
	return &cobra.Command{Use: "partition NODE...", Short: "Cut nodes off from the others and the host; they still see each other", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return v.with(false, func(c *cluster) error {
				nodes, err := c.pick(args)
				if err != nil {
					return err
				}
				side := 1
				for slices.ContainsFunc(c.Nodes, func(n *node) bool { return n.Side == side }) {
					side++
				}
				for _, n := range nodes {
					n.Side = side
				}
				if err := c.save(); err != nil {
					return err
				}
				for _, n := range nodes {
					if err := n.stand(); err != nil {
						return err
					}
					fmt.Fprintln(v.out, n.Name)
				}
				return nil
			})
		}}
}

// revive starts a node whose engine does not run.
func (n *node) revive(ctx context.Context) error { return n.start(ctx) }

// heal undoes what was done to a node.
func (n *node) heal(ctx context.Context) error {
	n.Side, n.Frozen = 0, false
	if err := errors.Join(n.c.save(), n.stand(), n.thaw()); err != nil {
		return err
	}
	return n.start(ctx)
}

// row is a node in the list; its fields are those of --format.
type row struct{ name, role, address, socket, state string }

func (r *row) Name() string    { return r.name }
func (r *row) Role() string    { return r.role }
func (r *row) Address() string { return r.address }
func (r *row) Socket() string  { return r.socket }
func (r *row) State() string   { return r.state }

// MarshalJSON implements json.Marshaler.
func (r *row) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"name":%q,"role":%q,"address":%q,"socket":%q,"state":%q}`, r.name, r.role, r.address, r.socket, r.state), nil
}

// Headers implements table.Row.
func (*row) Headers() map[string]string {
	return map[string]string{"Name": "NAME", "Role": "ROLE", "Address": "ADDRESS", "Socket": "SOCKET", "State": "STATE"}
}

func (v *verbs) ls() *cobra.Command {
	var format string
	c := &cobra.Command{Use: "ls", Short: "List the nodes", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		if format == "table" {
			format = "table {{.Name}}\t{{.Role}}\t{{.Address}}\t{{.State}}\t{{.Socket}}"
		}
		return v.with(false, func(c *cluster) error {
			var rows []table.Row
			for _, n := range c.Nodes {
				rows = append(rows, &row{n.Name, n.role(), n.Addr.String(), "unix://" + n.socket(), n.state()})
			}
			return table.Write(v.out, table.Format(format), &row{}, rows)
		})
	}}
	c.Flags().StringVar(&format, "format", "table", `Format: "table", "json" or a Go template`)
	return c
}

// state says what was done to a node.
func (n *node) state() string {
	var what []string
	switch {
	case n.Frozen:
		what = append(what, "frozen")
	case !n.runs():
		what = append(what, "down")
	default:
		what = append(what, "running")
	}
	if n.Side > 0 {
		what = append(what, fmt.Sprint("cut off, side ", n.Side))
	}
	return strings.Join(what, ", ")
}
