package engine

import (
	"net/http"

	"escale.dev/escale/internal/cluster"
	api "github.com/moby/moby/api/types/swarm"
)

// secretRoutes answer for secrets and configs of the swarm.
type secretRoutes struct{ *Server }

func (s secretRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/secrets", s.list},
		{http.MethodPost, "/secrets/create", s.create},
		{http.MethodGet, "/secrets/{name}", s.inspect},
		{http.MethodDelete, "/secrets/{name}", s.remove},
		{http.MethodPost, "/secrets/{name}/update", s.update},
		{http.MethodGet, "/configs", s.configs},
		{http.MethodPost, "/configs/create", s.createConfig},
		{http.MethodGet, "/configs/{name}", s.config},
		{http.MethodDelete, "/configs/{name}", s.removeConfig},
		{http.MethodPost, "/configs/{name}/update", s.updateConfig},
		// Escale's own: docs/api/escale.yaml describes them.
		{http.MethodPost, "/escale/secrets/{name}/renew", s.renew},
		{http.MethodPost, "/escale/configs/{name}/renew", s.renewConfig},
	}
}

// fileKeys are those by which secrets and configs can be filtered.
var fileKeys = []string{"id", "label", "name", "names"}

func (s secretRoutes) list(w *response, r *request) error {
	return listOf(w, r, fileKeys, s.cfg.Swarm.Secrets)
}

func (s secretRoutes) create(w *response, r *request) error {
	var spec api.SecretSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	id, err := s.cfg.Swarm.CreateSecret(detached(r), spec)
	return made(w, id, err)
}

// made answers with the id of what was made.
func made(w *response, id string, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, map[string]string{"ID": id})
}

func (s secretRoutes) inspect(w *response, r *request) error {
	o, err := s.cfg.Swarm.GetSecret(r.name)
	return one(w, o, err)
}

func (s secretRoutes) remove(w *response, r *request) error {
	return done(w, s.cfg.Swarm.RemoveSecret(detached(r), r.name))
}

func (s secretRoutes) update(w *response, r *request) error {
	var spec api.SecretSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	version, err := r.objectVersion("secret")
	if err != nil {
		return err
	}
	return nothing(w, s.cfg.Swarm.UpdateSecret(detached(r), r.name, version, spec))
}

func (s secretRoutes) configs(w *response, r *request) error {
	return listOf(w, r, fileKeys, s.cfg.Swarm.Configs)
}

func (s secretRoutes) createConfig(w *response, r *request) error {
	var spec api.ConfigSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	id, err := s.cfg.Swarm.CreateConfig(detached(r), spec)
	return made(w, id, err)
}

func (s secretRoutes) config(w *response, r *request) error {
	o, err := s.cfg.Swarm.GetConfig(r.name)
	return one(w, o, err)
}

func (s secretRoutes) removeConfig(w *response, r *request) error {
	return done(w, s.cfg.Swarm.RemoveConfig(detached(r), r.name))
}

func (s secretRoutes) updateConfig(w *response, r *request) error {
	var spec api.ConfigSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	version, err := r.objectVersion("config")
	if err != nil {
		return err
	}
	return nothing(w, s.cfg.Swarm.UpdateConfig(detached(r), r.name, version, spec))
}

func (s secretRoutes) renew(w *response, r *request) error {
	return s.renewed(w, r, cluster.KindSecret)
}

func (s secretRoutes) renewConfig(w *response, r *request) error {
	return s.renewed(w, r, cluster.KindConfig)
}

// renewed gives a secret or config the content of the body.
func (s secretRoutes) renewed(w *response, r *request, kind cluster.Kind) error {
	var body struct{ Data []byte }
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	out, err := s.cfg.Swarm.Renew(detached(r), kind, r.name, body.Data)
	return one(w, out, err)
}
