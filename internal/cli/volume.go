package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"escale.dev/escale/client"
	"github.com/moby/moby/api/types/volume"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/spec"
)

// volumeCommands are those of the group volume, which has no verbs elsewhere.
func volumeCommands(a *app) []*cobra.Command {
	return []*cobra.Command{volumeCreateCommand(a), volumeInspectCommand(a), volumeLsCommand(a), volumePruneCommand(a), volumeRmCommand(a), volumeUpdateCommand(a),
		volumeBackupCommand(a), volumeRestoreCommand(a), volumeCloneCommand(a), volumeMoveCommand(a)}
}

func volumeCreateCommand(a *app) *cobra.Command {
	var o moby.VolumeCreateOptions
	var labels, options []string
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] [VOLUME]",
		Short: "Create a volume",
		Example: `escale volume create data
escale volume create --label owner=ann -o type=tmpfs -o device=tmpfs -o o=size=64m scratch`,
		Args:              maxArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if o.Name != "" {
					return errors.New("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
				}
				o.Name = args[0]
			}
			o.Labels, o.DriverOpts = spec.KeyValues(labels), spec.KeyValues(options)
			c, err := a.client()
			if err != nil {
				return err
			}
			res, err := c.VolumeCreate(cmd.Context(), o)
			if err != nil {
				return err
			}
			a.println(res.Volume.Name)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.Driver, "driver", "d", "local", "Name of the driver")
	f.StringVar(&o.Name, "name", "", "Name of the volume")
	_ = f.MarkHidden("name")
	f.StringArrayVarP(&options, "opt", "o", nil, "Option of the driver: KEY=VALUE")
	f.StringArrayVar(&labels, "label", nil, "Label of the volume: KEY[=VALUE]")
	return cmd
}

func volumeInspectCommand(a *app) *cobra.Command {
	cmd, _ := inspectOne(a, "volume", completeVolumes(a))
	return cmd
}

func volumeRmCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] VOLUME [VOLUME...]",
		Aliases:           []string{"remove"},
		Short:             "Remove volumes that no container has",
		Args:              minArgs(1),
		ValidArgsFunction: completeVolumes(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				_, err := c.VolumeRemove(ctx, name, moby.VolumeRemoveOptions{Force: force})
				return err
			}, nil)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "A volume that is not there is no error")
	return cmd
}

// volumeUpdateCommand is for volumes of a cluster.
func volumeUpdateCommand(a *app) *cobra.Command {
	var availability string
	cmd := &cobra.Command{
		Use:               "update [OPTIONS] VOLUME",
		Short:             "Change a volume of a cluster",
		Args:              exactArgs(1),
		ValidArgsFunction: completeVolumes(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			res, err := c.VolumeInspect(cmd.Context(), args[0], moby.VolumeInspectOptions{})
			if err != nil {
				return err
			}
			v := res.Volume.ClusterVolume
			if v == nil {
				return errors.New("can only update cluster volumes")
			}
			if cmd.Flags().Changed("availability") {
				v.Spec.Availability = volume.Availability(availability)
			}
			_, err = c.VolumeUpdate(cmd.Context(), v.ID, moby.VolumeUpdateOptions{Version: v.Version, Spec: &v.Spec})
			return err
		},
	}
	cmd.Flags().StringVar(&availability, "availability", "active", "May it be used: active, pause, drain")
	return cmd
}

func volumePruneCommand(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:               "prune [OPTIONS]",
		Short:             "Remove volumes that no container has",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "anonymous local volumes not used by at least one container"
			if o.all {
				if _, ok := o.filter["all"]; ok {
					return fmt.Errorf("conflicting options: cannot specify both --all and --filter all=1")
				}
				what = "all local volumes not used by at least one container"
			}
			return o.prune(cmd.Context(), a, what, o.volumes)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "Remove volumes with a name of their own too")
	return cmd
}

// volumes removes volumes and tells which, and how many bytes that gave back.
func (o *pruneOptions) volumes(ctx context.Context, a *app) (string, uint64, error) {
	res, err := a.conn.VolumePrune(ctx, moby.VolumePruneOptions{All: o.all, Filters: o.filters(a)})
	if err != nil || len(res.Report.VolumesDeleted) == 0 {
		return "", 0, err
	}
	return "Deleted Volumes:\n" + strings.Join(res.Report.VolumesDeleted, "\n") + "\n", res.Report.SpaceReclaimed, nil
}

// completeVolumes offers the names of volumes.
func completeVolumes(a *app) completer {
	return completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.VolumeList(ctx, moby.VolumeListOptions{})
		var names []string
		for i := range res.Items {
			names = append(names, res.Items[i].Name)
		}
		return names, err
	})
}
