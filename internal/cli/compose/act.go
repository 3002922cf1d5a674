package compose

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/compose/progress"
)

// act is something that is done to containers.
type act struct {
	doing, done string
	do          func(context.Context, *client.Client, *container.Summary) error
}

// limit is how many things are done at once.
func (s *session) limit() int {
	if s.flags.parallel > 0 {
		return s.flags.parallel
	}
	return 50
}

// apply does it to each container: a row of layers at a time, the last row first when
// reversed. A row is finished whatever fails, and then the rest is left.
func (s *session) apply(ctx context.Context, b *progress.Board, rows [][]container.Summary, reversed bool, a act) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	rows = slices.Clone(rows)
	if reversed {
		slices.Reverse(rows)
	}
	for _, row := range rows {
		errs, slots := make([]error, len(row)), make(chan struct{}, s.limit())
		var all sync.WaitGroup
		for i := range row {
			all.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				id := "Container " + nameOf(&row[i])
				b.Set(id, progress.Working, a.doing)
				if !s.flags.dry {
					errs[i] = a.do(ctx, c, &row[i])
				}
				if errs[i] != nil {
					b.Set(id, progress.Failed, "Error")
					return
				}
				b.Set(id, progress.Done, a.done)
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

// parallel does n things, so many at once as the flags say, and gives all errors.
func (s *session) parallel(n int, do func(i int) error) error {
	errs, slots := make([]error, n), make(chan struct{}, s.limit())
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = do(i)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
