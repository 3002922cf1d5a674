package daemon

import (
	"context"
	"errors"
	"math"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/executor"
	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// taskContainers is the engine's containers as the orchestrator has them.
type taskContainers struct {
	m     *container.Manager
	files taskFiles
}

var _ executor.Containers = taskContainers{}

func newTaskContainers(d *Daemon) executor.Containers {
	return taskContainers{d.containers, d.taskFiles()}
}

// Create implements executor.Containers.
func (c taskContainers) Create(ctx context.Context, r executor.Request) (string, error) {
	made, err := c.m.Create(ctx, container.Create{
		Name: r.Name, Platform: r.Platform, Config: r.Config, HostConfig: r.Host, Networking: &network.NetworkingConfig{EndpointsConfig: r.Networks},
		ImageID: r.ImageID, TakesOver: r.TakesOver,
		Owner: &container.Owner{Node: r.Node, Task: r.Task, Restart: r.Restart},
	})
	return string(made.ID), err
}

// Start implements executor.Containers.
func (c taskContainers) Start(ctx context.Context, id string) error {
	return whileWanted(ctx, func() error { return c.m.Kept().Start(ctx, id) })
}

// Stop implements executor.Containers.
func (c taskContainers) Stop(ctx context.Context, id string, grace time.Duration) error {
	s := container.Stop{Join: true}
	if grace > 0 {
		n := int(math.Ceil(grace.Seconds()))
		s.Timeout = &n
	}
	return whileWanted(ctx, func() error { return c.m.Stop(ctx, id, s) })
}

// whileWanted waits for what cannot be called off until it is done or ctx ends; then it
// goes on, for nobody: an engine that ends does not wait for a program that is deaf.
func whileWanted(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- unlessDone(f()) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unlessDone is err, unless it says that all is as it is to be already.
func unlessDone(err error) error {
	if errors.Is(err, container.ErrNotModified) {
		return nil
	}
	return err
}

// Exec implements executor.Containers.
func (c taskContainers) Exec(ctx context.Context, id string, h cluster.Hook, timeout time.Duration) (int, string, error) {
	return c.m.Kept().Exec(ctx, id, container.ExecConfig{
		Cmd: h.Command, Env: h.Env, WorkingDir: h.WorkingDir, User: h.User, Privileged: h.Privileged,
	}, timeout)
}

// Remove implements executor.Containers.
func (c taskContainers) Remove(ctx context.Context, id string) error {
	return whileWanted(ctx, func() error { return c.m.Remove(ctx, id, container.Remove{Force: true, Volumes: true}) })
}

// Rename implements executor.Containers.
func (c taskContainers) Rename(ctx context.Context, id, name string) error {
	return c.m.Rename(ctx, id, name)
}

// Wait implements executor.Containers.
func (c taskContainers) Wait(ctx context.Context, id string, health func(apicontainer.HealthStatus)) (int, error) {
	return c.m.Kept().Attend(ctx, id, health)
}

// Of implements executor.Containers.
func (c taskContainers) Of(_ context.Context, task string) (executor.Container, error) {
	v, err := c.m.Kept().Of(task)
	if err != nil {
		return executor.Container{}, err
	}
	return taskContainer(&v), nil
}

// Kept implements executor.Containers.
func (c taskContainers) Kept(context.Context) ([]executor.Container, error) {
	views := c.m.Kept().List()
	out := make([]executor.Container, len(views))
	for i := range views {
		out[i] = taskContainer(&views[i])
	}
	return out, nil
}

func taskContainer(v *container.View) executor.Container {
	out := executor.Container{ID: string(v.ID), Name: v.Name, Labels: v.Config.Labels, Anonymous: v.Anonymous(), PID: v.State.Pid}
	for _, e := range v.Endpoints {
		for p, list := range e.Ports {
			if out.Ports == nil {
				out.Ports = network.PortMap{}
			}
			out.Ports[p] = append(out.Ports[p], list...)
		}
	}
	if v.Owner != nil { // else it was let go just now
		out.Task, out.Node = v.Owner.Task, v.Owner.Node
	}
	return out
}

// Release implements executor.Containers.
func (c taskContainers) Release(ctx context.Context, id string) error {
	v, err := c.m.Get(id)
	if err != nil || v.Owner == nil {
		return err
	}
	return c.m.Kept().Release(ctx, id, c.files.of(v.Owner.Task))
}
