package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/sys/errtext"
	apicontainer "github.com/moby/moby/api/types/container"
)

// containerRoutes answer for containers.
type containerRoutes struct{ *Server }

func (c containerRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/containers/json", c.list},
		{http.MethodPost, "/containers/create", c.create},
		{http.MethodPost, "/containers/prune", c.prune},
		{http.MethodGet, "/containers/{name...}/json", c.inspect},
		{http.MethodGet, "/containers/{name...}/logs", c.logs},
		{http.MethodPost, "/containers/{name...}/attach", c.attach},
		{http.MethodGet, "/containers/{name...}/attach/ws", c.attachWebsocket},
		{http.MethodPost, "/containers/{name...}/start", c.start},
		{http.MethodPost, "/containers/{name...}/stop", c.stop},
		{http.MethodPost, "/containers/{name...}/restart", c.restart},
		{http.MethodPost, "/containers/{name...}/kill", c.kill},
		{http.MethodPost, "/containers/{name...}/pause", c.pause},
		{http.MethodPost, "/containers/{name...}/unpause", c.unpause},
		{http.MethodPost, "/containers/{name...}/wait", c.wait},
		{http.MethodPost, "/containers/{name...}/rename", c.rename},
		{http.MethodPost, "/containers/{name...}/resize", c.resize},
		{http.MethodDelete, "/containers/{name...}", c.remove},
	}
}

// done answers requests that change something and have nothing to say. What
// they began is finished also when the client leaves: their context is detached.
func done(w *response, err error) error {
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func detached(r *request) context.Context { return context.WithoutCancel(r.Context()) }

func (c containerRoutes) start(w *response, r *request) error {
	// "{}" and "null" are what some clients send for nothing.
	if r.ContentLength > 7 || r.ContentLength == -1 {
		return invalidf("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if r.query.get("checkpoint") != "" {
		return invalidf("checkpoint is only supported in experimental mode")
	}
	return done(w, c.startKept(detached(r), r.name))
}

// stopOptions reads what stop and restart share.
func stopOptions(r *request) (container.Stop, error) {
	var s container.Stop
	if !r.version.before(42) {
		s.Signal = r.query.get("signal")
	}
	var err error
	s.Timeout, err = r.query.int("t")
	return s, err
}

func (c containerRoutes) stop(w *response, r *request) error {
	s, err := stopOptions(r)
	if err != nil {
		return err
	}
	s.Before = c.halting
	return done(w, c.cfg.Containers.Stop(detached(r), r.name, s))
}

func (c containerRoutes) restart(w *response, r *request) error {
	s, err := stopOptions(r)
	if err != nil {
		return err
	}
	if _, err := c.resuming(detached(r), r.name); err != nil {
		return err
	}
	return done(w, c.cfg.Containers.Restart(detached(r), r.name, s))
}

func (c containerRoutes) kill(w *response, r *request) error {
	if err := c.cfg.Containers.Kill(detached(r), r.name, r.query.get("signal")); err != nil {
		return fmt.Errorf("cannot kill container: %s: %w", r.name, err)
	}
	return done(w, nil)
}

func (c containerRoutes) pause(w *response, r *request) error {
	return done(w, c.cfg.Containers.Pause(detached(r), r.name))
}

func (c containerRoutes) unpause(w *response, r *request) error {
	return done(w, c.cfg.Containers.Unpause(detached(r), r.name))
}

func (c containerRoutes) rename(w *response, r *request) error {
	return done(w, c.cfg.Containers.Rename(detached(r), r.name, r.query.get("name")))
}

func (c containerRoutes) remove(w *response, r *request) error {
	if r.query.bool("link") {
		return done(w, c.cfg.Containers.Unlink(detached(r), r.name))
	}
	return done(w, c.cfg.Containers.Remove(detached(r), r.name, container.Remove{
		Force: r.query.bool("force"), Volumes: r.query.bool("v"), Before: c.halting,
	}))
}

func (c containerRoutes) resize(w *response, r *request) error {
	rows, cols, err := r.query.size()
	if err != nil {
		return err
	}
	if err := c.cfg.Containers.Resize(r.Context(), r.name, rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// wait sends its header at once, so that a client knows its wait is armed
// before it starts the container; the result follows.
func (c containerRoutes) wait(w *response, r *request) error {
	condition := r.query.get("condition")
	switch apicontainer.WaitCondition(condition) {
	case "", apicontainer.WaitConditionNotRunning, apicontainer.WaitConditionNextExit, apicontainer.WaitConditionRemoved:
		if r.version.before(30) {
			condition = ""
		}
	default:
		if !r.version.before(42) {
			return invalidf("invalid condition: %q", condition)
		}
		condition = ""
	}
	result, err := c.cfg.Containers.Wait(r.Context(), r.name, condition)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if !r.version.before(30) {
		w.WriteHeader(http.StatusOK)
		if err := w.flush(); err != nil {
			return err
		}
	}
	select {
	case <-r.Context().Done():
		if !r.version.before(30) {
			panic(http.ErrAbortHandler) // an end of the engine must not look like a whole answer
		}
		return r.Context().Err()
	case res := <-result:
		answer := apicontainer.WaitResponse{StatusCode: int64(res.ExitCode)}
		if res.Err != nil {
			answer.Error = &apicontainer.WaitExitError{Message: errtext.Of(res.Err)}
		}
		return json.NewEncoder(w).Encode(answer)
	}
}
