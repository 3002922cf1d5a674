// Package executor makes containers of tasks, and sees to the networks, volumes, images
// and files that they need. The engine whose containers they become is behind
// interfaces; a task's container is found by a label, so that nothing has to be
// remembered.
package executor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/locker"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// The labels of a task's container, Docker's where it has them.
const (
	LabelTask     = cluster.LabelTask
	LabelTaskName = "com.docker.swarm.task.name"
	LabelService  = "com.docker.swarm.service.id"
	LabelOfName   = "com.docker.swarm.service.name" // of services that no app has
	LabelNode     = "com.docker.swarm.node.id"
	LabelNumber   = "com.docker.compose.container-number"
	LabelBalance  = "escale.balance" // containers with one value share published ports
	labelCompose  = "com.docker.compose.service"
)

// Containers are the engine's. Kinds of errors are theirs; one that is not there is
// NotFound. Its methods block.
type Containers interface {
	// Create makes a container and gives its id. AlreadyExists or Conflict for a name in use.
	Create(ctx context.Context, r Request) (string, error)
	Start(ctx context.Context, id string) error
	// Stop ends it, unless it does not run, with its stop signal first; 0 of grace is
	// what the container says. It waits for a stop that somebody else has under way.
	Stop(ctx context.Context, id string, grace time.Duration) error
	// Exec runs a command in one that runs, to its end, and gives its code and the
	// beginning of what it wrote; one that takes longer than timeout, 0 for never, is
	// killed, and is an error.
	Exec(ctx context.Context, id string, h cluster.Hook, timeout time.Duration) (code int, output string, err error)
	// Remove removes it, running or not, with its anonymous volumes.
	Remove(ctx context.Context, id string) error
	Rename(ctx context.Context, id, name string) error
	// Wait blocks until it does not run and gives the exit code; restarts by clients are
	// seen through. It tells each state of health on the way, the present one first; ""
	// for one without a health check.
	Wait(ctx context.Context, id string, health func(container.HealthStatus)) (int, error)
	// Of is the container of a task.
	Of(ctx context.Context, task string) (Container, error)
	// Kept are all containers of tasks, of this orchestrator's and of others'.
	Kept(ctx context.Context) ([]Container, error)
	// Release makes it a container that no task has, with its own restart policy, and
	// leaves it as it is. Idempotent.
	Release(ctx context.Context, id string) error
}

// Request is a container to be.
type Request struct {
	Name, Platform string
	Config         *container.Config
	Host           *container.HostConfig
	Networks       map[string]*network.EndpointSettings
	ImageID        string            // what the image's name is to mean; "": whatever it means
	TakesOver      map[string]string // volumes in the place of anonymous ones, by destination
	Task, Node     string
	Restart        container.RestartPolicy // that it gets when it is let go
}

// Container is one of the engine's that a task has.
type Container struct {
	ID, Name   string
	Task, Node string
	Labels     map[string]string
	Anonymous  map[string]string // volumes that nobody gave a name, by destination
	PID        int
	Ports      network.PortMap // as they are published now
}

// Supplies are what containers need. The methods are idempotent, and block.
type Supplies interface {
	// Image sees to it that an image is there, as a policy of pulling has it, and gives the
	// id by which it is meant; "" when it is whatever its name stands for.
	Image(ctx context.Context, w Image) (id string, err error)
	// Network sees to it that a network is there, and as it was made last. Unavailable
	// for one that has to be made anew and is in use still.
	Network(ctx context.Context, n cluster.NetworkSpec) error
	// Volume sees to it that a volume is there.
	Volume(ctx context.Context, v cluster.VolumeSpec) error
	// Files puts the files of a task where no disk keeps them and gives their paths, in
	// order; those that are there already stay as they are. Without files it takes away
	// what is there.
	Files(ctx context.Context, task string, files []File) ([]string, error)
	// Sweep takes away the files of all tasks but those that are kept.
	Sweep(ctx context.Context, kept func(task string) bool) error
}

// Image is one that a container is to be made of.
type Image struct {
	Name     string // as it was asked for
	ID       string // that the name stood for when it was asked for; "": that is not known
	Policy   string // of pulling; see cluster.TaskSpec
	Platform string
	Auth     string // for the registry
}

// File is the content of a secret or a config, as a task has it.
type File struct {
	Data     []byte
	UID, GID int
	Mode     uint32
}

