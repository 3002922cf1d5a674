package cli

import (
	"context"
	"errors"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// stopFlags are the flags of `stop` and `restart`.
type stopFlags struct {
	signal  string
	timeout int
}

func (s *stopFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&s.signal, "signal", "s", "", "Signal to send instead of the container's stop signal")
	f.IntVarP(&s.timeout, "timeout", "t", 0, "Seconds to wait before killing the container (-1 for ever)")
	f.IntVar(&s.timeout, "time", 0, "Seconds to wait before killing the container")
	_ = f.MarkDeprecated("time", "use --timeout instead")
	_ = cmd.RegisterFlagCompletionFunc("signal", completeWords(signals...))
}

// wait gives the timeout, nil for the container's own.
func (s *stopFlags) wait(f *pflag.FlagSet) (*int, error) {
	old, now := f.Changed("time"), f.Changed("timeout")
	switch {
	case old && now:
		return nil, errors.New("conflicting options: cannot specify both --timeout and --time")
	case old || now:
		return &s.timeout, nil
	}
	return nil, nil
}

func stopCommand(a *app) *cobra.Command {
	var s stopFlags
	cmd := &cobra.Command{
		Use: "stop [OPTIONS] CONTAINER [CONTAINER...]",
		Example: `escale stop web
escale stop -t 1 $(escale ps -q)`,
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			timeout, err := s.wait(cmd.Flags())
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				_, err := c.ContainerStop(ctx, name, moby.ContainerStopOptions{Signal: s.signal, Timeout: timeout})
				return err
			}, nil)
		},
	}
	s.add(cmd)
	return orApp(a, cmd)
}
