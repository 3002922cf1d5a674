package daemon

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/registry"
	"github.com/distribution/reference"
	apievents "github.com/moby/moby/api/types/events"
	apiregistry "github.com/moby/moby/api/types/registry"
)

// registries brings images and registries together, as the API has them.
type registries struct {
	*registry.Client
	images *image.Store
	events *events.Journal
}

func (r registries) tell(action apievents.Action, ref reference.Named) {
	r.events.Publish(events.Message{Type: apievents.ImageEventType, Action: action, Actor: apievents.Actor{
		ID: reference.FamiliarString(ref), Attributes: map[string]string{"name": reference.FamiliarName(ref)},
	}})
}

// Download asks a web server for a file.
func (r registries) Download(ctx context.Context, from url.URL) (io.ReadCloser, int64, error) {
	d, err := r.Client.Download(ctx, from)
	if err != nil {
		return nil, 0, err
	}
	return d, d.Size, nil
}

// Pull brings one image, or those of all tags.
func (r registries) Pull(ctx context.Context, ref reference.Named, o engine.PullOptions) error {
	repo, err := r.Open(ctx, ref, o.Auth, false)
	if err != nil {
		return err
	}
	defer repo.Close()
	list := []reference.Named{ref}
	if o.All {
		tags, err := repo.Tags(ctx)
		if err != nil {
			return err
		}
		list = list[:0]
		for _, t := range tags {
			tagged, err := reference.WithTag(reference.TrimNamed(ref), t)
			if err != nil {
				return fmt.Errorf("tag %q of %s: %w", t, reference.FamiliarName(ref), err)
			}
			list = append(list, tagged)
		}
	}
	for _, one := range list {
		p, err := r.images.Remotes().Pull(ctx, one, image.PullOptions{Source: repo, Platform: o.Platform, Progress: o.Progress})
		if err != nil {
			return err
		}
		r.tell(apievents.ActionPull, one)
		name := reference.FamiliarString(one)
		if o.All {
			name = reference.FamiliarName(one)
		}
		o.Done(name, p)
	}
	return nil
}

// Push sends one image, or those of all tags of a name.
func (r registries) Push(ctx context.Context, ref reference.Named, o engine.PushOptions) error {
	tags, err := r.images.Remotes().Tags(ref)
	if err != nil {
		return err
	}
	repo, err := r.Open(ctx, ref, o.Auth, true)
	if err != nil {
		return err
	}
	defer repo.Close()
	for _, t := range tags {
		p, err := r.images.Remotes().Push(ctx, t, image.PushOptions{Target: repo, Platform: o.Platform, Progress: o.Progress})
		if err != nil {
			return err
		}
		r.tell(apievents.ActionPush, t)
		o.Done(p)
	}
	return nil
}

// Distribution tells what a registry has under a name.
func (r registries) Distribution(ctx context.Context, ref reference.Named, auth apiregistry.AuthConfig) (apiregistry.DistributionInspect, error) {
	repo, err := r.Open(ctx, ref, auth, false)
	if err != nil {
		return apiregistry.DistributionInspect{}, err
	}
	defer repo.Close()
	return repo.Distribution(ctx, registry.TagOrDigest(ref))
}
