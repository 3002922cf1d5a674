package swarm

import (
	"fmt"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// keyed makes a secret "key" and services that use it.
func keyed(t *testing.T, services ...string) (r *rig, id string) {
	r = newRig(t).init()
	id, err := r.CreateSecret(t.Context(), swarm.SecretSpec{Annotations: swarm.Annotations{Name: "key", Labels: map[string]string{"a": "b"}}, Data: []byte("old")})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range services {
		s := web()
		s.Name = name
		s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: id, SecretName: "key", File: &swarm.SecretReferenceFileTarget{Name: "key", UID: "0", GID: "0", Mode: 0o444}}}
		if _, _, err := r.CreateService(t.Context(), s, Asked{}); err != nil {
			t.Fatal(err)
		}
	}
	return r, id
}

// service is one as it is stored, with the secret that it uses.
func (r *rig) service(name string) (o *cluster.Service, secret *cluster.Secret) {
	r.Helper()
	v := r.Store.View()
	o, err := store.Named[*cluster.Service](v, name)
	if err == nil {
		secret, err = store.Find[*cluster.Secret](v, o.Spec.Task.Secrets[0].ID)
	}
	if err != nil {
		r.Fatal(err)
	}
	return o, secret
}

// What is renewed keeps its name, and its services exchange their tasks; who goes back has
// what was there before, and can be changed from there.
func TestRenew(t *testing.T) {
	r, old := keyed(t, "a", "b")
	ctx := t.Context()
	plain := web()
	plain.Name = "plain"
	if _, _, err := r.CreateService(ctx, plain, Asked{}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Renew(ctx, cluster.KindSecret, "key", []byte("new"))
	if err != nil || fmt.Sprint(got.Services) != "[a b]" || got.ID == old {
		t.Fatal(got, err)
	}
	list, err := r.Secrets(nil)
	if err != nil || len(list) != 1 || list[0].ID != got.ID || list[0].Spec.Name != "key" || list[0].Spec.Labels["a"] != "b" {
		t.Errorf("%+v %v", list, err)
	}
	for _, name := range []string{"a", "b"} {
		o, secret := r.service(name)
		if string(secret.Spec.Data) != "new" || o.Spec.Number != 2 || o.Numbers != 2 || o.Previous.Task.Secrets[0].ID != old {
			t.Errorf("%s: %+v %+v", name, o, secret)
		}
		if s, _ := r.GetService(name, false); s.Spec.TaskTemplate.ContainerSpec.Secrets[0].SecretID != got.ID {
			t.Errorf("%s is told to use another", name)
		}
	}
	if o, err := store.Named[*cluster.Service](r.Store.View(), "plain"); err != nil || o.Spec.Number != 1 {
		t.Error("a service that does not use it was changed", err)
	}
	if again, err := r.Renew(ctx, cluster.KindSecret, "key", []byte("new")); err != nil || again.ID != got.ID || len(again.Services) != 0 {
		t.Error("the same content is no other", again, err)
	}
	// Back, changed there, and renewed from there.
	is, _ := r.GetService("a", false)
	if _, err := r.UpdateService(ctx, "a", is.Version.Index, is.Spec, Asked{Rollback: true}); err != nil {
		t.Fatal(err)
	}
	if _, secret := r.service("a"); string(secret.Spec.Data) != "old" || !secret.Replaced() {
		t.Errorf("%+v", secret)
	}
	if err := r.change("a", Asked{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ }); err != nil {
		t.Errorf("one that has gone back cannot be changed: %v", err)
	}
	_, err = r.Renew(ctx, cluster.KindSecret, old, []byte("x"))
	wants(t, err, errdefs.IsFailedPrecondition, "was replaced by "+got.ID)
	third, err := r.Renew(ctx, cluster.KindSecret, "key", []byte("third"))
	if err != nil || fmt.Sprint(third.Services) != "[a b]" {
		t.Fatal(third, err)
	}
	if _, secret := r.service("a"); string(secret.Spec.Data) != "third" {
		t.Errorf("%s", secret.Spec.Data)
	}
	wants(t, r.RemoveSecret(ctx, "key"), errdefs.IsInvalidArgument, "is in use by the following services: a, b")
}

// What cannot be renewed stays as it is.
func TestRenewRefused(t *testing.T) {
	var names []string
	for n := range maxRenewed + 1 {
		names = append(names, fmt.Sprint("s", n))
	}
	r, id := keyed(t, names...)
	ctx := t.Context()
	before := r.Store.View().Revision()
	_, err := r.Renew(ctx, cluster.KindSecret, "key", make([]byte, maxSecret))
	wants(t, err, errdefs.IsInvalidArgument, "secret data must be larger than 0 and less than 512000 bytes")
	_, err = r.Renew(ctx, cluster.KindSecret, "none", []byte("x"))
	wants(t, err, errdefs.IsNotFound, "secret none not found")
	_, err = r.Renew(ctx, cluster.KindSecret, "key", []byte("x"))
	wants(t, err, errdefs.IsFailedPrecondition, "secret key is used by 99 services: at most 98 can be renewed at once")
	if r.Store.View().Revision() != before {
		t.Error("something was written")
	}
	if err := r.RemoveService(ctx, "s0"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Renew(ctx, cluster.KindSecret, id, []byte("x")); err != nil || len(got.Services) != maxRenewed {
		t.Error(len(got.Services), err)
	}
	r.commit(store.Create(&cluster.App{Meta: cluster.Meta{ID: "shop", Name: "shop"}}), store.Create(&cluster.Config{Meta: cluster.Meta{Name: "shop_c", Owner: "shop"}}))
	_, err = r.Renew(ctx, cluster.KindConfig, "shop_c", []byte("x"))
	wants(t, err, errdefs.IsConflict, "is of app shop")
}

// A job is not done again for it.
func TestRenewOfJob(t *testing.T) {
	r := newRig(t).init()
	id, err := r.CreateConfig(t.Context(), swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "c"}, Data: []byte("old")})
	if err != nil {
		t.Fatal(err)
	}
	s := web()
	s.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	s.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigID: id, ConfigName: "c", File: &swarm.ConfigReferenceFileTarget{Name: "/c", UID: "0", GID: "0", Mode: 0o444}}}
	if _, _, err := r.CreateService(t.Context(), s, Asked{}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Renew(t.Context(), cluster.KindConfig, "c", []byte("new"))
	o, _ := store.Named[*cluster.Service](r.Store.View(), "web")
	if err != nil || len(got.Services) != 1 || o.Spec.Number != 1 || o.Spec.Task.Configs[0].ID != got.ID {
		t.Errorf("%+v %v %+v", got, err, o.Spec)
	}
}
