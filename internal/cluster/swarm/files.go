package swarm

import (
	"context"
	"maps"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// golang is the one kind of template that there is.
const golang = "golang"

// templated tells whether a secret or config is a template.
func templated(d *swarm.Driver) (bool, error) {
	switch {
	case d == nil || d.Name == "":
		return false, nil
	case d.Name != golang || len(d.Options) > 0:
		return false, invalid("template driver %q: only %q is possible, without options", d.Name, golang)
	}
	return true, nil
}

func template(is bool) *swarm.Driver {
	if !is {
		return nil
	}
	return &swarm.Driver{Name: golang}
}

// filter tells whether an object is among those that are asked for.
func (f Filters) filter(m *cluster.Meta) bool {
	return f.begins("id", m.ID) && f.begins("name", m.Name) && f.is("names", m.Name) && f.labels("label", m.Labels)
}

// Secrets lists secrets, without what is in them. Filters: id, name, names, label.
func (s *Swarm) Secrets(f Filters) ([]swarm.Secret, error) {
	v := s.Store.View()
	if _, err := the(v); err != nil {
		return nil, err
	}
	out := []swarm.Secret{}
	for _, o := range store.List[*cluster.Secret](v) {
		if f.filter(&o.Meta) && !o.Replaced() && !o.Internal() {
			out = append(out, tellSecret(o))
		}
	}
	return out, nil
}

func tellSecret(o *cluster.Secret) swarm.Secret {
	return swarm.Secret{ID: o.ID, Meta: meta(&o.Meta), Spec: swarm.SecretSpec{Annotations: annotations(o.Name, o.Labels), Templating: template(o.Spec.Template)}}
}

// GetSecret tells of a secret, but not what is in it. NotFound.
func (s *Swarm) GetSecret(ref string) (swarm.Secret, error) {
	o, err := find[*cluster.Secret](s.Store.View(), "secret", ref)
	if err != nil {
		return swarm.Secret{}, err
	}
	return tellSecret(o), nil
}

// CreateSecret makes a secret, and gives its id.
func (s *Swarm) CreateSecret(ctx context.Context, asked swarm.SecretSpec) (string, error) {
	if _, err := the(s.Store.View()); err != nil {
		return "", err
	}
	is, err := templated(asked.Templating)
	if err == nil {
		err = checkFileName(asked.Name)
	}
	switch {
	case err != nil:
		return "", err
	case asked.Driver != nil && asked.Driver.Name != "":
		return "", invalid("secret driver %q: secrets are kept by the swarm itself, there are no plugins for them", asked.Driver.Name)
	case len(asked.Data) == 0 || len(asked.Data) >= maxSecret:
		return "", invalid("secret data must be larger than 0 and less than %d bytes", maxSecret)
	}
	o := &cluster.Secret{Meta: cluster.Meta{ID: cluster.NewID(), Name: asked.Name, Labels: asked.Labels}, Spec: cluster.SecretSpec{Name: asked.Name, Data: asked.Data, Template: is}}
	return o.ID, create(ctx, s.Store, "secret", o)
}

// create makes a secret or config.
func create(ctx context.Context, s store.Store, what string, o cluster.Object) error {
	_, err := s.Commit(ctx, store.Create(o))
	if errdefs.IsAlreadyExists(err) {
		return rpc(errdefs.ErrAlreadyExists, "%s %s already exists", what, o.Base().Name)
	}
	return err
}

// UpdateSecret changes the labels of a secret, as it was at a version.
func (s *Swarm) UpdateSecret(ctx context.Context, ref string, version uint64, asked swarm.SecretSpec) error {
	v := s.Store.View()
	o, err := find[*cluster.Secret](v, "secret", ref)
	if err != nil {
		return err
	}
	same := asked.Name == o.Name && (len(asked.Data) == 0 || string(asked.Data) == string(o.Spec.Data)) && (asked.Templating != nil) == o.Spec.Template && asked.Driver == nil
	return relabel(ctx, s, v, "secret", o, version, same, asked.Labels)
}

// relabel gives a secret or config other labels, which is all that can be changed.
func relabel[T cluster.Object](ctx context.Context, s *Swarm, v store.View, what string, o T, version uint64, same bool, labels map[string]string) error {
	if err := owned(v, what, o.Base()); err != nil {
		return err
	}
	if !same {
		return invalid("only updates to Labels are allowed")
	}
	if version != o.Base().Revision {
		return errOutOfOrder
	}
	o = store.Copy(o)
	o.Base().Labels = maps.Clone(labels)
	_, err := s.Store.Commit(ctx, store.Update(o))
	return written(err)
}

// RemoveSecret forgets a secret that no service uses.
func (s *Swarm) RemoveSecret(ctx context.Context, ref string) error {
	return removeFile[*cluster.Secret](ctx, s, "secret", ref, func(t *cluster.TaskSpec) []cluster.FileRef { return t.Secrets })
}

// removeFile removes a secret or config. A task of a service that began to use it in the
// same instant is rejected, and says so.
func removeFile[T cluster.Object](ctx context.Context, s *Swarm, what, ref string, refs func(*cluster.TaskSpec) []cluster.FileRef) error {
	for {
		v := s.Store.View()
		o, err := find[T](v, what, ref)
		if err == nil {
			err = owned(v, what, o.Base())
		}
		if err == nil {
			err = inUse(v, what, o, refs)
		}
		if err != nil {
			return err
		}
		if _, err = s.Store.Commit(ctx, store.Delete(o)); !errdefs.IsConflict(err) {
			return err
		}
	}
}

// Configs lists configs. Filters: id, name, names, label.
func (s *Swarm) Configs(f Filters) ([]swarm.Config, error) {
	v := s.Store.View()
	if _, err := the(v); err != nil {
		return nil, err
	}
	out := []swarm.Config{}
	for _, o := range store.List[*cluster.Config](v) {
		if f.filter(&o.Meta) && !o.Replaced() {
			out = append(out, tellConfig(o))
		}
	}
	return out, nil
}

func tellConfig(o *cluster.Config) swarm.Config {
	return swarm.Config{ID: o.ID, Meta: meta(&o.Meta), Spec: swarm.ConfigSpec{Annotations: annotations(o.Name, o.Labels), Data: o.Spec.Data, Templating: template(o.Spec.Template)}}
}

// GetConfig tells of a config and what is in it. NotFound.
func (s *Swarm) GetConfig(ref string) (swarm.Config, error) {
	o, err := find[*cluster.Config](s.Store.View(), "config", ref)
	if err != nil {
		return swarm.Config{}, err
	}
	return tellConfig(o), nil
}

// CreateConfig makes a config, and gives its id.
func (s *Swarm) CreateConfig(ctx context.Context, asked swarm.ConfigSpec) (string, error) {
	if _, err := the(s.Store.View()); err != nil {
		return "", err
	}
	is, err := templated(asked.Templating)
	if err == nil {
		err = checkFileName(asked.Name)
	}
	if err == nil && (len(asked.Data) == 0 || len(asked.Data) >= maxConfig) {
		err = invalid("config data must be larger than 0 and less than %d bytes", maxConfig)
	}
	if err != nil {
		return "", err
	}
	o := &cluster.Config{Meta: cluster.Meta{ID: cluster.NewID(), Name: asked.Name, Labels: asked.Labels}, Spec: cluster.ConfigSpec{Name: asked.Name, Data: asked.Data, Template: is}}
	return o.ID, create(ctx, s.Store, "config", o)
}

// UpdateConfig changes the labels of a config, as it was at a version.
func (s *Swarm) UpdateConfig(ctx context.Context, ref string, version uint64, asked swarm.ConfigSpec) error {
	v := s.Store.View()
	o, err := find[*cluster.Config](v, "config", ref)
	if err != nil {
		return err
	}
	same := asked.Name == o.Name && (len(asked.Data) == 0 || string(asked.Data) == string(o.Spec.Data)) && (asked.Templating != nil) == o.Spec.Template
	return relabel(ctx, s, v, "config", o, version, same, asked.Labels)
}

// RemoveConfig forgets a config that no service uses.
func (s *Swarm) RemoveConfig(ctx context.Context, ref string) error {
	return removeFile[*cluster.Config](ctx, s, "config", ref, func(t *cluster.TaskSpec) []cluster.FileRef { return t.Configs })
}
