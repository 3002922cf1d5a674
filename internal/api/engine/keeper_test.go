package engine

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

// fakeKeeper keeps project "shop", and notes what it is told.
type fakeKeeper struct {
	told  []string
	ended bool // its task has ended
}

func (k *fakeKeeper) Creating(labels map[string]string) error {
	if labels["project"] == "shop" {
		return errdefs.ErrConflict.WithMessage("app shop is kept by the engine")
	}
	return nil
}

func (k *fakeKeeper) Halt(_ context.Context, labels map[string]string) error {
	k.told = append(k.told, "halt "+labels["task"])
	return nil
}

func (k *fakeKeeper) Resume(_ context.Context, labels map[string]string) error {
	k.told = append(k.told, "resume "+labels["task"])
	if k.ended {
		return errdefs.ErrConflict.WithMessage("its place is another's")
	}
	return nil
}

// kept adds a container of a task, in a state, and one of which only labels say so.
func kept(k *fakeKeeper, status container.Status) func(*rig) {
	return func(r *rig) {
		r.server.cfg.Keeper = k
		base := r.con.views[0]
		for name, owner := range map[string]*container.Owner{"shop-web-1": {Task: "t1"}, "forged": nil} {
			v := base
			config := *base.Config
			config.Labels = map[string]string{"task": "t1"}
			v.Name, v.ID, v.Config, v.Owner, v.State.Status = name, container.ID(fmt.Sprintf("%064x", name)), &config, owner, status
			r.con.views = append(r.con.views, v)
		}
	}
}

// What clients do to a container that is kept is told before it is done; that of others
// is not, whatever their labels.
func TestKeeperIsTold(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
		told         string
	}{
		{"POST", "/containers/%s/stop", 204, "halt t1"},
		{"DELETE", "/containers/%s?force=1", 204, "halt t1"},
		{"POST", "/containers/%s/start", 204, "resume t1"},
		{"POST", "/containers/%s/restart", 204, "resume t1"},
		{"POST", "/containers/%s/kill", 204, ""},
		{"POST", "/containers/%s/pause", 204, ""},
	} {
		k := &fakeKeeper{}
		r := newRig(t, kept(k, container.Exited))
		for name, told := range map[string]string{"shop-web-1": c.told, "forged": ""} {
			k.told = nil
			status, _, body := r.do(c.method, fmt.Sprintf(c.path, name), "")
			if got := strings.Join(k.told, ","); status != c.status || got != told {
				t.Errorf("%s %s of %s: %d %s, told %q, want %q", c.method, c.path, name, status, body, got, told)
			}
		}
	}
}

// Pruned, what was made only is halted; what has ended was before, or is replaced.
func TestKeeperPrune(t *testing.T) {
	for status, told := range map[container.Status]string{container.Created: "halt t1", container.Exited: ""} {
		k := &fakeKeeper{}
		r := newRig(t, kept(k, status))
		if code, _, body := r.do("POST", "/containers/prune", ""); code != http.StatusOK || strings.Join(k.told, ",") != told {
			t.Errorf("%s: %d %s, told %v", status, code, body, k.told)
		}
	}
}

func TestKeeperRefuses(t *testing.T) {
	k := &fakeKeeper{ended: true}
	r := newRig(t, kept(k, container.Exited))
	for _, c := range []struct{ path, body, words string }{
		{"/containers/create", `{"Image":"debian","Labels":{"project":"shop"}}`, "app shop is kept by the engine"},
		{"/containers/shop-web-1/start", "", "container shop-web-1: its place is another's"},
		{"/containers/shop-web-1/restart", "", "container shop-web-1: its place is another's"},
		{"/containers/shop-web-1/update", `{"RestartPolicy":{"Name":"always"}}`, "container shop-web-1 is kept by the engine: its restart policy is that of its service"},
	} {
		if status, _, body := r.do("POST", c.path, c.body); status != http.StatusConflict || !strings.Contains(body, c.words) {
			t.Errorf("%s: %d %s, want %q", c.path, status, body, c.words)
		}
	}
	if slices.ContainsFunc(r.con.calls, func(call string) bool { return call != "" }) {
		t.Errorf("something was done: %v", r.con.calls)
	}
}

// Where the keeper was quicker than the client's own start, the client is not told that
// nothing was to be done.
func TestKeeperStartsFirst(t *testing.T) {
	r := newRig(t, kept(&fakeKeeper{}, container.Exited), func(r *rig) { r.con.fail["Start"] = container.ErrNotModified })
	if status, _, body := r.do("POST", "/containers/shop-web-1/start", ""); status != http.StatusNoContent {
		t.Errorf("%d %s", status, body)
	}
	if status, _, _ := r.do("POST", "/containers/forged/start", ""); status != http.StatusNotModified {
		t.Errorf("another's: %d", status)
	}
}
