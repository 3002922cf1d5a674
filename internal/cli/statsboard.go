package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/tty"
)

// How often the figures are drawn, and how long the first drawing waits for
// all containers to have some.
const (
	redrawEvery = 500 * time.Millisecond
	firstWait   = 3 * time.Second
)

// board is the live list of figures.
type board struct {
	a      *app
	c      *client.Client
	o      *statsOptions
	format table.Format
	follow bool // containers that start come in, those that end go

	mu      sync.Mutex
	rows    []*boardRow
	pending int // rows without figures yet
	changed chan struct{}
	all     sync.WaitGroup
}

// boardRow is a container on the board.
type boardRow struct {
	statsRow
	cancel context.CancelFunc
	err    error
	done   bool
	seen   bool // figures came, or none will
}

// show draws until ctx ends, or until no container that was named is left.
func (b *board) show(ctx context.Context, names []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer b.all.Wait()
	defer cancel()
	b.changed = make(chan struct{}, 1)
	if b.follow {
		// First the events, then the list: nothing that starts in between is missed.
		began := b.watch(ctx)
		<-began
		ids, err := b.o.listed(ctx, b.c)
		if err != nil {
			return err
		}
		names = ids
	}
	for _, name := range names {
		b.add(ctx, name)
	}
	b.awaitFirst(ctx)
	if err := b.refused(); err != nil {
		return err
	}
	live := tty.IsTerminal(b.a.out)
	t := time.NewTicker(redrawEvery)
	defer t.Stop()
	for beat := 0; ; beat++ {
		// A file or a pipe gets what is new, once a second.
		if live || beat%2 == 0 {
			if err := b.draw(live, beat == 0); err != nil {
				return err
			}
		}
		if !b.follow && b.ended() {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// add puts a container on the board unless it is there.
func (b *board) add(ctx context.Context, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.rows, func(r *boardRow) bool { return r.container == name }) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &boardRow{cancel: cancel}
	r.statsRow = statsRow{container: name, s: &container.StatsResponse{}, trunc: !b.o.noTrunc}
	if b.follow {
		r.s.ID = name
	}
	b.rows, b.pending = append(b.rows, r), b.pending+1
	b.all.Go(func() {
		err := samples(ctx, b.c, name, true, func(s *container.StatsResponse) {
			b.set(func() { r.s, r.known = s, true; b.first(r) })
		})
		b.set(func() { r.err, r.done = err, true; b.first(r) })
	})
}

// first notes that a row has been heard of. Called with the lock held.
func (b *board) first(r *boardRow) {
	if !r.seen {
		r.seen = true
		b.pending--
	}
}

// remove takes a container off the board.
func (b *board) remove(name string) {
	b.set(func() {
		b.rows = slices.DeleteFunc(b.rows, func(r *boardRow) bool {
			if r.container != name {
				return false
			}
			r.cancel()
			b.first(r)
			return true
		})
	})
}

func (b *board) set(change func()) {
	b.mu.Lock()
	change()
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// watch follows the events that bring containers in and take them away. The
// channel closes once they are followed.
func (b *board) watch(ctx context.Context) <-chan struct{} {
	began := make(chan struct{})
	stream := b.c.Events(ctx, moby.EventsListOptions{Filters: moby.Filters{"type": {"container": true}}})
	b.all.Go(func() {
		close(began)
		for {
			select {
			case e := <-stream.Messages:
				switch e.Action {
				case events.ActionStart:
					b.add(ctx, e.Actor.ID)
				case events.ActionCreate:
					if b.o.all {
						b.add(ctx, e.Actor.ID)
					}
				case events.ActionDie:
					if !b.o.all {
						b.remove(e.Actor.ID)
					}
				case events.ActionDestroy:
					b.remove(e.Actor.ID)
				}
			case <-stream.Err: // what is on the board stays
				return
			case <-ctx.Done():
				return
			}
		}
	})
	return began
}

// awaitFirst blocks until every row has been heard of, for a while at most.
func (b *board) awaitFirst(ctx context.Context) {
	patience := time.NewTimer(firstWait)
	defer patience.Stop()
	for {
		b.mu.Lock()
		n := b.pending
		b.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-b.changed:
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// refused tells of named containers that the engine does not show.
func (b *board) refused() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.follow {
		return nil
	}
	var errs []error
	for _, r := range b.rows {
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	return errors.Join(errs...)
}

// ended reports whether no container sends figures any more.
func (b *board) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !slices.ContainsFunc(b.rows, func(r *boardRow) bool { return !r.done })
}

// draw prints all rows; on a terminal over those before, without flicker.
func (b *board) draw(live, first bool) error {
	b.mu.Lock()
	rows := make([]table.Row, len(b.rows))
	for i, r := range b.rows {
		row := r.statsRow
		rows[i] = &row
	}
	b.mu.Unlock()
	var text bytes.Buffer
	if err := table.Write(&text, b.format, &statsRow{}, rows); err != nil {
		return err
	}
	if !live {
		_, err := text.WriteTo(b.a.out)
		return err
	}
	const home, clearLine, clearBelow, clearAll = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J"
	var out bytes.Buffer
	if first {
		out.WriteString(clearAll)
	}
	out.WriteString(home)
	for line := range bytes.Lines(text.Bytes()) {
		out.Write(bytes.TrimSuffix(line, []byte("\n")))
		out.WriteString(clearLine + "\n")
	}
	out.WriteString(clearBelow)
	_, err := out.WriteTo(b.a.out)
	return err
}
