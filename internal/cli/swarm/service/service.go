// Package service holds the commands about services.
package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/progress"
	"escale.dev/escale/internal/cli/swarm/spec"
	"escale.dev/escale/internal/cli/verb"
)

// Commands are those of `service`.
func Commands(a *verb.App) []*cobra.Command {
	return []*cobra.Command{
		createCommand(a), inspectCommand(a), logsCommand(a), lsCommand(a), psCommand(a), rmCommand(a), rollbackCommand(a), scaleCommand(a),
		updateCommand(a),
	}
}

// names offers the names of services.
func names(a *verb.App) verb.Completer {
	return a.Complete(func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.ServiceList(ctx, moby.ServiceListOptions{})
		var names []string
		for _, s := range res.Items {
			names = append(names, s.Spec.Name)
		}
		return names, err
	})
}

// waiting are the options of commands that wait until a service is what it is to be.
type waiting struct{ detach, quiet bool }

func (w *waiting) addFlags(f *pflag.FlagSet, quiet bool) {
	f.BoolVarP(&w.detach, "detach", "d", false, "Do not wait until the service is what it is to be")
	if quiet {
		f.BoolVarP(&w.quiet, "quiet", "q", false, "Do not show how far that is")
	}
}

func (w *waiting) wait(ctx context.Context, a *verb.App, c *client.Client, name string) error {
	if w.detach {
		return nil
	}
	return progress.Service(ctx, c, a.Name, name, a.Out, w.quiet)
}

// auth is the login to the registry of an image, when it is to be sent along.
func auth(ctx context.Context, a *verb.App, f *pflag.FlagSet, image string) (string, error) {
	if send, err := f.GetBool("with-registry-auth"); err != nil || !send {
		return "", err
	}
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", err
	}
	return a.Auth(ctx, reference.Domain(ref)), nil
}

