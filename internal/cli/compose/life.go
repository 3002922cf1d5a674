package compose

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cluster"
)

// timeout is -t of what stops containers.
type timeout struct {
	seconds int
	flags   *pflag.FlagSet
}

func (t *timeout) add(cmd *cobra.Command) {
	t.flags = cmd.Flags()
	t.flags.IntVarP(&t.seconds, "timeout", "t", 0, "Seconds until what does not stop is killed")
}

// value is nil when nothing was said: then it is the container's own.
func (t *timeout) value() *int {
	if t.flags == nil || !t.flags.Changed("timeout") {
		return nil
	}
	return &t.seconds
}

func removing(volumes, force bool) act {
	return act{"Removing", "Removed", func(ctx context.Context, c *client.Client, x *container.Summary) error {
		_, err := c.ContainerRemove(ctx, x.ID, moby.ContainerRemoveOptions{RemoveVolumes: volumes, Force: force})
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}}
}

// found lists containers of the services that were named, in the rows in which they
// depend on each other.
func (s *session) found(ctx context.Context, o pick) ([][]container.Summary, string, error) {
	_, rows, name, err := s.foundOf(ctx, o)
	return rows, name, err
}

// foundOf is found, with the project, nil when there is no file of it.
func (s *session) foundOf(ctx context.Context, o pick) (*types.Project, [][]container.Summary, string, error) {
	p, name, err := s.named(ctx, o.services...)
	if err != nil {
		return nil, nil, "", err
	}
	list, err := s.containers(ctx, name, o)
	return p, layers(list), name, err
}

