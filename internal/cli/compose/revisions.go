package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
)

func scaleCommand(s *session) *cobra.Command {
	var noDeps bool
	cmd := command("scale [OPTIONS] SERVICE=REPLICAS...", "Change how many containers services have", func(ctx context.Context, args []string) error {
		counts, err := scaleArgs(args)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		_, name, err := s.named(ctx, slices.Sorted(maps.Keys(counts))...)
		if err != nil {
			return err
		}
		app, there, err := apps{s}.app(ctx, name)
		if err != nil {
			return err
		}
		missing := !there
		if there {
			for service := range counts {
				missing = missing || !slices.ContainsFunc(app.Services, func(sv client.AppService) bool { return sv.Name == service })
			}
		}
		if missing || s.flags.dry {
			// What is not there yet is made with that number.
			return apps{s}.up(ctx, upOptions{detach: true, noDeps: noDeps, scale: args, wanted: wanted{pull: "policy"}}, slices.Sorted(maps.Keys(counts)))
		}
		plan, err := c.AppScale(ctx, name, counts)
		if err != nil {
			return err
		}
		b := s.board("Running")
		defer b.Close()
		return apps{s}.until(ctx, b, plan, detached(0, false))
	})
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.Flags().BoolVar(&noDeps, "no-deps", false, "Leave what they depend on alone")
	return cmd
}

// app gives the app, when the engine keeps it.
func (s apps) app(ctx context.Context, name string) (*client.App, bool, error) {
	there, err := s.kept(ctx, name)
	if err != nil || !there {
		return nil, false, err
	}
	c, err := s.client()
	if err != nil {
		return nil, false, err
	}
	app, err := c.App(ctx, name)
	return app, err == nil, err
}

// chosen gives the app that a command is for, and the engine.
func (s apps) chosen(ctx context.Context, args []string) (*client.Client, string, error) {
	name, err := s.appName(ctx, args)
	if err != nil {
		return nil, "", err
	}
	c, err := s.client()
	return c, name, err
}

func historyCommand(s *session) *cobra.Command {
	var format string
	var source uint64
	cmd := command("history [OPTIONS] [APP]", "Show what an app has been, the newest first", func(ctx context.Context, args []string) error {
		c, name, err := apps{s}.chosen(ctx, args)
		if err != nil {
			return err
		}
		list, err := c.AppHistory(ctx, name)
		if err != nil {
			return err
		}
		if source > 0 {
			for _, r := range list {
				if r.Number == source {
					s.printf("%s", r.Source)
					return nil
				}
			}
			return fmt.Errorf("app %s has no revision %d", name, source)
		}
		switch format {
		case "json":
			for _, r := range list {
				if err := (lists{s}).json(r); err != nil {
					return err
				}
			}
			return nil
		case "", "table":
		default:
			return fmt.Errorf("unsupported format %q: table or json wanted", format)
		}
		return lists{s}.columns([]string{"REVISION", "ASKED", "SERVICES"}, func(line func(...string)) {
			for _, r := range list {
				var images []string
				for _, sv := range slices.Sorted(maps.Keys(r.Services)) {
					images = append(images, sv+"="+r.Services[sv])
				}
				n := strconv.FormatUint(r.Number, 10)
				if r.Current {
					n += " *"
				}
				line(n, units.HumanDuration(time.Since(r.At))+" ago", strings.Join(images, " "))
			}
		})
	})
	cmd.Args = cobra.MaximumNArgs(1)
	cmd.Flags().StringVar(&format, "format", "table", "table or json")
	cmd.Flags().Uint64Var(&source, "source", 0, "Print the compose file of this revision, as it was understood")
	return cmd
}

func rollbackCommand(s *session) *cobra.Command {
	var to uint64
	var detach bool
	cmd := command("rollback [OPTIONS] [APP]", "Bring back what an app was before", func(ctx context.Context, args []string) error {
		c, name, err := apps{s}.chosen(ctx, args)
		if err != nil {
			return err
		}
		plan, err := c.AppRollback(ctx, name, to, s.flags.dry)
		if err != nil {
			return err
		}
		if s.flags.dry {
			apps{s}.planned(plan)
			return nil
		}
		if detach {
			return nil
		}
		b := s.board("Running")
		defer b.Close()
		return apps{s}.until(ctx, b, plan, detached(0, false))
	})
	cmd.Args = cobra.MaximumNArgs(1)
	cmd.Flags().Uint64Var(&to, "to", 0, "The revision to bring back (default: the one before; see history)")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "Do not wait until it is there")
	return cmd
}

func releaseCommand(s *session) *cobra.Command {
	cmd := command("release [APP]", "Leave an app's containers to you: the engine keeps them no more", func(ctx context.Context, args []string) error {
		c, name, err := apps{s}.chosen(ctx, args)
		if err != nil {
			return err
		}
		if s.flags.dry {
			return errors.New("--dry-run: release changes nothing that could be shown: containers stay as they are")
		}
		if err := c.AppRelease(ctx, name); err != nil {
			return err
		}
		b := s.board("Releasing")
		defer b.Close()
		return apps{s}.gone(ctx, b, c, name, "Releasing", "Released")
	})
	cmd.Args = cobra.MaximumNArgs(1)
	return cmd
}
