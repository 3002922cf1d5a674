package engine

import (
	"context"
	"net/http"

	"escale.dev/escale/internal/cluster/move"
)

// Moves takes volumes from one node of a cluster to another; see move.Desk. Errors carry a kind.
type Moves interface {
	Begin(ctx context.Context, a move.Asked) (string, error)
	Get(ref string) (move.Shown, error)
	List() ([]move.Shown, error)
	Cancel(ctx context.Context, ref string) error
	Volumes(ctx context.Context) (list []move.Placed, missing []string, err error)
}

// moveRoutes are Escale's own: docs/api/escale.yaml describes them.
type moveRoutes struct{ *Server }

func (m moveRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/escale/moves", m.list},
		{http.MethodPost, "/escale/moves", m.begin},
		{http.MethodGet, "/escale/moves/{name}", m.get},
		{http.MethodDelete, "/escale/moves/{name}", m.cancel},
		{http.MethodGet, "/escale/volumes", m.volumes},
	}
}

func (m moveRoutes) list(w *response, _ *request) error {
	list, err := m.cfg.Moves.List()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

func (m moveRoutes) begin(w *response, r *request) error {
	var a move.Asked
	if err := readJSON(w, r, &a); err != nil {
		return err
	}
	id, err := m.cfg.Moves.Begin(r.Context(), a)
	return made(w, id, err)
}

func (m moveRoutes) get(w *response, r *request) error {
	o, err := m.cfg.Moves.Get(r.name)
	return one(w, o, err)
}

func (m moveRoutes) cancel(w *response, r *request) error {
	if err := m.cfg.Moves.Cancel(detached(r), r.name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// volumes lists those of all nodes.
func (m moveRoutes) volumes(w *response, r *request) error {
	list, missing, err := m.cfg.Moves.Volumes(r.Context())
	if err != nil {
		return err
	}
	if list == nil {
		list = []move.Placed{}
	}
	return writeJSON(w, http.StatusOK, map[string]any{"Volumes": list, "Missing": missing})
}
