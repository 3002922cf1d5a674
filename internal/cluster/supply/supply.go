// Package supply removes a node's networks and volumes whose objects are to be removed,
// and then the objects: the last part of an app that goes. It makes none: who prepares a
// task's container does.
package supply

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Engine has the networks and volumes. Kinds of errors: NotFound; Conflict for one that
// somebody else uses or has made, and that stays therefore. Its methods block.
type Engine interface {
	RemoveNetwork(ctx context.Context, n *cluster.Network) error
	RemoveVolume(ctx context.Context, v cluster.VolumeSpec) error
}

// Worker removes what is to be removed.
type Worker struct {
	s   store.Store
	e   Engine
	log *slog.Logger
	// gone are the ids of volumes that are not here any more, whose objects are others' to remove: what has
	// such a name by now is another volume. Of Run alone.
	gone map[string]bool
}

// New makes a Worker; nothing happens before Run.
func New(s store.Store, e Engine, log *slog.Logger) *Worker {
	return &Worker{s, e, log, map[string]bool{}}
}

// patience is how long the worker waits before it tries again what could not be done.
const patience = time.Second

// Run works until ctx ends, and blocks.
func (w *Worker) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		v := w.s.View()
		watch, err := w.s.Watch(v.Revision(), cluster.KindNetwork, cluster.KindVolume)
		if errdefs.IsOutOfRange(err) {
			continue // much was written between the two lines above
		}
		if err != nil {
			return err
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if !w.all(ctx, v) {
			wait, cancel = context.WithTimeout(ctx, patience)
		}
		_, err = watch.Next(wait)
		again := wait.Err() != nil
		cancel()
		if err != nil && !again && !errdefs.IsOutOfRange(err) {
			return err
		}
	}
	return nil
}

// all removes what a view says, and tells whether nothing is left to do.
func (w *Worker) all(ctx context.Context, v store.View) bool {
	done := true
	for _, n := range store.List[*cluster.Network](v) {
		if n.Spec.Removed {
			done = w.one(ctx, n, func() error { return w.e.RemoveNetwork(ctx, n) }, n.Spec.External, false) && done
		}
	}
	for _, vol := range store.List[*cluster.Volume](v) {
		if vol.Spec.Removed {
			done = w.one(ctx, vol, func() error { return w.removeVolume(ctx, vol) }, vol.Spec.External, vol.Status.Owed) && done
		}
	}
	maps.DeleteFunc(w.gone, func(id string, _ bool) bool {
		_, err := store.Find[*cluster.Volume](v, id)
		return err != nil
	})
	return done
}

// removeVolume removes a volume, once.
func (w *Worker) removeVolume(ctx context.Context, vol *cluster.Volume) error {
	if w.gone[vol.ID] {
		return nil
	}
	err := w.e.RemoveVolume(ctx, vol.Spec)
	if err == nil || errdefs.IsNotFound(err) {
		w.gone[vol.ID] = true
	}
	return err
}

// one removes a thing, unless it is somebody else's, and its object; false: later. A node that has
// come back may have containers that use what it owes: they end.
func (w *Worker) one(ctx context.Context, o cluster.Object, remove func() error, external, owed bool) bool {
	log := w.log.With("kind", o.Kind(), "name", o.Base().Name)
	if !external {
		switch err := remove(); {
		case err == nil, errdefs.IsNotFound(err):
		case errdefs.IsConflict(err) && owed:
			log.Debug("a volume of before is still in use: trying again", "error", err)
			return false
		case errdefs.IsConflict(err):
			log.Warn("Resource is still in use: it stays", "error", err)
		default:
			if ctx.Err() == nil {
				log.Error("it cannot be removed: trying again", "error", err)
			}
			return false
		}
	}
	switch _, err := w.s.Commit(ctx, store.Delete(o)); {
	case err == nil, errdefs.IsNotFound(err), ctx.Err() != nil:
	case errdefs.IsPermissionDenied(err): // of a cluster: who leads it removes the object
	default:
		if !errdefs.IsConflict(err) { // it was changed meanwhile: maybe it is wanted again
			log.Error("its object cannot be removed: trying again", "error", err)
		}
		return false
	}
	return true
}
