package engine

import (
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// systemRoutes answer for the engine as a whole.
type systemRoutes struct{ *Server }

func (s systemRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/_ping", s.ping},
		{http.MethodHead, "/_ping", s.ping},
		{http.MethodGet, "/version", s.versions},
		{http.MethodGet, "/info", s.info},
		{http.MethodGet, "/events", s.events},
		{http.MethodPost, "/auth", s.login},
	}
}

func (s systemRoutes) ping(w *response, r *request) error {
	p := s.cfg.System.Ping()
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if p.BuilderVersion != "" {
		h.Set("Builder-Version", p.BuilderVersion)
	}
	if p.SafeMode {
		h.Set("Escale-Safe-Mode", "on")
	}
	if p.SwarmState != "" {
		h.Set("Swarm", p.SwarmState)
	}
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	h.Set("Content-Length", "2")
	_, err := w.Write([]byte("OK"))
	return err
}

// login checks credentials with their registry.
func (s systemRoutes) login(w *response, r *request) error {
	var auth registry.AuthConfig
	if err := readJSON(w, r, &auth); err != nil {
		return err
	}
	token, err := s.cfg.Registries.Login(r.Context(), auth)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}

func (s systemRoutes) versions(w *response, r *request) error {
	v := s.cfg.System.Version(r.Context())
	v.APIVersion, v.MinAPIVersion = newest.String(), oldest.String()
	return writeJSON(w, http.StatusOK, v)
}

// infoAnswer is /info with the fields that older versions had besides.
type infoAnswer struct {
	*system.Info
	ContainerdCommit, RuncCommit, InitCommit commitAnswer
	Runtimes                                 map[string]system.RuntimeWithStatus

	BridgeNfIptables  *bool `json:"BridgeNfIptables,omitempty"`
	BridgeNfIP6tables *bool `json:"BridgeNfIp6tables,omitempty"`
}

type commitAnswer struct {
	ID       string
	Expected string `json:",omitempty"`
}

func (s systemRoutes) info(w *response, r *request) error {
	have, err := s.cfg.System.Info(r.Context())
	if err != nil {
		return err
	}
	info := *have // the backend may keep its own
	a := infoAnswer{
		Info: &info, Runtimes: info.Runtimes,
		ContainerdCommit: commitAnswer{ID: info.ContainerdCommit.ID},
		RuncCommit:       commitAnswer{ID: info.RuncCommit.ID},
		InitCommit:       commitAnswer{ID: info.InitCommit.ID},
	}
	ver := r.version
	if ver.before(25) {
		info.SecurityOptions = plainOptions(info.SecurityOptions)
	}
	if ver.before(44) {
		a.Runtimes = make(map[string]system.RuntimeWithStatus, len(info.Runtimes))
		for name, rt := range info.Runtimes {
			rt.Status = nil
			a.Runtimes[name] = rt
		}
	}
	if ver.before(46) {
		info.Containerd = nil
	}
	if ver.before(49) {
		info.FirewallBackend = nil
		for _, c := range []*commitAnswer{&a.ContainerdCommit, &a.RuncCommit, &a.InitCommit} {
			c.Expected = c.ID
		}
	}
	if ver.before(50) {
		no := false
		a.BridgeNfIptables, a.BridgeNfIP6tables = &no, &no
		info.DiscoveredDevices = nil
	}
	if ver.before(53) {
		info.NRI = nil
	}
	return writeJSON(w, http.StatusOK, a)
}

// plainOptions turns "name=seccomp,profile=builtin" into "seccomp".
func plainOptions(options []string) []string {
	out := make([]string, 0, len(options))
	for _, o := range options {
		first, _, _ := strings.Cut(o, ",")
		out = append(out, strings.TrimPrefix(first, "name="))
	}
	return out
}
