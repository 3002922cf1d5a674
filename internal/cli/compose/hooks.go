package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cluster"
	composefile "escale.dev/escale/internal/compose"
)

// hook runs a command in a container, and shows what it writes.
func (s *session) hook(ctx context.Context, c *client.Client, x *container.Summary, h types.ServiceHook) error {
	as := composefile.Hooks([]types.ServiceHook{h})[0]
	made, err := c.ExecCreate(ctx, x.ID, moby.ExecCreateOptions{
		Cmd: as.Command, User: as.User, Privileged: as.Privileged, WorkingDir: as.WorkingDir, Env: as.Env, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return err
	}
	r, err := c.ExecAttach(ctx, made.ID, moby.ExecAttachOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	defer context.AfterFunc(ctx, r.Close)() // reading does not know of ctx
	p := &printer{out: s.out, err: s.err, prefix: true}
	if err := p.demux(r.Reader, shortName(x), false); err != nil || ctx.Err() != nil {
		return cmp.Or(ctx.Err(), err)
	}
	res, err := c.ExecInspect(ctx, made.ID, moby.ExecInspectOptions{})
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("%s: exit code %d", strings.Join(h.Command, " "), res.ExitCode)
	}
	return err
}

// defaultGrace is how long a container has to end, if nobody says otherwise.
const defaultGrace = 10 * time.Second

// prestop runs the hooks of a container that is about to be stopped, within its time of grace:
// t seconds, else what its service has. There are none when that is no time. One that fails is
// told of, and the stop comes all the same.
func (s *session) prestop(ctx context.Context, c *client.Client, p *types.Project, x *container.Summary, t *int) {
	if p == nil || t != nil && *t == 0 || x.State != container.StateRunning || strings.EqualFold(x.Labels[composefile.LabelOneOff], "true") {
		return
	}
	sv := p.AllServices()[serviceOf(x)]
	whole := defaultGrace
	switch {
	case t != nil:
		whole = time.Duration(*t) * time.Second
	case sv.StopGracePeriod != nil:
		whole = time.Duration(*sv.StopGracePeriod)
	}
	if whole >= 0 { // else it is waited for as long as it takes
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, whole)
		defer cancel()
	}
	for _, h := range sv.PreStop {
		if err := s.hook(ctx, c, x, h); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%s: it took longer than the %s of grace", strings.Join(h.Command, " "), whole)
			}
			if !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) { // it has ended by itself
				s.warnf("pre_stop hook of %s: %s", nameOf(x), err)
			}
			return
		}
	}
}

// poststart runs the hooks of a container that was started.
func (s *session) poststart(ctx context.Context, c *client.Client, p *types.Project, x *container.Summary) error {
	if p == nil || strings.EqualFold(x.Labels[composefile.LabelOneOff], "true") {
		return nil
	}
	for _, h := range p.AllServices()[serviceOf(x)].PostStart {
		if err := s.hook(ctx, c, x, h); err != nil {
			return fmt.Errorf("post_start hook of %s: %w", nameOf(x), err)
		}
	}
	return nil
}

// stopping ends containers, after the hooks that a project has for that.
func (s *session) stopping(p *types.Project, t *int) act {
	return act{"Stopping", "Stopped", func(ctx context.Context, c *client.Client, x *container.Summary) error {
		s.prestop(ctx, c, p, x, t)
		_, err := c.ContainerStop(ctx, x.ID, moby.ContainerStopOptions{Timeout: t})
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}}
}

// starting starts containers and runs their hooks; those of an app that it keeps the
// engine runs.
func (s *session) starting(p *types.Project) act {
	return act{"Starting", "Started", func(ctx context.Context, c *client.Client, x *container.Summary) error {
		_, err := c.ContainerStart(ctx, x.ID, moby.ContainerStartOptions{})
		if x.Labels[cluster.LabelTask] != "" {
			return again(ctx, c, x, err)
		}
		if err != nil {
			return err
		}
		return s.poststart(ctx, c, p, x)
	}}
}

// restarting ends containers and starts them again, with the hooks of both.
func (s *session) restarting(p *types.Project, t *int) act {
	return act{"Restarting", "Started", func(ctx context.Context, c *client.Client, x *container.Summary) error {
		s.prestop(ctx, c, p, x, t)
		_, err := c.ContainerRestart(ctx, x.ID, moby.ContainerRestartOptions{Timeout: t})
		if errdefs.IsConflict(err) && x.Labels[cluster.LabelTask] != "" {
			return again(ctx, c, x, err)
		}
		if err != nil {
			return err
		}
		return s.poststart(ctx, c, p, x)
	}}
}
