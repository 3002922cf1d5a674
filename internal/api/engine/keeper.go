package engine

import (
	"context"
	"errors"
	"fmt"

	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

// Keeper has containers that an orchestrator keeps, found by their labels; see
// apps.Apps. What clients do to them by these routes is meant, and left so: a stop and a
// removal, whatever becomes of the request, until they are started again.
type Keeper interface {
	// Creating refuses (Conflict) a container of a project that is kept.
	Creating(labels map[string]string) error
	// Halt is told of a stop or removal before it is done.
	Halt(ctx context.Context, labels map[string]string) error
	// Resume is told of a start before it is done. Conflict when it may not be.
	Resume(ctx context.Context, labels map[string]string) error
}

// halting tells the keeper of a stop or removal, if it is of a container that it keeps.
// Whose a container is stands in its record: labels are copied.
func (s *Server) halting(ctx context.Context, rec *container.Record) error {
	if s.cfg.Keeper == nil || rec.Owner == nil {
		return nil
	}
	return s.cfg.Keeper.Halt(ctx, rec.Config.Labels)
}

// resuming tells the keeper of a start of a container that it keeps; kept tells whether
// it does, and may start it, too. One that is not there is for the start to refuse.
func (s *Server) resuming(ctx context.Context, ref string) (kept bool, err error) {
	v, err := s.cfg.Containers.Get(ref)
	if err != nil || s.cfg.Keeper == nil || v.Owner == nil {
		return false, nil
	}
	if err := s.cfg.Keeper.Resume(ctx, v.Config.Labels); err != nil {
		return true, fmt.Errorf("container %s: %w", v.Name, err)
	}
	return !v.State.Running(), nil
}

// startKept starts a container. That its keeper was quicker is no news to the client.
func (s *Server) startKept(ctx context.Context, ref string) error {
	kept, err := s.resuming(ctx, ref)
	if err != nil {
		return err
	}
	err = s.cfg.Containers.Start(ctx, ref)
	if kept && errors.Is(err, container.ErrNotModified) {
		return nil
	}
	return err
}

// restartable refuses a restart policy for a container whose restarts another decides.
func (s *Server) restartable(ref string) error {
	if v, err := s.cfg.Containers.Get(ref); err == nil && v.Owner != nil {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is kept by the engine: its restart policy is that of its service", v.Name))
	}
	return nil
}
