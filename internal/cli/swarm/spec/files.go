package spec

import (
	"context"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"
)

// secretRefs finds the secrets that are asked for.
func secretRefs(ctx context.Context, asked []reference, names Names) ([]*swarm.SecretReference, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	if err := noTwins("secret", asked); err != nil {
		return nil, err
	}
	ids, err := names.Secrets(ctx, sources(asked))
	if err != nil {
		return nil, err
	}
	var list []*swarm.SecretReference
	for _, r := range asked {
		id, ok := ids[r.source]
		if !ok {
			return nil, fmt.Errorf("secret not found: %s", r.source)
		}
		list = append(list, &swarm.SecretReference{SecretID: id, SecretName: r.source, File: &swarm.SecretReferenceFileTarget{Name: r.target, UID: r.uid, GID: r.gid, Mode: r.mode}})
	}
	return list, nil
}

// configRefs finds the configs that are asked for as files, and the one that holds
// credentials, unless its name is empty.
func configRefs(ctx context.Context, asked []reference, credentials string, names Names) ([]*swarm.ConfigReference, error) {
	if len(asked) == 0 && credentials == "" {
		return nil, nil
	}
	if err := noTwins("config", asked); err != nil {
		return nil, err
	}
	all := sources(asked)
	if credentials != "" {
		all = append(all, credentials)
	}
	ids, err := names.Configs(ctx, all)
	if err != nil {
		return nil, err
	}
	var list []*swarm.ConfigReference
	for _, r := range asked {
		list = append(list, &swarm.ConfigReference{ConfigName: r.source, File: &swarm.ConfigReferenceFileTarget{Name: r.target, UID: r.uid, GID: r.gid, Mode: r.mode}})
	}
	if credentials != "" {
		list = append(list, &swarm.ConfigReference{ConfigName: credentials, Runtime: &swarm.ConfigReferenceRuntimeTarget{}})
	}
	for _, r := range list {
		id, ok := ids[r.ConfigName]
		if !ok {
			return nil, fmt.Errorf("config not found: %s", r.ConfigName)
		}
		r.ConfigID = id
	}
	return list, nil
}

// noTwins refuses two for one file.
func noTwins(kind string, asked []reference) error {
	seen := map[string]bool{}
	for _, r := range asked {
		if seen[r.target] {
			return fmt.Errorf("duplicate %s target for %s not allowed", kind, r.source)
		}
		seen[r.target] = true
	}
	return nil
}

func sources(asked []reference) []string {
	var list []string
	for _, r := range asked {
		if !slices.Contains(list, r.source) {
			list = append(list, r.source)
		}
	}
	return list
}

// credentialName is the config that credentials are asked for from, or "".
func (o *Options) credentialName() string {
	if o.credential.value == nil {
		return ""
	}
	return o.credential.value.Config
}

// createFiles gives a new service its secrets and configs.
func (o *Options) createFiles(ctx context.Context, c *swarm.ContainerSpec, names Names) error {
	var err error
	if c.Secrets, err = secretRefs(ctx, o.secrets.list, names); err != nil {
		return err
	}
	if c.Configs, err = configRefs(ctx, o.configs.list, o.credentialName(), names); err != nil {
		return err
	}
	o.credentialID(c)
	return nil
}

// credentialID puts the ID of the config that holds credentials in the place of its name.
func (o *Options) credentialID(c *swarm.ContainerSpec) {
	name := o.credentialName()
	if name == "" || c.Privileges == nil || c.Privileges.CredentialSpec == nil {
		return
	}
	for _, r := range c.Configs {
		if r.ConfigName == name {
			c.Privileges.CredentialSpec.Config = r.ConfigID
			return
		}
	}
}

// updateFiles takes secrets and configs from a service, and gives it others.
func (o *Options) updateFiles(ctx context.Context, c *swarm.ContainerSpec, names Names) error {
	gone := o.gone("secret")
	secrets := slices.DeleteFunc(slices.Clone(c.Secrets), func(r *swarm.SecretReference) bool { return gone[r.SecretName] })
	more, err := secretRefs(ctx, o.secrets.list, names)
	if err != nil {
		return err
	}
	c.Secrets = append(secrets, more...)
	return o.updateConfigs(ctx, c, names)
}

func (o *Options) updateConfigs(ctx context.Context, c *swarm.ContainerSpec, names Names) error {
	wanted, kept := o.credentialName(), ""
	if !o.changed("credential-spec") && c.Privileges != nil && c.Privileges.CredentialSpec != nil {
		kept = c.Privileges.CredentialSpec.Config
	}
	gone := o.gone("config")
	configs := slices.DeleteFunc(slices.Clone(c.Configs), func(r *swarm.ConfigReference) bool {
		if r.Runtime != nil { // of credentials: they go with those
			return kept == "" || r.ConfigID != kept
		}
		return gone[r.ConfigName]
	})
	more, err := configRefs(ctx, o.configs.list, wanted, names)
	if err != nil {
		return err
	}
	c.Configs = append(configs, more...)
	if !o.changed("credential-spec") {
		return nil
	}
	switch {
	case o.credential.source != "":
		if c.Privileges == nil {
			c.Privileges = &swarm.Privileges{}
		}
		c.Privileges.CredentialSpec = o.credential.value
		o.credentialID(c)
	case c.Privileges != nil:
		c.Privileges.CredentialSpec = nil
	}
	return nil
}
