package engine

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/apps"
)

// Apps are the projects that the engine keeps as they were asked.
type Apps interface {
	List() []apps.View
	Get(name string) (apps.View, error)
	Put(ctx context.Context, name string, spec cluster.AppSpec, o apps.Put) (*apps.Plan, error)
	Scale(ctx context.Context, name string, replicas map[string]uint64) (*apps.Plan, error)
	Rollback(ctx context.Context, name string, to uint64, dryRun bool) (*apps.Plan, error)
	Remove(ctx context.Context, name string, volumes bool) error
	Release(ctx context.Context, name string) error
	Again(ctx context.Context, name, task string) (string, error)
	History(name string) ([]apps.Revision, error)
	Volumes(name string) []apps.VolumeView
	Follow(ctx context.Context, name string, f func(apps.View) error) error
}

// appRoutes are Escale's own: docs/api/escale.yaml describes them.
type appRoutes struct{ *Server }

func (a appRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/escale/apps", a.list},
		{http.MethodGet, "/escale/apps/{name}", a.show},
		{http.MethodPut, "/escale/apps/{name}", a.put},
		{http.MethodDelete, "/escale/apps/{name}", a.remove},
		{http.MethodPost, "/escale/apps/{name}/scale", a.scale},
		{http.MethodPost, "/escale/apps/{name}/rollback", a.rollback},
		{http.MethodPost, "/escale/apps/{name}/release", a.release},
		{http.MethodPost, "/escale/apps/{name}/again", a.again},
		{http.MethodGet, "/escale/apps/{name}/history", a.history},
		{http.MethodGet, "/escale/apps/{name}/volumes", a.volumes},
		{http.MethodGet, "/escale/apps/{name}/follow", a.follow},
	}
}

func (a appRoutes) list(w *response, _ *request) error {
	return writeJSON(w, http.StatusOK, a.cfg.Apps.List())
}

func (a appRoutes) show(w *response, r *request) error {
	v, err := a.cfg.Apps.Get(r.name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func (a appRoutes) put(w *response, r *request) error {
	var spec cluster.AppSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	p, err := a.cfg.Apps.Put(r.Context(), r.name, spec, apps.Put{
		DryRun: r.query.bool("dryRun"), Merge: r.query.bool("merge"), Create: r.query.bool("create"), RenewVolumes: r.query.bool("renewVolumes"),
		Remove: r.query.values["remove"], Replace: r.query.values["replace"],
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, p)
}

func (a appRoutes) scale(w *response, r *request) error {
	var replicas map[string]uint64
	if err := readJSON(w, r, &replicas); err != nil {
		return err
	}
	if len(replicas) == 0 {
		return invalidf("no service to be scaled: {\"service\": replicas} wanted")
	}
	p, err := a.cfg.Apps.Scale(r.Context(), r.name, replicas)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, p)
}

func (a appRoutes) rollback(w *response, r *request) error {
	var to uint64
	if text := r.query.get("to"); text != "" {
		var err error
		if to, err = strconv.ParseUint(text, 10, 64); err != nil {
			return invalidf("invalid value %q of to: a number of the app's history is wanted", text)
		}
	}
	p, err := a.cfg.Apps.Rollback(r.Context(), r.name, to, r.query.bool("dryRun"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, p)
}

func (a appRoutes) remove(w *response, r *request) error {
	return done(w, a.cfg.Apps.Remove(r.Context(), r.name, r.query.bool("volumes")))
}

func (a appRoutes) release(w *response, r *request) error {
	return done(w, a.cfg.Apps.Release(r.Context(), r.name))
}

func (a appRoutes) again(w *response, r *request) error {
	id, err := a.cfg.Apps.Again(r.Context(), r.name, r.query.get("task"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]string{"Task": id})
}

func (a appRoutes) history(w *response, r *request) error {
	list, err := a.cfg.Apps.History(r.name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

func (a appRoutes) volumes(w *response, r *request) error {
	return writeJSON(w, http.StatusOK, a.cfg.Apps.Volumes(r.name))
}

// follow sends a line each time the app has changed, and ends when it has gone.
func (a appRoutes) follow(w *response, r *request) error {
	enc := json.NewEncoder(w)
	return a.cfg.Apps.Follow(r.Context(), r.name, func(v apps.View) error {
		if w.status == 0 {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		if err := enc.Encode(v); err != nil {
			return err
		}
		return w.flush()
	})
}
