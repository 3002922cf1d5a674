package engine

import (
	"net/http"

	apicontainer "github.com/moby/moby/api/types/container"
)

// updateRoutes change containers that are there.
type updateRoutes struct{ *Server }

func (s updateRoutes) routes() []route {
	return []route{{http.MethodPost, "/containers/{name...}/update", s.update}}
}

func (s updateRoutes) update(w *response, r *request) error {
	var u apicontainer.UpdateConfig
	if err := readJSON(w, r, &u); err != nil {
		return err
	}
	if r.version.before(40) {
		u.PidsLimit = nil
	}
	if u.PidsLimit != nil && *u.PidsLimit <= 0 {
		u.PidsLimit = new(int64) // each of them has meant no limit
	}
	if u.RestartPolicy.Name != "" {
		if err := s.restartable(r.name); err != nil {
			return err
		}
	}
	warnings, err := s.cfg.Updates.Update(detached(r), r.name, u)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apicontainer.UpdateResponse{Warnings: warnings})
}
