// Package deploy makes stacks of compose files, as `escale stack deploy` does, and
// prints what the files come to. It is linked into escaled, started by escale, as it
// needs the reader of compose files of Docker's client: the one that knows what a stack
// can have, version by version.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/compose/types"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/swarm/progress"
	"escale.dev/escale/internal/cli/swarm/service"
	"escale.dev/escale/internal/cli/swarm/stack"
	"escale.dev/escale/internal/cli/verb"
)

// Main does what was handed over, and returns the exit code. It blocks until that is done.
func Main() int {
	ctx, stop := verb.WithSignals(context.Background())
	defer stop()
	d := deployment{app: &verb.App{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}}
	s, err := handed.ReadStack()
	if err == nil {
		d.Stack, d.app.Name = s, s.Engine.Name
		err = d.run(ctx)
	}
	if err == nil {
		return 0
	}
	if t, ok := context.Cause(ctx).(verb.Terminated); ok && errors.Is(err, context.Canceled) {
		return 128 + int(t.Sig)
	}
	text := err.Error()
	if moby.IsErrConnectionFailed(err) && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)) {
		text = fmt.Sprintf("Cannot connect to the Docker daemon at %s. Is the docker daemon running?\nStart the engine with 'escale daemon' or 'systemctl start escale', or name another with -H or ESCALE_HOST.", s.Engine.Host)
	}
	d.app.Complain(text)
	return 1
}

// deployment is a stack that is asked for.
type deployment struct {
	*handed.Stack
	app  *verb.App
	conn *client.Client
	name namespace
}

func (d *deployment) run(ctx context.Context) error {
	if d.Do == handed.StackConfig {
		text, err := config(d.app.In, d.Files, os.Environ(), d.SkipInterpolation)
		if err == nil {
			d.app.Printf("%s", text)
		}
		return err
	}
	c, err := load(d.app.In, d.app.Err, d.Files, os.Environ())
	if err != nil {
		return err
	}
	switch d.ResolveImage {
	case resolveAlways, resolveChanged, resolveNever:
	default:
		return fmt.Errorf("Invalid option %s for flag --resolve-image", d.ResolveImage) //nolint:staticcheck // Docker's words.
	}
	if d.Detach && !d.DetachGiven {
		d.app.Complain("Since --detach=false was not specified, tasks will be created in the background.\nIn a future release, --detach=false will become the default.")
	}
	e := d.Engine
	d.conn, err = client.New(client.Options{Host: e.Host, APIVersion: e.APIVersion, Headers: e.Headers, UserAgent: e.UserAgent})
	if err != nil {
		return err
	}
	defer d.conn.Close()
	d.name = namespace(d.Name)
	return d.deploy(ctx, c)
}

// When registries are asked for the digest and platforms of an image.
const (
	resolveAlways  = "always"
	resolveChanged = "changed"
	resolveNever   = "never"
)

// deploy makes what the files ask for: networks, secrets and configs first, as services
// need them.
func (d *deployment) deploy(ctx context.Context, c *types.Config) error {
	info, err := d.conn.Info(ctx, moby.InfoOptions{})
	if err != nil {
		return err
	}
	if !info.Info.Swarm.ControlAvailable {
		return fmt.Errorf("this node is not a swarm manager. Use \"%[1]s swarm init\" or \"%[1]s swarm join\" to connect this node to swarm and try again", d.app.Name)
	}
	have, err := d.conn.ServiceList(ctx, moby.ServiceListOptions{Filters: d.filter()})
	if err != nil {
		return err
	}
	if d.Prune {
		d.prune(ctx, c, have.Items)
	}
	for _, make := range []func(context.Context, *types.Config) error{d.networks, d.secrets, d.configs} {
		if err := make(ctx, c); err != nil {
			return err
		}
	}
	var specs []*swarm.ServiceSpec
	for i := range c.Services {
		s, err := d.name.service(ctx, c, &c.Services[i], service.IDs{Client: d.conn})
		if err != nil {
			return fmt.Errorf("service %s: %w", c.Services[i].Name, err)
		}
		specs = append(specs, s)
	}
	slices.SortFunc(specs, func(x, y *swarm.ServiceSpec) int { return strings.Compare(x.Name, y.Name) })
	ids, err := d.services(ctx, specs, have.Items)
	if err != nil || d.Detach {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := progress.Service(ctx, d.conn, d.app.Name, id, d.app.Out, d.Quiet); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
		}
	}
	return verb.Join(errs)
}

func (d *deployment) filter() moby.Filters {
	return moby.Filters{}.Add("label", stackLabel+"="+d.Name)
}

// prune removes services that the files have no more.
func (d *deployment) prune(ctx context.Context, c *types.Config, have []swarm.Service) {
	list := slices.DeleteFunc(slices.Clone(have), func(s swarm.Service) bool {
		return slices.ContainsFunc(c.Services, func(x types.ServiceConfig) bool { return d.name.scope(x.Name, "") == s.Spec.Name })
	})
	stack.Prune(ctx, d.app, d.conn, list)
}

