package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/apps"
	"github.com/containerd/errdefs"
)

// fakeApps knows the app "shop", and notes what it is asked.
type fakeApps struct{ asked []string }

func (f *fakeApps) note(name, what string, a ...any) error {
	f.asked = append(f.asked, fmt.Sprintf(what, a...))
	if name == "locked" {
		return fmt.Errorf("app %s: its store is locked: %w", name, errdefs.ErrFailedPrecondition)
	}
	if name != "shop" {
		return errdefs.ErrNotFound.WithMessage("No such app: " + name)
	}
	return nil
}

func (f *fakeApps) List() []apps.View { return []apps.View{{Name: "shop", Phase: cluster.AppSteady}} }

func (f *fakeApps) Volumes(name string) []apps.VolumeView {
	return []apps.VolumeView{{Name: name + "_data", Node: "n2", Away: true, Removed: true}}
}

func (f *fakeApps) Get(name string) (apps.View, error) {
	return apps.View{Name: name}, f.note(name, "get %s", name)
}

func (f *fakeApps) Put(_ context.Context, name string, spec cluster.AppSpec, o apps.Put) (*apps.Plan, error) {
	return &apps.Plan{App: name, To: 1}, f.note(name, "put %s %d %+v", name, len(spec.Services), o)
}

func (f *fakeApps) Scale(_ context.Context, name string, replicas map[string]uint64) (*apps.Plan, error) {
	return &apps.Plan{App: name}, f.note(name, "scale %s %v", name, replicas)
}

func (f *fakeApps) Rollback(_ context.Context, name string, to uint64, dryRun bool) (*apps.Plan, error) {
	return &apps.Plan{App: name}, f.note(name, "rollback %s %d %t", name, to, dryRun)
}

func (f *fakeApps) Remove(_ context.Context, name string, volumes bool) error {
	return f.note(name, "remove %s %t", name, volumes)
}

func (f *fakeApps) Release(_ context.Context, name string) error {
	return f.note(name, "release %s", name)
}

func (f *fakeApps) Again(_ context.Context, name, task string) (string, error) {
	return "next", f.note(name, "again %s %s", name, task)
}

func (f *fakeApps) History(name string) ([]apps.Revision, error) {
	return []apps.Revision{{Number: 3, Current: true}}, f.note(name, "history %s", name)
}

func (f *fakeApps) Follow(_ context.Context, name string, told func(apps.View) error) error {
	if err := f.note(name, "follow %s", name); err != nil {
		return err
	}
	for _, phase := range []cluster.AppPhase{cluster.AppChanging, cluster.AppSteady} {
		if err := told(apps.View{Name: name, Phase: phase}); err != nil {
			return err
		}
	}
	return nil
}

func TestAppRoutes(t *testing.T) {
	fake := new(fakeApps)
	r := newRig(t, func(r *rig) { r.server.cfg.Apps = fake })
	for _, c := range []struct {
		method, path, body string
		status             int
		has, asked         string
	}{
		{"GET", "/escale/apps", "", 200, `"Name":"shop"`, ""},
		{"GET", "/v1.51/escale/apps/shop", "", 200, `"Name":"shop"`, "get shop"},
		{"GET", "/escale/apps/none", "", 404, `{"message":"No such app: none"}`, "get none"},
		{"GET", "/escale/apps/locked", "", 412, `{"message":"app locked: its store is locked"}`, "get locked"}, // the kind is the status
		{"PUT", "/escale/apps/shop", `{"Services":{"web":{}}}`, 200, `"App":"shop"`, "put shop 1 {DryRun:false Merge:false Remove:[] Replace:[] Create:false RenewVolumes:false}"},
		{"PUT", "/escale/apps/shop?dryRun=1&merge=1&remove=a&remove=b&replace=c&create=1&renewVolumes=true", `{}`, 200, `"To":1`,
			"put shop 0 {DryRun:true Merge:true Remove:[a b] Replace:[c] Create:true RenewVolumes:true}"},
		{"PUT", "/escale/apps/shop", `{"Services":3}`, 400, "message", ""},
		{"POST", "/escale/apps/shop/scale", `{"web":3}`, 200, `"App":"shop"`, "scale shop map[web:3]"},
		{"POST", "/escale/apps/shop/scale", `{}`, 400, "no service to be scaled", ""},
		{"POST", "/escale/apps/shop/scale", `{"web":-1}`, 400, "message", ""},
		{"POST", "/escale/apps/shop/rollback", "", 200, `"App":"shop"`, "rollback shop 0 false"},
		{"POST", "/escale/apps/shop/rollback?to=7&dryRun=1", "", 200, `"App":"shop"`, "rollback shop 7 true"},
		{"POST", "/escale/apps/shop/rollback?to=x", "", 400, "invalid value", ""},
		{"DELETE", "/escale/apps/shop?volumes=1", "", 204, "", "remove shop true"},
		{"DELETE", "/escale/apps/none", "", 404, "No such app", "remove none false"},
		{"POST", "/escale/apps/shop/release", "", 204, "", "release shop"},
		{"POST", "/escale/apps/shop/again?task=t1", "", 200, `{"Task":"next"}`, "again shop t1"},
		{"POST", "/escale/apps/none/again?task=t1", "", 404, "No such app", "again none t1"},
		{"GET", "/escale/apps/shop/history", "", 200, `"Number":3`, "history shop"},
		{"GET", "/escale/apps/shop/volumes", "", 200, `"Name":"shop_data","Node":"n2","Away":true,"Removed":true`, ""},
		{"GET", "/escale/apps/shop/follow", "", 200, `"Phase":"steady"`, "follow shop"},
		{"GET", "/escale/apps/none/follow", "", 404, "No such app", "follow none"},
	} {
		fake.asked = nil
		status, _, body := r.do(c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.has) || strings.Join(fake.asked, "; ") != c.asked {
			t.Errorf("%s %s: %d %s (asked %q), want %d %s (%q)", c.method, c.path, status, body, fake.asked, c.status, c.has, c.asked)
		}
	}
}
