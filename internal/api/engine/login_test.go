package engine

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

type fakeRegistries struct{}

func (fakeRegistries) Login(_ context.Context, a registry.AuthConfig) (string, error) {
	if a.Password != "secret" {
		return "", errdefs.ErrUnauthenticated.WithMessage("unauthorized: incorrect username or password")
	}
	return "for " + a.Username, nil
}

func TestLoginRoute(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.cfg.Registries = fakeRegistries{} })
	for _, c := range []struct {
		body   string
		status int
		want   string
	}{
		{`{"username":"ann","password":"secret"}`, 200, `{"IdentityToken":"for ann","Status":"Login Succeeded"}`},
		{`{"username":"ann"}`, 401, `incorrect username or password`},
		{`{`, 400, `invalid JSON`},
	} {
		if status, _, body := r.do("POST", "/auth", c.body); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s", c.body, status, body)
		}
	}
}