func (d *deployment) networks(ctx context.Context, c *types.Config) error {
	own, external := d.name.networks(c)
	slices.Sort(external)
	for _, name := range external {
		if err := d.external(ctx, name); err != nil {
			return err
		}
	}
	res, err := d.conn.NetworkList(ctx, moby.NetworkListOptions{Filters: d.filter()})
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, n := range res.Items {
		have[n.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if have[name] {
			continue
		}
		d.app.Println("Creating network", name)
		if _, err := d.conn.NetworkCreate(ctx, name, own[name]); err != nil {
			return fmt.Errorf("failed to create network %s: %w", name, err)
		}
	}
	return nil
}

// external refuses a network that is said to be there, and is not, or not for services.
func (d *deployment) external(ctx context.Context, name string) error {
	if !container.NetworkMode(name).IsUserDefined() {
		return nil // each node has its own
	}
	res, err := d.conn.NetworkInspect(ctx, name, moby.NetworkInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("network %q is declared as external, but could not be found. You need to create a swarm-scoped network before the stack is deployed", name)
	case err != nil:
		return err
	case res.Network.Scope != "swarm":
		return fmt.Errorf("network %q is declared as external, but it is not in the right scope: %q instead of \"swarm\"", name, res.Network.Scope)
	}
	return nil
}

func (d *deployment) secrets(ctx context.Context, c *types.Config) error {
	specs, err := d.name.secrets(c.Secrets)
	if err != nil {
		return err
	}
	for _, s := range specs {
		res, err := d.conn.SecretInspect(ctx, s.Name, moby.SecretInspectOptions{})
		switch {
		case err == nil:
			if _, err := d.conn.SecretUpdate(ctx, res.Secret.ID, moby.SecretUpdateOptions{Version: res.Secret.Version, Spec: s}); err != nil {
				return fmt.Errorf("failed to update secret %s: %w", s.Name, err)
			}
		case errdefs.IsNotFound(err):
			d.app.Println("Creating secret", s.Name)
			if _, err := d.conn.SecretCreate(ctx, moby.SecretCreateOptions{Spec: s}); err != nil {
				return fmt.Errorf("failed to create secret %s: %w", s.Name, err)
			}
		default:
			return err
		}
	}
	return nil
}

func (d *deployment) configs(ctx context.Context, c *types.Config) error {
	specs, err := d.name.configs(c.Configs)
	if err != nil {
		return err
	}
	for _, s := range specs {
		res, err := d.conn.ConfigInspect(ctx, s.Name, moby.ConfigInspectOptions{})
		switch {
		case err == nil:
			if _, err := d.conn.ConfigUpdate(ctx, res.Config.ID, moby.ConfigUpdateOptions{Version: res.Config.Version, Spec: s}); err != nil {
				return fmt.Errorf("failed to update config %s: %w", s.Name, err)
			}
		case errdefs.IsNotFound(err):
			d.app.Println("Creating config", s.Name)
			if _, err := d.conn.ConfigCreate(ctx, moby.ConfigCreateOptions{Spec: s}); err != nil {
				return fmt.Errorf("failed to create config %s: %w", s.Name, err)
			}
		default:
			return err
		}
	}
	return nil
}

// services makes services and changes those there are, and gives their IDs.
func (d *deployment) services(ctx context.Context, specs []*swarm.ServiceSpec, have []swarm.Service) ([]string, error) {
	var ids []string
	for _, s := range specs {
		name := s.Name
		auth, err := d.auth(ctx, s.TaskTemplate.ContainerSpec.Image)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(have, func(x swarm.Service) bool { return x.Spec.Name == name }); i >= 0 {
			if err := d.update(ctx, s, &have[i], auth); err != nil {
				return nil, fmt.Errorf("failed to update service %s: %w", name, err)
			}
			ids = append(ids, have[i].ID)
			continue
		}
		d.app.Println("Creating service", name)
		res, err := d.conn.ServiceCreate(ctx, moby.ServiceCreateOptions{Spec: *s, EncodedRegistryAuth: auth, QueryRegistry: d.ResolveImage != resolveNever})
		if err != nil {
			return nil, fmt.Errorf("failed to create service %s: %w", name, err)
		}
		ids = append(ids, res.ID)
	}
	return ids, nil
}

// update changes a service. An image that is the one of the files before stays the one
// that was found then, unless registries are asked again.
func (d *deployment) update(ctx context.Context, s *swarm.ServiceSpec, have *swarm.Service, auth string) error {
	d.app.Printf("Updating service %s (id: %s)\n", s.Name, have.ID)
	same := s.TaskTemplate.ContainerSpec.Image == have.Spec.Labels[imageLabel]
	o := moby.ServiceUpdateOptions{Version: have.Version, EncodedRegistryAuth: auth, QueryRegistry: d.ResolveImage == resolveAlways || d.ResolveImage == resolveChanged && !same}
	if same && d.ResolveImage != resolveAlways && have.Spec.TaskTemplate.ContainerSpec != nil {
		s.TaskTemplate.ContainerSpec.Image = have.Spec.TaskTemplate.ContainerSpec.Image
	}
	// What was forced before is not forced again.
	s.TaskTemplate.ForceUpdate = have.Spec.TaskTemplate.ForceUpdate
	o.Spec = *s
	res, err := d.conn.ServiceUpdate(ctx, have.ID, o)
	for _, w := range res.Warnings {
		d.app.Complain(w)
	}
	return err
}

// auth is the login to the registry of an image, when it is to be sent along.
func (d *deployment) auth(ctx context.Context, image string) (string, error) {
	if !d.Auth {
		return "", nil
	}
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", err
	}
	auth, err := cli.RegistryAuth(ctx, d.Engine.ConfigDir, reference.Domain(ref))
	if err != nil {
		d.app.Complain("WARNING:", err)
	}
	return auth, nil
}
