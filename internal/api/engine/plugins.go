package engine

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"escale.dev/escale/internal/plugin/managed"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/registry"
)

// Plugins is what the routes of managed plugins need. ref is a name, an id or the
// beginning of one. Errors carry a kind and Docker's words.
type Plugins interface {
	List() []apiplugin.Plugin // by name
	Inspect(ref string) (apiplugin.Plugin, error)
	// Privileges tells what a plugin in a registry needs of the machine.
	Privileges(ctx context.Context, t managed.Transfer) (apiplugin.Privileges, error)
	Pull(ctx context.Context, name string, t managed.Transfer) error
	Upgrade(ctx context.Context, ref string, t managed.Transfer) error
	Push(ctx context.Context, ref string, auth registry.AuthConfig, told managed.Progress) error
	Create(ctx context.Context, name string, r io.Reader) error
	Enable(ctx context.Context, ref string, timeout time.Duration) error // 0: some seconds
	Disable(ctx context.Context, ref string, force bool) error
	Set(ref string, args []string) error
	Remove(ctx context.Context, ref string, force bool) error
}

// pluginRoutes answer for managed plugins.
type pluginRoutes struct{ *Server }

func (p pluginRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/plugins", p.list},
		{http.MethodGet, "/plugins/privileges", p.privileges},
		{http.MethodPost, "/plugins/pull", p.pull},
		{http.MethodPost, "/plugins/create", p.create},
		{http.MethodGet, "/plugins/{name...}/json", p.inspect},
		{http.MethodPost, "/plugins/{name...}/enable", p.enable},
		{http.MethodPost, "/plugins/{name...}/disable", p.disable},
		{http.MethodPost, "/plugins/{name...}/push", p.push},
		{http.MethodPost, "/plugins/{name...}/upgrade", p.upgrade},
		{http.MethodPost, "/plugins/{name...}/set", p.set},
		{http.MethodDelete, "/plugins/{name...}", p.remove},
	}
}

func (p pluginRoutes) list(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"enabled", "capability"})
	if err != nil {
		return err
	}
	enabled, err := f.truth("enabled", false)
	if err != nil {
		return err
	}
	answer := []apiplugin.Plugin{}
next:
	for _, one := range p.cfg.Plugins.List() {
		if f.has("enabled") && one.Enabled != enabled {
			continue
		}
		for _, t := range one.Config.Interface.Types {
			if !f.exact("capability", t.Capability) {
				continue next
			}
		}
		answer = append(answer, one)
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (p pluginRoutes) inspect(w *response, r *request) error {
	one, err := p.cfg.Plugins.Inspect(r.name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, one)
}

// transfer reads what a client wants of a registry, and the name that the plugin is to
// have here.
func (p pluginRoutes) transfer(r *request, name string) (t managed.Transfer, local string, err error) {
	ref, err := reference.ParseNormalizedNamed(r.query.get("remote"))
	if err != nil {
		return t, "", invalidf("%s", err)
	}
	tag := ""
	if tagged, ok := ref.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	if digested, ok := ref.(reference.Digested); ok {
		if ref, err = reference.WithDigest(reference.TrimNamed(ref), digested.Digest()); err != nil {
			return t, "", invalidf("%s", err)
		}
	}
	t = managed.Transfer{Remote: reference.TagNameOnly(ref), Auth: registryAuth(r)}
	here := reference.TrimNamed(ref)
	if name != "" {
		if here, err = reference.ParseNormalizedNamed(name); err != nil {
			return t, "", invalidf("%s", err)
		}
		if _, ok := here.(reference.Canonical); ok {
			return t, "", invalidf("cannot use digest in plugin tag")
		}
	} else if tag != "" {
		if here, err = reference.WithTag(here, tag); err != nil {
			return t, "", invalidf("%s", err)
		}
	}
	return t, reference.FamiliarString(reference.TagNameOnly(here)), nil
}

func (p pluginRoutes) privileges(w *response, r *request) error {
	t, _, err := p.transfer(r, "")
	if err != nil {
		return err
	}
	list, err := p.cfg.Plugins.Privileges(r.Context(), t)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// streamed answers with the steps of a transfer, under the name that a plugin has here.
func (p pluginRoutes) streamed(w *response, r *request, do func(told managed.Progress) error) error {
	out := &progressStream{w: w}
	err := do(func(id, status string, current, total int64) {
		line := progressLine{Message: jsonstream.Message{ID: id, Status: status}}
		if total > 0 && current < total {
			line.Progress = &jsonstream.Progress{Current: current, Total: total}
		}
		out.send(line)
	})
	if err != nil && out.begun() {
		out.fail(err)
		return nil
	}
	if err == nil && !out.begun() {
		w.WriteHeader(http.StatusOK)
	}
	return err
}

func (p pluginRoutes) pull(w *response, r *request) error {
	return p.bring(w, r, r.query.get("name"), p.cfg.Plugins.Pull)
}

func (p pluginRoutes) upgrade(w *response, r *request) error {
	return p.bring(w, r, r.name, p.cfg.Plugins.Upgrade)
}

// bring fetches a plugin from a registry, with the privileges that the client grants.
func (p pluginRoutes) bring(w *response, r *request, ref string, do func(ctx context.Context, name string, t managed.Transfer) error) error {
	t, name, err := p.transfer(r, ref)
	if err != nil {
		return err
	}
	if err := readJSON(w, r, &t.Privileges); err != nil {
		return err
	}
	w.Header().Set("Docker-Plugin-Name", name)
	return p.streamed(w, r, func(told managed.Progress) error {
		t.Told = told
		return do(r.Context(), name, t)
	})
}

func (p pluginRoutes) push(w *response, r *request) error {
	return p.streamed(w, r, func(told managed.Progress) error {
		return p.cfg.Plugins.Push(r.Context(), r.name, registryAuth(r), told)
	})
}

func (p pluginRoutes) create(w *response, r *request) error {
	defer drain(w, r)()
	if err := p.cfg.Plugins.Create(r.Context(), r.query.get("name"), r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (p pluginRoutes) enable(w *response, r *request) error {
	seconds := 0
	if s := r.query.get("timeout"); s != "" {
		var err error
		if seconds, err = strconv.Atoi(s); err != nil || seconds < 0 {
			return invalidf("invalid timeout %q: want a number of seconds", s)
		}
	}
	if err := p.cfg.Plugins.Enable(r.Context(), r.name, time.Duration(seconds)*time.Second); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (p pluginRoutes) disable(w *response, r *request) error {
	if err := p.cfg.Plugins.Disable(detached(r), r.name, r.query.bool("force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (p pluginRoutes) set(w *response, r *request) error {
	var args []string
	if err := readJSON(w, r, &args); err != nil {
		return err
	}
	if err := p.cfg.Plugins.Set(r.name, args); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (p pluginRoutes) remove(w *response, r *request) error {
	if err := p.cfg.Plugins.Remove(detached(r), r.name, r.query.bool("force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