// current leaves out those containers whose places in a kept app others have taken or are about
// to: they are there to be looked at.
func (s *session) current(ctx context.Context, project string, list []container.Summary) ([]container.Summary, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	app, err := settled(ctx, c, project)
	if err != nil {
		if errdefs.IsNotFound(err) { // nobody keeps them
			err = nil
		}
		return list, err
	}
	holds := map[string]bool{}
	for _, sv := range app.Services {
		for i := range sv.Tasks {
			t := &sv.Tasks[i]
			holds[t.ID] = newest(&sv, i) && (!ended(t) || t.Desired != "running")
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(x container.Summary) bool {
		task := x.Labels[cluster.LabelTask]
		return task != "" && !holds[task]
	}), nil
}

func stopCommand(s *session) *cobra.Command {
	var t timeout
	cmd := command("stop [OPTIONS] [SERVICE...]", "Stop services", func(ctx context.Context, args []string) error {
		p, rows, _, err := s.foundOf(ctx, pick{services: args})
		if err != nil {
			return err
		}
		b := s.board("Stopping")
		defer b.Close()
		return s.apply(ctx, b, rows, true, s.stopping(p, t.value()))
	})
	t.add(cmd)
	return cmd
}

func startCommand(s *session) *cobra.Command {
	var wait bool
	var seconds int
	cmd := command("start [OPTIONS] [SERVICE...]", "Start services that were stopped", func(ctx context.Context, args []string) error {
		p, rows, name, err := s.foundOf(ctx, pick{services: args, stopped: true})
		switch {
		case err != nil:
			return err
		case len(rows) == 0 && len(args) > 0:
			return fmt.Errorf("service %q has no container to start: %s up makes it", args[0], s.engine.Name)
		case len(rows) == 0:
			return fmt.Errorf("project %q has no container to start: %s up makes them", name, s.engine.Name)
		}
		list, err := s.current(ctx, name, slices.Concat(rows...))
		if err != nil {
			return err
		}
		rows = layers(list)
		b := s.board("Running")
		defer b.Close()
		err = s.apply(ctx, b, rows, false, s.starting(p))
		if err != nil || !wait || s.flags.dry {
			return err
		}
		return apps{s}.untilHealthy(ctx, b, slices.Concat(rows...), seconds)
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "Wait until services run, and are healthy")
	cmd.Flags().IntVar(&seconds, "wait-timeout", 0, "Seconds to wait at most")
	return cmd
}

func restartCommand(s *session) *cobra.Command {
	var t timeout
	var noDeps bool
	cmd := command("restart [OPTIONS] [SERVICE...]", "Stop services and start them again", func(ctx context.Context, args []string) error {
		p, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		all, err := s.containers(ctx, name, pick{stopped: true})
		if err != nil {
			return err
		}
		if all, err = s.current(ctx, name, all); err != nil {
			return err
		}
		list := all
		if len(args) > 0 {
			meant := slices.Clone(args)
			for i := range all {
				for need, restart := range needs(&all[i]) {
					if restart && !noDeps && slices.Contains(args, need) {
						meant = append(meant, serviceOf(&all[i]))
					}
				}
			}
			list = slices.DeleteFunc(slices.Clone(all), func(c container.Summary) bool { return !slices.Contains(meant, serviceOf(&c)) })
		}
		b := s.board("Restarting")
		defer b.Close()
		return s.apply(ctx, b, layers(list), false, s.restarting(p, t.value()))
	})
	t.add(cmd)
	cmd.Flags().BoolVar(&noDeps, "no-deps", false, "Leave services that depend on them alone")
	return cmd
}

func killCommand(s *session) *cobra.Command {
	var sig string
	var orphans bool
	cmd := command("kill [OPTIONS] [SERVICE...]", "Send a signal to services: KILL unless told", func(ctx context.Context, args []string) error {
		p, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		list, err := s.containers(ctx, name, pick{services: args})
		if err != nil {
			return err
		}
		if len(args) == 0 && p != nil && !orphans {
			list = slices.DeleteFunc(list, func(c container.Summary) bool { _, ok := p.Services[serviceOf(&c)]; return !ok })
		}
		b := s.board("Killing")
		defer b.Close()
		return s.apply(ctx, b, [][]container.Summary{list}, false, act{"Killing", "Killed", func(ctx context.Context, c *client.Client, x *container.Summary) error {
			_, err := c.ContainerKill(ctx, x.ID, moby.ContainerKillOptions{Signal: sig})
			return err
		}})
	})
	cmd.Flags().StringVarP(&sig, "signal", "s", "SIGKILL", "Signal to send")
	cmd.Flags().BoolVar(&orphans, "remove-orphans", boolEnv("COMPOSE_REMOVE_ORPHANS"), "Those of services that the file does not have, too")
	return cmd
}

func rmCommand(s *session) *cobra.Command {
	var force, stop, volumes bool
	cmd := command("rm [OPTIONS] [SERVICE...]", "Remove the containers of services that have stopped", func(ctx context.Context, args []string) error {
		p, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		b := s.board("Removing")
		defer b.Close()
		if stop {
			running, err := s.containers(ctx, name, pick{services: args})
			if err != nil {
				return err
			}
			if err := s.apply(ctx, b, layers(running), true, s.stopping(p, nil)); err != nil {
				return err
			}
		}
		list, err := s.containers(ctx, name, pick{services: args, stopped: true, oneOff: true})
		if err != nil {
			return err
		}
		if !s.flags.dry || !stop {
			list = slices.DeleteFunc(list, func(c container.Summary) bool { return c.State == container.StateRunning })
		}
		if len(list) == 0 {
			fmt.Fprintln(s.err, "No stopped containers")
			return nil
		}
		if !force && !s.flags.dry {
			names := make([]string, len(list))
			for i := range list {
				names[i] = nameOf(&list[i])
			}
			fmt.Fprintln(s.out, "Going to remove", strings.Join(names, ", "))
			if yes, err := s.confirm("Are you sure?"); err != nil || !yes {
				return err
			}
		}
		return s.apply(ctx, b, [][]container.Summary{list}, false, removing(volumes, false))
	})
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "Do not ask")
	f.BoolVarP(&stop, "stop", "s", false, "Stop them first")
	f.BoolVarP(&volumes, "volumes", "v", false, "Remove their anonymous volumes, too")
	f.BoolP("all", "a", false, "Means nothing")
	f.Lookup("all").Hidden = true
	return cmd
}

// confirm asks; without a terminal nobody is there to say yes.
func (s *session) confirm(question string) (bool, error) {
	if !tty.IsTerminal(s.in) {
		return false, errors.New("nobody can be asked here: say -f or -y")
	}
	fmt.Fprintf(s.out, "%s [yN] ", question)
	line, err := bufio.NewReader(s.in).ReadString('\n')
	if err != nil && line == "" {
		return false, nil
	}
	word := strings.ToLower(strings.TrimSpace(line))
	return word == "y" || word == "yes", nil
}

func pauseCommand(s *session) *cobra.Command {
	return command("pause [SERVICE...]", "Freeze services", func(ctx context.Context, args []string) error {
		return s.toRunning(ctx, args, act{"Pausing", "Paused", func(ctx context.Context, c *client.Client, x *container.Summary) error {
			_, err := c.ContainerPause(ctx, x.ID, moby.ContainerPauseOptions{})
			return err
		}})
	})
}

func unpauseCommand(s *session) *cobra.Command {
	return command("unpause [SERVICE...]", "Let services that were frozen go on", func(ctx context.Context, args []string) error {
		return s.toRunning(ctx, args, act{"Unpausing", "Unpaused", func(ctx context.Context, c *client.Client, x *container.Summary) error {
			_, err := c.ContainerUnpause(ctx, x.ID, moby.ContainerUnpauseOptions{})
			return err
		}})
	})
}

func (s *session) toRunning(ctx context.Context, services []string, a act) error {
	rows, _, err := s.found(ctx, pick{services: services})
	if err != nil {
		return err
	}
	b := s.board(a.doing)
	defer b.Close()
	return s.apply(ctx, b, [][]container.Summary{slices.Concat(rows...)}, false, a)
}

func waitCommand(s *session) *cobra.Command {
	var down bool
	cmd := command("wait [OPTIONS] SERVICE [SERVICE...]", "Wait until a service's containers stop, and end with its code", func(ctx context.Context, args []string) error {
		_, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		list, err := s.containers(ctx, name, pick{services: args, stopped: true})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("no containers for project %q", name)
		}
		if s.flags.dry {
			return nil
		}
		code, err := s.exits(ctx, list, down)
		if err != nil {
			return err
		}
		if down {
			if err := (apps{s}).down(ctx, downOptions{}, nil); err != nil {
				return err
			}
		}
		return exitWith(code)
	})
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.Flags().BoolVar(&down, "down-project", false, "Remove the project when the first container has stopped")
	return cmd
}