// Executor makes containers of tasks.
type Executor struct {
	s        store.Store
	c        Containers
	supplies Supplies
	node     string
	log      *slog.Logger
	names    *locker.Locker // by the name of a container that is being given to one
}

var _ cluster.Executor = (*Executor)(nil)

// New makes an Executor of a node.
func New(node string, s store.Store, c Containers, supplies Supplies, log *slog.Logger) *Executor {
	return &Executor{s: s, c: c, supplies: supplies, node: node, log: log, names: locker.New()}
}

// Known implements cluster.Executor.
func (x *Executor) Known(ctx context.Context) ([]string, error) {
	list, err := x.c.Kept(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range list {
		if c.Node == x.node {
			out = append(out, c.Task)
		}
	}
	return out, nil
}

// Controller implements cluster.Executor.
func (x *Executor) Controller(t *cluster.Task) cluster.Controller { return &controller{x: x, t: t} }

// controller is that of one task.
type controller struct {
	x *Executor
	t *cluster.Task
}

// Prepare implements cluster.Controller.
func (c *controller) Prepare(ctx context.Context) error {
	v := c.x.s.View()
	_, err := c.x.c.Of(ctx, c.t.ID)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err == nil { // it is there already; what it needs may have been taken away since
		_, _, err := c.files(ctx, v)
		return errors.Join(c.surroundings(ctx, v), err)
	}
	t := c.t
	image, err := c.x.supplies.Image(ctx, Image{
		Name: t.Spec.Container.Image, ID: t.Spec.ImageID, Policy: t.Spec.Pull, Platform: t.Spec.Platform, Auth: t.Spec.Auth,
	})
	if err != nil {
		return err
	}
	if err := c.surroundings(ctx, v); err != nil {
		return err
	}
	n, err := c.made(ctx, v)
	n.ImageID = image
	if err != nil {
		return err
	}
	c.x.names.Lock(n.Name)
	defer c.x.names.Unlock(n.Name)
	_, err = c.x.c.Create(ctx, n)
	if errdefs.IsAlreadyExists(err) || errdefs.IsConflict(err) {
		if err = c.yield(ctx, n.Name, err); err == nil {
			_, err = c.x.c.Create(ctx, n)
		}
	}
	return err
}

// made is the container as it is to be made.
func (c *controller) made(ctx context.Context, v store.View) (Request, error) {
	t := c.t
	cfg, host := *t.Spec.Container, *t.Spec.Host
	cfg.Labels = c.labels()
	// Whether and when it starts again is decided elsewhere: a task is never restarted.
	host.RestartPolicy, host.AutoRemove = container.RestartPolicy{Name: container.RestartPolicyDisabled}, false
	if err := c.publish(v, &cfg, &host); err != nil {
		return Request{}, err
	}
	paths, targets, err := c.files(ctx, v)
	if err != nil {
		return Request{}, err
	}
	host.Mounts = slices.Clone(host.Mounts)
	for i, path := range paths {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: path, Target: targets[i], ReadOnly: true})
	}
	if err := c.expand(v, &cfg, &host); err != nil {
		return Request{}, err
	}
	c.resources(&cfg)
	c.share(ctx, v, &host)
	return Request{
		Name: t.ContainerName(), Platform: t.Spec.Platform, Config: &cfg, Host: &host, Networks: c.endpoints(v, &host),
		Task: t.ID, Node: c.x.node, Restart: t.Spec.Host.RestartPolicy, TakesOver: c.before(ctx, v),
	}, nil
}

// before are the anonymous volumes of the newest container that the task's place had,
// unless this task is to have fresh ones: what a program wrote there outlives it.
func (c *controller) before(ctx context.Context, v store.View) map[string]string {
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(c.t.Owner))) {
		if slot.Number != c.t.Slot || slot.Number == 0 && slot.Node != c.t.Node {
			continue
		}
		for _, t := range slot.Tasks {
			if t.ID == c.t.ID || t.Number >= c.t.Number {
				continue
			}
			if found, err := c.x.c.Of(ctx, t.ID); err == nil {
				if t.Spec.Fresh != c.t.Spec.Fresh {
					return nil
				}
				return found.Anonymous
			}
		}
	}
	return nil
}

