package secret

import (
	"context"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/endpoint"
	"escale.dev/escale/internal/cli/verb"
)

// driver gives the name of a driver, and name the driver of a name.
func driver(d *swarm.Driver) string {
	if d == nil {
		return ""
	}
	return d.Name
}

func named(name string) *swarm.Driver {
	if name == "" {
		return nil
	}
	return &swarm.Driver{Name: name}
}

func ofSecret(s swarm.Secret) file {
	return file{id: s.ID, meta: s.Meta, name: s.Spec.Name, labels: s.Spec.Labels, driver: driver(s.Spec.Driver)}
}

func ofConfig(c swarm.Config) file {
	return file{id: c.ID, meta: c.Meta, name: c.Spec.Name, labels: c.Spec.Labels, data: c.Spec.Data}
}

func secrets() *kind {
	return &kind{
		name: "secret", drivers: true, most: 500 << 10, value: swarm.Secret{},
		format: func(c endpoint.Config) string { return c.SecretFormat },
		list: func(ctx context.Context, c *client.Client, f verb.Filter) ([]file, error) {
			res, err := c.SecretList(ctx, moby.SecretListOptions{Filters: f.API()})
			var list []file
			for _, s := range res.Items {
				list = append(list, ofSecret(s))
			}
			return list, err
		},
		inspect: func(ctx context.Context, c *client.Client, name string) (file, []byte, error) {
			res, err := c.SecretInspect(ctx, name, moby.SecretInspectOptions{})
			return ofSecret(res.Secret), res.Raw, err
		},
		create: func(ctx context.Context, c *client.Client, f file) (string, error) {
			res, err := c.SecretCreate(ctx, moby.SecretCreateOptions{Spec: swarm.SecretSpec{
				Annotations: swarm.Annotations{Name: f.name, Labels: f.labels}, Data: f.data, Driver: named(f.driver), Templating: named(f.template),
			}})
			return res.ID, err
		},
		remove: func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.SecretRemove(ctx, name, moby.SecretRemoveOptions{})
			return err
		},
		renew: func(ctx context.Context, c *client.Client, name string, data []byte) (client.Renewed, error) {
			return c.SecretRenew(ctx, name, data)
		},
	}
}

func configs() *kind {
	return &kind{
		name: "config", most: 1000 << 10, value: swarm.Config{},
		format: func(c endpoint.Config) string { return c.ConfigFormat },
		list: func(ctx context.Context, c *client.Client, f verb.Filter) ([]file, error) {
			res, err := c.ConfigList(ctx, moby.ConfigListOptions{Filters: f.API()})
			var list []file
			for _, s := range res.Items {
				list = append(list, ofConfig(s))
			}
			return list, err
		},
		inspect: func(ctx context.Context, c *client.Client, name string) (file, []byte, error) {
			res, err := c.ConfigInspect(ctx, name, moby.ConfigInspectOptions{})
			return ofConfig(res.Config), res.Raw, err
		},
		create: func(ctx context.Context, c *client.Client, f file) (string, error) {
			res, err := c.ConfigCreate(ctx, moby.ConfigCreateOptions{Spec: swarm.ConfigSpec{
				Annotations: swarm.Annotations{Name: f.name, Labels: f.labels}, Data: f.data, Templating: named(f.template),
			}})
			return res.ID, err
		},
		remove: func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ConfigRemove(ctx, name, moby.ConfigRemoveOptions{})
			return err
		},
		renew: func(ctx context.Context, c *client.Client, name string, data []byte) (client.Renewed, error) {
			return c.ConfigRenew(ctx, name, data)
		},
	}
}
