package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/api/node"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// How long managers of before have to say that one leads, and how long it has to go on doing so: one that has
// just lost the others, and with them its lead, finds that out some seconds later.
const (
	asking = 3 * time.Second
	steady = 8 * time.Second
)

// living looks whether the cluster of a backup goes on: the managers that it knows are asked at their
// addresses, as nodes of it, which the root in the backup allows. Where one leads, and says so itself,
// FailedPrecondition. It blocks for as long as asking, and longer when one leads. Managers of another root, elsewhere, or that
// cannot be reached from here are not seen.
func (m restorer) living(ctx context.Context, saved store.Store) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dir := filepath.Join(m.cfg.Dir, readyDir) // an engine that starts anew removes it
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	found := make(chan error, 1)
	var asked sync.WaitGroup
	for _, n := range store.List[*cluster.Node](saved.View()) {
		if n.Status.Manager == nil || n.Status.Manager.Addr == "" {
			continue
		}
		keeper, err := identify(dir, saved, n.ID)
		if err != nil {
			return err
		}
		asked.Go(func() {
			who := goesOn(ctx, node.NewMember(keeper, m.log), n.Status.Manager.Addr)
			if who == nil {
				return
			}
			name := who.Node
			if n, err := store.Find[*cluster.Node](saved.View(), who.Node); err == nil && n.Name != "" {
				name = n.Name
			}
			select {
			case found <- fmt.Errorf("manager %s at %s leads this cluster: two of it would run the same services. Have its managers leave (swarm leave --force) or end them first; --force restores nevertheless: %w", name, who.Addr, errdefs.ErrFailedPrecondition):
				cancel() // one is enough
			default:
			}
		})
	}
	asked.Wait()
	select {
	case err := <-found:
		return err
	default:
		return nil
	}
}

// goesOn is the manager that leads for as long as steady, as the one at addr knows it; nil: there is none.
func goesOn(ctx context.Context, as *node.Member, addr string) (who *dispatch.Manager) {
	for begin := time.Now(); ctx.Err() == nil; {
		if who = leads(ctx, as, addr); who == nil || time.Since(begin) > steady {
			return who
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}

// leads is the manager that leads, as the one at addr knows it and it says itself; nil: there is none, or
// nobody answers.
func leads(ctx context.Context, as *node.Member, addr string) *dispatch.Manager {
	for range 2 {
		asking, cancel := context.WithTimeout(ctx, asking)
		c, err := as.Ask(asking, addr, 0)
		cancel()
		i := slices.IndexFunc(c.Managers, func(x dispatch.Manager) bool { return x.Leader })
		if err != nil || i < 0 {
			return nil
		}
		who := c.Managers[i]
		if who.Addr == addr && !c.Serves {
			return nil // it has led
		}
		if who.Addr == addr {
			return &who
		}
		if _, _, err := net.SplitHostPort(who.Addr); err != nil {
			return nil
		}
		addr = who.Addr
	}
	return nil
}
