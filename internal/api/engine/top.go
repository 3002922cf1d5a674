package engine

import "net/http"

func (s watchRoutes) top(w *response, r *request) error {
	list, err := s.cfg.Watching.Top(r.Context(), r.name, r.query.get("ps_args"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}