// exits waits for all containers, or for the first, telling of each, and gives the
// code of the last that ended.
func (s *session) exits(ctx context.Context, list []container.Summary, first bool) (int, error) {
	c, err := s.client()
	if err != nil {
		return 0, err
	}
	type end struct {
		id   string
		code int
		err  error
	}
	ends := make(chan end, len(list))
	for i := range list {
		w := c.ContainerWait(ctx, list[i].ID, moby.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		go func() {
			select {
			case r := <-w.Result:
				ends <- end{id: list[i].ID, code: int(r.StatusCode)}
			case err := <-w.Error:
				ends <- end{err: err}
			}
		}()
	}
	code := 0
	for range list {
		e := <-ends
		if e.err != nil {
			return 0, e.err
		}
		s.printf("container %q exited with status code %d\n", e.id, e.code)
		if code = e.code; first {
			break
		}
	}
	return code, nil
}

func scaleArgs(args []string) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, a := range args {
		name, n, ok := strings.Cut(a, "=")
		var count uint64
		if _, err := fmt.Sscanf(n, "%d", &count); !ok || name == "" || err != nil || fmt.Sprint(count) != n {
			return nil, &exit{exitUsage, fmt.Errorf("invalid scale specifier %q: SERVICE=NUMBER wanted", a)}
		}
		out[name] = count
	}
	return out, nil
}
