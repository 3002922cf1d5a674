package cli

import (
	"context"
	"errors"
	"sync"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
)

// eachRunning makes a verb that does one thing to each of the running
// containers it is given.
func eachRunning(a *app, use string, do func(ctx context.Context, c *client.Client, name string) error) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error { return do(ctx, c, name) }, nil)
		},
	}
}

// inTurn runs op on one name after the other, whatever comes of it, and returns
// all errors. It ends early only where no engine is.
func inTurn(names []string, op func(name string) error) error {
	var errs []error
	for _, n := range names {
		if err := op(n); err != nil {
			errs = append(errs, err)
			if moby.IsErrConnectionFailed(err) {
				break
			}
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// each runs op on every name, up to 50 at a time, and prints the names that
// went well, in the order given, as they are done. report, when set, may take
// an error for itself by returning nil. An engine that cannot be reached is
// told once.
func (a *app) each(ctx context.Context, names []string, op func(ctx context.Context, name string) error, report func(error) error) error {
	results := make([]chan error, len(names))
	slots := make(chan struct{}, 50)
	var all sync.WaitGroup
	defer all.Wait()
	for i := range names {
		results[i] = make(chan error, 1)
	}
	all.Go(func() {
		for i, n := range names {
			slots <- struct{}{}
			all.Go(func() {
				results[i] <- op(ctx, n)
				<-slots
			})
		}
	})
	var errs []error
	unreachable := false
	for i, n := range names {
		err := <-results[i]
		if err != nil && report != nil {
			reported := report(err)
			if reported == nil {
				continue
			}
			err = reported
		}
		switch {
		case err == nil:
			a.println(n)
		case moby.IsErrConnectionFailed(err) && unreachable:
		default:
			unreachable = moby.IsErrConnectionFailed(err)
			errs = append(errs, err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
