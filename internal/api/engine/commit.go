package engine

import (
	"net/http"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
)

// commit makes an image of a container.
func (a archiveRoutes) commit(w *response, r *request) error {
	o := container.Commit{
		Comment: r.query.get("comment"), Author: r.query.get("author"), Changes: r.query.all("changes"),
		NoPause: r.query.has("pause") && !r.query.bool("pause"),
	}
	var err error
	if o.Ref, err = targetName(r.query.get("repo"), r.query.get("tag")); err != nil {
		return err
	}
	if o.Config, err = commitConfig(w, r); err != nil {
		return err
	}
	id, err := a.cfg.Archives.Commit(r.Context(), r.query.get("container"), o)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.CommitResponse{ID: id})
}

// commitConfig reads the configuration that the image is to have; a body that is
// empty or null has none.
func commitConfig(w *response, r *request) (*apicontainer.Config, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	var config *apicontainer.Config
	err := readJSON(w, r, &config)
	return config, err
}