func createCommand(a *verb.App) *cobra.Command {
	var o spec.Options
	var w waiting
	cmd := &cobra.Command{
		Use:               "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short:             "Make a service: tasks of an image, kept running",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		Example: `escale service create --name web --replicas 3 -p 8080:80 nginx
escale service create --name agent --mode global --mount type=bind,src=/var/log,dst=/logs,readonly agent
escale service create --name nightly --mode replicated-job --replicas 10 --max-concurrent 2 crunch`,
	}
	f := cmd.Flags()
	o.AddCreateFlags(f)
	w.addFlags(f, true)
	completions(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		c, err := a.Connect()
		if err != nil {
			return err
		}
		s, err := o.Create(ctx, args[0], args[1:], IDs{c})
		if err != nil {
			return err
		}
		login, err := auth(ctx, a, f, args[0])
		if err != nil {
			return err
		}
		offline, _ := f.GetBool("no-resolve-image")
		res, err := c.ServiceCreate(ctx, moby.ServiceCreateOptions{Spec: *s, EncodedRegistryAuth: login, QueryRegistry: !offline})
		if err != nil {
			return err
		}
		warn(a, res.Warnings)
		a.Println(res.ID)
		return w.wait(ctx, a, c, res.ID)
	}
	return cmd
}

func warn(a *verb.App, warnings []string) {
	for _, w := range warnings {
		a.Complain(w)
	}
}

// completions offer the values of flags that have few.
func completions(cmd *cobra.Command) {
	for flag, words := range map[string][]string{
		"mode":                    {"replicated", "global", "replicated-job", "global-job"},
		"endpoint-mode":           {"vip", "dnsrr"},
		"restart-condition":       {"none", "on-failure", "any"},
		"update-order":            {"start-first", "stop-first"},
		"rollback-order":          {"start-first", "stop-first"},
		"update-failure-action":   {"pause", "continue", "rollback"},
		"rollback-failure-action": {"pause", "continue"},
	} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag, verb.Words(words...))
		}
	}
}

func updateCommand(a *verb.App) *cobra.Command {
	var o spec.Options
	var w waiting
	cmd := &cobra.Command{
		Use:               "update [OPTIONS] SERVICE",
		Short:             "Change a service; its tasks are exchanged as its policy of updates says",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		Example: `escale service update --image web:2 --update-parallelism 2 --update-delay 10s web
escale service update --env-add LEVEL=debug --publish-rm 80 web`,
	}
	f := cmd.Flags()
	o.AddUpdateFlags(f)
	w.addFlags(f, true)
	completions(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		c, err := a.Connect()
		if err != nil {
			return err
		}
		res, err := c.ServiceInspect(ctx, args[0], moby.ServiceInspectOptions{})
		if err != nil {
			return err
		}
		if back, _ := f.GetBool("rollback"); back {
			var others error
			f.Visit(func(x *pflag.Flag) {
				if x.Name != "rollback" && x.Name != "detach" && x.Name != "quiet" {
					others = errors.New("other flags may not be combined with --rollback")
				}
			})
			if others != nil {
				return others
			}
			return rollback(ctx, a, c, &w, args[0], &res.Service, moby.ServiceUpdateOptions{RegistryAuthFrom: swarm.RegistryAuthFromSpec})
		}
		return change(ctx, a, c, &o, &w, f, args[0], &res.Service)
	}
	return cmd
}

func change(ctx context.Context, a *verb.App, c *client.Client, o *spec.Options, w *waiting, f *pflag.FlagSet, name string, s *swarm.Service) error {
	if s.Spec.TaskTemplate.ContainerSpec == nil {
		return fmt.Errorf("service %s has no containers", name)
	}
	if err := o.Update(ctx, &s.Spec, IDs{c}); err != nil {
		return err
	}
	offline, _ := f.GetBool("no-resolve-image")
	u := moby.ServiceUpdateOptions{Version: s.Version, Spec: s.Spec, QueryRegistry: f.Changed("image") && !offline}
	var err error
	if u.EncodedRegistryAuth, err = auth(ctx, a, f, s.Spec.TaskTemplate.ContainerSpec.Image); err != nil {
		return err
	}
	if u.EncodedRegistryAuth == "" {
		u.RegistryAuthFrom = swarm.RegistryAuthFromSpec
	}
	res, err := c.ServiceUpdate(ctx, s.ID, u)
	if err != nil {
		return err
	}
	warn(a, res.Warnings)
	a.Println(name)
	return w.wait(ctx, a, c, name)
}

// rollback has the engine go back to the spec before.
func rollback(ctx context.Context, a *verb.App, c *client.Client, w *waiting, name string, s *swarm.Service, u moby.ServiceUpdateOptions) error {
	u.Version, u.Spec, u.Rollback = s.Version, s.Spec, "previous"
	res, err := c.ServiceUpdate(ctx, s.ID, u)
	if err != nil {
		return err
	}
	warn(a, res.Warnings)
	a.Println(name)
	return w.wait(ctx, a, c, name)
}

func rollbackCommand(a *verb.App) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:               "rollback [OPTIONS] SERVICE",
		Short:             "Bring back what a service was before its last change",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			res, err := c.ServiceInspect(cmd.Context(), args[0], moby.ServiceInspectOptions{})
			if err != nil {
				return err
			}
			return rollback(cmd.Context(), a, c, &w, args[0], &res.Service, moby.ServiceUpdateOptions{})
		},
	}
	w.addFlags(cmd.Flags(), true)
	return cmd
}

func scaleCommand(a *verb.App) *cobra.Command {
	var w waiting
	offer := names(a)
	cmd := &cobra.Command{
		Use:   "scale SERVICE=REPLICAS [SERVICE=REPLICAS...]",
		Short: "Change how many tasks services have",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := verb.MinArgs(1)(cmd, args); err != nil {
				return err
			}
			for _, arg := range args {
				if name, n, _ := strings.Cut(arg, "="); name == "" || n == "" {
					return fmt.Errorf("invalid scale specifier '%s'.\nSee '%s --help'.\n\nUsage:  %s\n\n%s", arg, cmd.CommandPath(), cmd.UseLine(), cmd.Short)
				}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			words, how := offer(cmd, args, typed)
			for i := range words {
				words[i] += "="
			}
			return words, how | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return scale(cmd.Context(), a, c, &w, args)
		},
	}
	w.addFlags(cmd.Flags(), false)
	return cmd
}

func scale(ctx context.Context, a *verb.App, c *client.Client, w *waiting, args []string) error {
	var errs []error
	var scaled []string
	for _, arg := range args {
		name, text, _ := strings.Cut(arg, "=")
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: invalid replicas value %s: %w", name, text, err))
			continue
		}
		if err := scaleOne(ctx, a, c, name, n); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			if moby.IsErrConnectionFailed(err) {
				break
			}
			continue
		}
		a.Printf("%s scaled to %d\n", name, n)
		scaled = append(scaled, name)
	}
	for _, name := range scaled {
		if err := w.wait(ctx, a, c, name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return verb.Join(errs)
}

func scaleOne(ctx context.Context, a *verb.App, c *client.Client, name string, n uint64) error {
	res, err := c.ServiceInspect(ctx, name, moby.ServiceInspectOptions{})
	if err != nil {
		return err
	}
	s := &res.Service
	switch m := s.Spec.Mode; {
	case m.Replicated != nil:
		m.Replicated.Replicas = &n
	case m.ReplicatedJob != nil:
		m.ReplicatedJob.TotalCompletions = &n
	default:
		return errors.New("scale can only be used with replicated or replicated-job mode")
	}
	up, err := c.ServiceUpdate(ctx, s.ID, moby.ServiceUpdateOptions{Version: s.Version, Spec: s.Spec})
	if err == nil {
		warn(a, up.Warnings)
	}
	return err
}

func rmCommand(a *verb.App) *cobra.Command {
	return &cobra.Command{
		Use:               "rm SERVICE [SERVICE...]",
		Aliases:           []string{"remove"},
		Short:             "Remove services with all their tasks",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return a.InTurn(args, func(name string) error {
				_, err := c.ServiceRemove(cmd.Context(), name, moby.ServiceRemoveOptions{})
				return err
			})
		},
	}
}

// IDs finds IDs by names, of one engine.
type IDs struct{ Client *client.Client }

// Network gives the ID of a network of the cluster.
func (i IDs) Network(ctx context.Context, name string) (string, error) {
	res, err := i.Client.NetworkInspect(ctx, name, moby.NetworkInspectOptions{Scope: "swarm"})
	return res.Network.ID, err
}

func named(names []string) moby.Filters {
	f := moby.Filters{}
	return f.Add("name", names...)
}

// Secrets gives the IDs of those that are there.
func (i IDs) Secrets(ctx context.Context, names []string) (map[string]string, error) {
	res, err := i.Client.SecretList(ctx, moby.SecretListOptions{Filters: named(names)})
	found := map[string]string{}
	for _, s := range res.Items {
		found[s.Spec.Name] = s.ID
	}
	return found, err
}

// Configs gives the IDs of those that are there.
func (i IDs) Configs(ctx context.Context, names []string) (map[string]string, error) {
	res, err := i.Client.ConfigList(ctx, moby.ConfigListOptions{Filters: named(names)})
	found := map[string]string{}
	for _, s := range res.Items {
		found[s.Spec.Name] = s.ID
	}
	return found, err
}
