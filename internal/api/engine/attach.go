package engine

import (
	"context"
	"io"
	"net/http"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
)

func (c containerRoutes) attach(w *response, r *request) error {
	view, err := c.cfg.Containers.Get(r.name)
	if err != nil {
		return err
	}
	q := r.query
	a := container.Attach{
		Stdin: q.bool("stdin"), Stdout: q.bool("stdout"), Stderr: q.bool("stderr"),
		Stream: q.bool("stream"), Logs: q.bool("logs"), DetachKeys: q.get("detachKeys"),
	}
	return c.hijack(w, r, streamRoute{
		stdin: a.Stdin && a.Stream && view.Config.OpenStdin,
		run: func(ctx context.Context, open func(bool) (io.ReadWriteCloser, error)) error {
			return c.cfg.Containers.Attach(ctx, r.name, a, open)
		},
	})
}

// execRoutes answer for exec instances.
type execRoutes struct{ *Server }

func (e execRoutes) routes() []route {
	return []route{
		{http.MethodPost, "/containers/{name...}/exec", e.create},
		{http.MethodPost, "/exec/{id...}/start", e.start},
		{http.MethodPost, "/exec/{id...}/resize", e.resize},
		{http.MethodGet, "/exec/{id...}/json", e.inspect},
	}
}

func (e execRoutes) create(w *response, r *request) error {
	var body apicontainer.ExecCreateRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	if len(body.Cmd) == 0 {
		return invalidf("No exec command specified")
	}
	conf := container.ExecConfig{
		Cmd: body.Cmd, Env: body.Env, WorkingDir: body.WorkingDir, User: body.User, Tty: body.Tty,
		AttachStdin: body.AttachStdin, AttachStdout: body.AttachStdout, AttachStderr: body.AttachStderr,
		Privileged: body.Privileged, DetachKeys: body.DetachKeys,
	}
	if !r.version.before(42) {
		var err error
		if conf.ConsoleSize, err = consoleSize(body.ConsoleSize); err != nil {
			return err
		}
	}
	id, err := e.cfg.Containers.ExecCreate(r.Context(), r.name, conf)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.ExecCreateResponse{ID: id})
}

// consoleSize narrows the size of a terminal.
func consoleSize(size *[2]uint) (out [2]uint16, err error) {
	if size == nil {
		return out, nil
	}
	if size[0] > 65535 || size[1] > 65535 {
		return out, invalidf("invalid console size %dx%d: at most 65535 rows and columns", size[0], size[1])
	}
	return [2]uint16{uint16(size[0]), uint16(size[1])}, nil
}

func (e execRoutes) start(w *response, r *request) error {
	var body apicontainer.ExecStartRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	have, err := e.cfg.Containers.ExecGet(r.name)
	if err != nil {
		return err
	}
	var size [2]uint16
	if !r.version.before(42) && body.ConsoleSize != nil {
		if !body.Tty {
			return invalidf("console size is only supported when TTY is enabled")
		}
		if size, err = consoleSize(body.ConsoleSize); err != nil {
			return err
		}
	}
	if body.Detach {
		// detached: the process does not end with the request that began it
		if err := e.cfg.Containers.ExecStart(context.WithoutCancel(r.Context()), r.name, size, nil); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return e.hijack(w, r, streamRoute{
		stdin: have.Config.AttachStdin,
		tell:  true,
		run: func(ctx context.Context, open func(bool) (io.ReadWriteCloser, error)) error {
			// What is asked now, not what the exec has, is the form of the stream.
			return e.cfg.Containers.ExecStart(ctx, r.name, size, func(terminal bool) (io.ReadWriteCloser, error) {
				st, err := open(body.Tty)
				if err != nil {
					return nil, err
				}
				return asAsked(st, body.Tty, terminal), nil
			})
		},
	})
}

func (e execRoutes) resize(w *response, r *request) error {
	rows, cols, err := r.query.size()
	if err != nil {
		return err
	}
	if err := e.cfg.Containers.ExecResize(r.Context(), r.name, rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (e execRoutes) inspect(w *response, r *request) error {
	x, err := e.cfg.Containers.ExecGet(r.name)
	if err != nil {
		return err
	}
	privileged := x.Config.Privileged
	args := x.Arguments
	if args == nil {
		args = []string{}
	}
	return writeJSON(w, http.StatusOK, apicontainer.ExecInspectResponse{
		ID: x.ID, Running: x.Running, ExitCode: x.ExitCode, Pid: x.Pid,
		ProcessConfig: &apicontainer.ExecProcessConfig{
			Tty: x.Config.Tty, Entrypoint: x.Entrypoint, Arguments: args, Privileged: &privileged, User: x.Config.User,
		},
		OpenStdin: x.Config.AttachStdin, OpenStdout: x.Config.AttachStdout, OpenStderr: x.Config.AttachStderr,
		CanRemove: x.CanRemove, ContainerID: string(x.Container), DetachKeys: []byte(x.DetachKeys),
	})
}