// surroundings sees to networks and volumes.
func (c *controller) surroundings(ctx context.Context, v store.View) error {
	networks := map[string]*cluster.Network{}
	for _, n := range store.List[*cluster.Network](v) {
		networks[n.Spec.Name], networks[n.ID] = n, n
	}
	for _, a := range c.attachments(v) {
		if n := networks[a.Network]; n != nil {
			if err := c.network(ctx, n.Spec); err != nil {
				return fmt.Errorf("network %s: %w", a.Network, err)
			}
		}
	}
	volumes := map[string]*cluster.Volume{}
	for _, vol := range store.List[*cluster.Volume](v) {
		if !vol.Status.Owed {
			volumes[vol.Spec.Name] = vol
		}
	}
	for _, m := range c.t.Spec.Host.Mounts {
		if vol := volumes[m.Source]; m.Type == mount.TypeVolume && vol != nil {
			if err := c.x.supplies.Volume(ctx, vol.Spec); err != nil {
				return fmt.Errorf("volume %s: %w", m.Source, err)
			}
		}
	}
	return nil
}

// labels are those of the container.
func (c *controller) labels() map[string]string {
	out := maps.Clone(c.t.Spec.Container.Labels)
	if out == nil {
		out = map[string]string{}
	}
	out[LabelTask], out[LabelTaskName], out[LabelService], out[LabelNode] = c.t.ID, c.t.Name+"."+c.t.ID, c.t.Owner, c.x.node
	if c.t.App == "" {
		out[LabelOfName] = c.t.ServiceName()
	}
	if out[labelCompose] != "" {
		out[LabelNumber] = strconv.FormatUint(max(c.t.Slot, 1), 10)
	}
	return out
}

// Start implements cluster.Controller.
func (c *controller) Start(ctx context.Context) (cluster.ContainerStatus, error) {
	found, err := c.x.c.Of(ctx, c.t.ID)
	if err == nil {
		err = c.begin(ctx, found)
	}
	if err != nil {
		return cluster.ContainerStatus{}, err
	}
	if found, err = c.x.c.Of(ctx, c.t.ID); err != nil {
		return cluster.ContainerStatus{}, err
	}
	return cluster.ContainerStatus{ID: found.ID, PID: found.PID, Ports: published(c.t.Ports, found.Ports)}, nil
}

// Runs implements cluster.Controller.
func (c *controller) Runs(ctx context.Context) (bool, error) {
	found, err := c.x.c.Of(ctx, c.t.ID)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return found.PID != 0, err
}

// errUnhealthy is why a container that runs has failed.
var errUnhealthy = errors.New("task: unhealthy container")

// Wait implements cluster.Controller.
func (c *controller) Wait(ctx context.Context, healthy func()) (int, error) {
	found, err := c.x.c.Of(ctx, c.t.ID)
	if err != nil {
		return 0, err
	}
	watching, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	code, err := c.x.c.Wait(watching, found.ID, func(h container.HealthStatus) {
		switch h {
		case container.Healthy, container.NoHealthcheck, "":
			healthy()
		case container.Unhealthy:
			cancel(errUnhealthy)
		}
	})
	if err != nil && errors.Is(context.Cause(watching), errUnhealthy) {
		return 0, errUnhealthy
	}
	return code, err
}

// Shutdown implements cluster.Controller.
func (c *controller) Shutdown(ctx context.Context) error {
	found, err := c.x.c.Of(ctx, c.t.ID)
	if err != nil {
		return err
	}
	grace := c.farewell(ctx, found)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := c.x.c.Stop(ctx, found.ID, grace); err != nil {
		return err
	}
	if c.x.over(c.t.ID) {
		_, err = c.x.supplies.Files(ctx, c.t.ID, nil) // its secrets are not for those who look at it afterwards
	}
	return errors.Join(err, c.giveBack(ctx))
}

// over tells whether a task has ended, or is to: it never runs again.
func (x *Executor) over(task string) bool {
	t, err := store.Find[*cluster.Task](x.s.View(), task)
	return err != nil || t.Status.State.Ended() || t.Desired.Stops()
}

// Remove implements cluster.Controller.
func (c *controller) Remove(ctx context.Context) error {
	found, err := c.x.c.Of(ctx, c.t.ID)
	if err == nil {
		err = c.x.c.Remove(ctx, found.ID)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, err = c.x.supplies.Files(ctx, c.t.ID, nil)
	return errors.Join(err, c.giveBack(ctx))
}

// Release implements cluster.Controller.
func (c *controller) Release(ctx context.Context) error {
	found, err := c.x.c.Of(ctx, c.t.ID)
	if err != nil {
		return err
	}
	return c.x.c.Release(ctx, found.ID)
}
