package cluster

import "context"

// Executor has the containers of a node.
type Executor interface {
	// Controller is that of a task's container, which need not be there.
	Controller(t *Task) Controller

	// Known are the ids of the tasks that have containers.
	Known(ctx context.Context) ([]string, error)
}

// Controller drives the container of one task. Its methods are idempotent: they are
// called again after an engine has ended amid them. They block.
type Controller interface {
	// Prepare makes the container and what it needs, as far as it can be before it runs.
	Prepare(ctx context.Context) error

	// Start starts it; what runs already is left alone.
	Start(ctx context.Context) (ContainerStatus, error)

	// Runs tells whether its process is there; without a container it is not.
	Runs(ctx context.Context) (bool, error)

	// Wait blocks until the container has ended and gives its exit code. It calls
	// healthy when a health check passes, or at once when there is none. One that turns
	// unhealthy is an error, with the container still there.
	Wait(ctx context.Context, healthy func()) (code int, err error)

	// Shutdown ends the container, with its stop signal and its time of grace first.
	Shutdown(ctx context.Context) error

	// Remove removes it, running or not, with its anonymous volumes.
	Remove(ctx context.Context) error

	// Release lets it go: it stays as it is, and is nobody's from then on. One that is
	// not there is NotFound.
	Release(ctx context.Context) error
}
