package executor

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	gotemplate "text/template"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// place is where the task is, as templates ask.
func (c *controller) place(v store.View) cluster.Place {
	n, err := store.Find[*cluster.Node](v, c.x.node)
	if err != nil {
		n = &cluster.Node{Meta: cluster.Meta{ID: c.x.node}}
	}
	return c.t.Place(n)
}

// expand puts the task's own values where texts ask for them, as Docker does: in the host
// name, and for services of a swarm in variables and mounts, too.
func (c *controller) expand(v store.View, cfg *container.Config, host *container.HostConfig) error {
	place := c.place(v)
	var failed error
	fill := func(what, text string) string {
		out, err := place.Expand(text, nil)
		if err != nil && failed == nil {
			failed = fmt.Errorf("expanding %s failed: %w", what, err)
		}
		return out
	}
	cfg.Hostname = fill("hostname", cfg.Hostname)
	if c.t.App != "" {
		return failed
	}
	cfg.Env = slices.Clone(cfg.Env)
	for i, e := range cfg.Env {
		cfg.Env[i] = fill("env", e)
	}
	host.Mounts = slices.Clone(host.Mounts)
	for i := range host.Mounts {
		m := &host.Mounts[i]
		m.Source, m.Target = fill("mounts", m.Source), fill("mounts", m.Target)
		if m.VolumeOptions == nil {
			continue
		}
		o := *m.VolumeOptions
		o.Labels = maps.Clone(o.Labels)
		for k, is := range o.Labels {
			o.Labels[k] = fill("mounts", is)
		}
		if o.DriverConfig != nil {
			d := mount.Driver{Name: o.DriverConfig.Name, Options: maps.Clone(o.DriverConfig.Options)}
			for k, is := range d.Options {
				d.Options[k] = fill("mounts", is)
			}
			o.DriverConfig = &d
		}
		m.VolumeOptions = &o
	}
	return failed
}

// resources tells the program which resources it has got, as Docker does: those that have
// names by these, the others by their number.
func (c *controller) resources(cfg *container.Config) {
	cfg.Env = slices.Clone(cfg.Env)
	for _, kind := range slices.Sorted(maps.Keys(c.t.Spec.Reserved.Generic)) {
		has := strings.Join(c.t.Claimed[kind], ",")
		if has == "" {
			has = strconv.FormatInt(c.t.Spec.Reserved.Generic[kind], 10)
		}
		cfg.Env = append(cfg.Env, "DOCKER_RESOURCE_"+strings.ToUpper(kind)+"="+has)
	}
}

// render makes of a secret or config that is a template what the task gets: its own
// values, its variables, and others of its secrets and configs, by their targets.
func (c *controller) render(v store.View, data []byte) ([]byte, error) {
	lookupIn := func(refs []cluster.FileRef, dir string, get func(cluster.FileRef) ([]byte, bool, error)) func(string) (string, error) {
		return func(target string) (string, error) {
			for _, r := range refs {
				if r.Target != target && strings.TrimPrefix(r.Target, dir) != target {
					continue
				}
				data, template, err := get(r)
				if err == nil && template {
					err = fmt.Errorf("%s is a template itself", target)
				}
				return string(data), err
			}
			return "", fmt.Errorf("%s is not the task's", target)
		}
	}
	out, err := c.place(v).Expand(string(data), gotemplate.FuncMap{
		"env": func(name string) (string, error) {
			for _, e := range c.t.Spec.Container.Env {
				if k, is, _ := strings.Cut(e, "="); k == name {
					return c.place(v).Expand(is, nil)
				}
			}
			return "", fmt.Errorf("environment variable %s is not the task's", name)
		},
		"secret": lookupIn(c.t.Spec.Secrets, "/run/secrets/", func(r cluster.FileRef) ([]byte, bool, error) {
			o, err := store.Referred[*cluster.Secret](v, r, c.app(v))
			if err != nil {
				return nil, false, err
			}
			return o.Spec.Data, o.Spec.Template, nil
		}),
		"config": lookupIn(c.t.Spec.Configs, "/", func(r cluster.FileRef) ([]byte, bool, error) {
			o, err := store.Referred[*cluster.Config](v, r, c.app(v))
			if err != nil {
				return nil, false, err
			}
			return o.Spec.Data, o.Spec.Template, nil
		}),
	})
	return []byte(out), err
}
