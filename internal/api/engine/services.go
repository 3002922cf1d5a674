package engine

import (
	"net/http"
	"strconv"
	"time"

	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/logs"
	"github.com/moby/moby/api/types/registry"
	api "github.com/moby/moby/api/types/swarm"
)

// serviceRoutes answer for services and tasks of the swarm.
type serviceRoutes struct{ *Server }

func (s serviceRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/services", s.list},
		{http.MethodPost, "/services/create", s.create},
		{http.MethodGet, "/services/{name}", s.inspect},
		{http.MethodDelete, "/services/{name}", s.remove},
		{http.MethodPost, "/services/{name}/update", s.update},
		{http.MethodGet, "/services/{name}/logs", s.logs},
		{http.MethodGet, "/tasks", s.tasks},
		{http.MethodGet, "/tasks/{name}", s.task},
		{http.MethodGet, "/tasks/{name}/logs", s.taskLogs},
	}
}

func (s serviceRoutes) list(w *response, r *request) error {
	status := false
	if raw := r.query.get("status"); raw != "" && !r.version.before(41) {
		var err error
		if status, err = strconv.ParseBool(raw); err != nil {
			return invalidf("invalid value for status: %s: %s", raw, err)
		}
	}
	return listOf(w, r, []string{"id", "label", "mode", "name", "runtime"}, func(f swarm.Filters) ([]api.Service, error) {
		return s.cfg.Swarm.Services(f, status)
	})
}

// serviceBody is what a client sends: older ones name the networks beside the tasks.
type serviceBody struct {
	api.ServiceSpec
	Networks []api.NetworkAttachmentConfig
}

// readService reads the spec of a service, in the form of the client's version.
func readService(w *response, r *request) (api.ServiceSpec, error) {
	var body serviceBody
	if err := readJSON(w, r, &body); err != nil {
		return body.ServiceSpec, err
	}
	spec := body.ServiceSpec
	if len(spec.TaskTemplate.Networks) == 0 {
		spec.TaskTemplate.Networks = body.Networks
	}
	c := spec.TaskTemplate.ContainerSpec
	if c != nil && r.version.before(40) { // options that such a client's server had not
		c.Sysctls = nil
		if p := spec.TaskTemplate.Placement; p != nil {
			p.MaxReplicas = 0
		}
	}
	if c != nil && r.version.before(41) {
		c.CapabilityAdd, c.CapabilityDrop, c.Ulimits = nil, nil, nil
		if res := spec.TaskTemplate.Resources; res != nil && res.Limits != nil {
			res.Limits.Pids = 0
		}
		spec.Mode.ReplicatedJob, spec.Mode.GlobalJob = nil, nil
	}
	return spec, nil
}

// queries tells whether the registry is asked what the image stands for: later clients do
// so themselves.
func queries(r *request) bool { return r.version.before(30) }

func (s serviceRoutes) create(w *response, r *request) error {
	spec, err := readService(w, r)
	if err != nil {
		return err
	}
	id, warnings, err := s.cfg.Swarm.CreateService(detached(r), spec, swarm.Asked{Auth: r.Header.Get(registry.AuthHeader), Query: queries(r)})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, api.ServiceCreateResponse{ID: id, Warnings: warnings})
}

func (s serviceRoutes) inspect(w *response, r *request) error {
	full := false
	if raw := r.query.get("insertDefaults"); raw != "" {
		var err error
		if full, err = strconv.ParseBool(raw); err != nil {
			return invalidf("invalid value for insertDefaults: %s: %s", raw, err)
		}
	}
	service, err := s.cfg.Swarm.GetService(r.name, full)
	return one(w, service, err)
}

func (s serviceRoutes) remove(w *response, r *request) error {
	return nothing(w, s.cfg.Swarm.RemoveService(detached(r), r.name))
}

func (s serviceRoutes) update(w *response, r *request) error {
	spec, err := readService(w, r)
	if err != nil {
		return err
	}
	version, err := r.objectVersion("service")
	if err != nil {
		return err
	}
	a := swarm.Asked{Auth: r.Header.Get(registry.AuthHeader), Query: queries(r)}
	switch from := r.query.get("registryAuthFrom"); from {
	case "", string(api.RegistryAuthFromSpec):
	case string(api.RegistryAuthFromPreviousSpec):
		a.Previous = true
	default:
		return invalidf("unsupported registryAuthFrom %q", from)
	}
	switch back := r.query.get("rollback"); back {
	case "", "none":
	case "previous":
		a.Rollback = true
	default:
		return invalidf("unrecognized rollback option %s", back)
	}
	warnings, err := s.cfg.Swarm.UpdateService(detached(r), r.name, version, spec, a)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, api.ServiceUpdateResponse{Warnings: warnings})
}

func (s serviceRoutes) tasks(w *response, r *request) error {
	return listOf(w, r, []string{"desired-state", "id", "label", "name", "node", "runtime", "service", "_up-to-date"}, s.cfg.Swarm.Tasks)
}

func (s serviceRoutes) task(w *response, r *request) error {
	t, err := s.cfg.Swarm.GetTask(r.name)
	return one(w, t, err)
}

func (s serviceRoutes) logs(w *response, r *request) error {
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	lines, terminal, err := s.cfg.Swarm.ServiceLogs(r.Context(), r.name, o)
	if err != nil {
		return err
	}
	return sendLines(w, r, lines, terminal, o)
}

func (s serviceRoutes) taskLogs(w *response, r *request) error {
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	lines, terminal, err := s.cfg.Swarm.TaskLogs(r.Context(), r.name, o)
	if err != nil {
		return err
	}
	return sendLines(w, r, lines, terminal, o)
}

// logOptions read what part of a log a client wants.
func logOptions(r *request) (o logs.ReadOptions, err error) {
	q := r.query
	o = logs.ReadOptions{
		Stdout: q.bool("stdout"), Stderr: q.bool("stderr"),
		Tail: -1, Follow: q.bool("follow"), Details: q.bool("details"),
	}
	if !o.Stdout && !o.Stderr {
		return o, invalidf("Bad parameters: you must choose at least one stream")
	}
	if n, err := strconv.Atoi(q.get("tail")); err == nil && n >= 0 {
		o.Tail = n
	}
	now := time.Now()
	if o.Since, err = q.time("since", now); err != nil {
		return o, err
	}
	if q.get("until") != "0" {
		o.Until, err = q.time("until", now)
	}
	return o, err
}
