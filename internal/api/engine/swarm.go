package engine

import (
	"context"
	"net/http"
	"strconv"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/logs"
	api "github.com/moby/moby/api/types/swarm"
)

// Swarm answers for the swarm that this node manages. Before there is one, its methods
// are Unavailable. Errors carry a kind and Docker's words.
type Swarm interface {
	SwarmItself
	SwarmNodes
	SwarmServices
	SwarmFiles
}

// SwarmItself is the swarm as a whole.
type SwarmItself interface {
	Init(ctx context.Context, r api.InitRequest) (node string, err error)
	Join(ctx context.Context, r api.JoinRequest) error
	Leave(ctx context.Context, force bool) error
	Inspect() (api.Swarm, error)
	Update(ctx context.Context, version uint64, s api.Spec, r swarm.Rotate) error
	UnlockKey() (string, error)
	Unlock(ctx context.Context, r api.UnlockRequest) error
}

// SwarmNodes are the nodes of the swarm.
type SwarmNodes interface {
	Nodes(f swarm.Filters) ([]api.Node, error)
	GetNode(ref string) (api.Node, error)
	UpdateNode(ctx context.Context, ref string, version uint64, s api.NodeSpec) error
	RemoveNode(ctx context.Context, ref string, force bool) error
}

// SwarmServices are services and their tasks.
type SwarmServices interface {
	Services(f swarm.Filters, status bool) ([]api.Service, error)
	GetService(ref string, full bool) (api.Service, error)
	CreateService(ctx context.Context, s api.ServiceSpec, a swarm.Asked) (id string, warnings []string, err error)
	UpdateService(ctx context.Context, ref string, version uint64, s api.ServiceSpec, a swarm.Asked) (warnings []string, err error)
	RemoveService(ctx context.Context, ref string) error
	ServiceLogs(ctx context.Context, ref string, o logs.ReadOptions) (lines swarm.Lines, terminal bool, err error)
	Tasks(f swarm.Filters) ([]api.Task, error)
	GetTask(ref string) (api.Task, error)
	TaskLogs(ctx context.Context, ref string, o logs.ReadOptions) (lines swarm.Lines, terminal bool, err error)
}

// SwarmFiles are secrets and configs.
type SwarmFiles interface {
	Secrets(f swarm.Filters) ([]api.Secret, error)
	GetSecret(ref string) (api.Secret, error)
	CreateSecret(ctx context.Context, s api.SecretSpec) (id string, err error)
	UpdateSecret(ctx context.Context, ref string, version uint64, s api.SecretSpec) error
	RemoveSecret(ctx context.Context, ref string) error
	Configs(f swarm.Filters) ([]api.Config, error)
	GetConfig(ref string) (api.Config, error)
	CreateConfig(ctx context.Context, s api.ConfigSpec) (id string, err error)
	UpdateConfig(ctx context.Context, ref string, version uint64, s api.ConfigSpec) error
	Renew(ctx context.Context, kind cluster.Kind, ref string, data []byte) (swarm.Renewed, error)
	RemoveConfig(ctx context.Context, ref string) error
}

// swarmRoutes answer for the swarm as a whole.
type swarmRoutes struct{ *Server }

func (s swarmRoutes) routes() []route {
	return []route{
		{http.MethodPost, "/swarm/init", s.init},
		{http.MethodPost, "/swarm/join", s.join},
		{http.MethodPost, "/swarm/leave", s.leave},
		{http.MethodGet, "/swarm", s.inspect},
		{http.MethodGet, "/swarm/unlockkey", s.unlockKey},
		{http.MethodPost, "/swarm/unlock", s.unlock},
		{http.MethodPost, "/swarm/update", s.update},
	}
}

func (s swarmRoutes) init(w *response, r *request) error {
	var body api.InitRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	if r.version.before(39) {
		body.DefaultAddrPool, body.SubnetSize = nil, 0
	}
	if r.version.before(40) {
		body.DataPathPort = 0
	}
	node, err := s.cfg.Swarm.Init(detached(r), body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, node)
}

func (s swarmRoutes) join(w *response, r *request) error {
	var body api.JoinRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	return nothing(w, s.cfg.Swarm.Join(detached(r), body))
}

// nothing answers 200 without a body.
func nothing(w *response, err error) error {
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s swarmRoutes) leave(w *response, r *request) error {
	return nothing(w, s.cfg.Swarm.Leave(detached(r), r.query.bool("force")))
}

func (s swarmRoutes) inspect(w *response, _ *request) error {
	is, err := s.cfg.Swarm.Inspect()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, is)
}

func (s swarmRoutes) unlockKey(w *response, _ *request) error {
	key, err := s.cfg.Swarm.UnlockKey()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, api.UnlockKeyResponse{UnlockKey: key})
}

func (s swarmRoutes) unlock(w *response, r *request) error {
	var body api.UnlockRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	return nothing(w, s.cfg.Swarm.Unlock(detached(r), body))
}

// objectVersion is the version of an object that a client wants to change.
func (r *request) objectVersion(what string) (uint64, error) {
	raw := r.query.get("version")
	n, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return 0, invalidf("invalid %s version '%s': %v", what, raw, err)
	}
	return n, nil
}

func (s swarmRoutes) update(w *response, r *request) error {
	var spec api.Spec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	version, err := r.objectVersion("swarm")
	if err != nil {
		return err
	}
	var rotate swarm.Rotate
	for key, to := range map[string]*bool{"rotateWorkerToken": &rotate.WorkerToken, "rotateManagerToken": &rotate.ManagerToken, "rotateManagerUnlockKey": &rotate.UnlockKey} {
		raw := r.query.get(key)
		if raw == "" {
			continue
		}
		if *to, err = strconv.ParseBool(raw); err != nil {
			return invalidf("invalid value for %s: %s", key, raw)
		}
	}
	return nothing(w, s.cfg.Swarm.Update(detached(r), version, spec, rotate))
}

// nodeRoutes answer for the nodes of the swarm.
type nodeRoutes struct{ *Server }

func (n nodeRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/nodes", n.list},
		{http.MethodGet, "/nodes/{name}", n.inspect},
		{http.MethodDelete, "/nodes/{name}", n.remove},
		{http.MethodPost, "/nodes/{name}/update", n.update},
	}
}

func (n nodeRoutes) list(w *response, r *request) error {
	return listOf(w, r, []string{"id", "label", "membership", "name", "node.label", "role"}, n.cfg.Swarm.Nodes)
}

// listOf answers with a list that may be filtered by some keys.
func listOf[T any](w *response, r *request, keys []string, list func(swarm.Filters) ([]T, error)) error {
	f, err := parseFilters(r.query.get("filters"), keys)
	if err != nil {
		return err
	}
	out, err := list(swarm.Filters(f))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// one answers with an object.
func one[T any](w *response, o T, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, o)
}

func (n nodeRoutes) inspect(w *response, r *request) error {
	node, err := n.cfg.Swarm.GetNode(r.name)
	return one(w, node, err)
}

func (n nodeRoutes) remove(w *response, r *request) error {
	return nothing(w, n.cfg.Swarm.RemoveNode(detached(r), r.name, r.query.bool("force")))
}

func (n nodeRoutes) update(w *response, r *request) error {
	var spec api.NodeSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	version, err := r.objectVersion("node")
	if err != nil {
		return err
	}
	return nothing(w, n.cfg.Swarm.UpdateNode(detached(r), r.name, version, spec))
}
