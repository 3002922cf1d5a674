package daemon

import (
	"context"
	"io"
	"strings"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	apievents "github.com/moby/moby/api/types/events"
)

// images is the image store as the API has it: it knows who uses an image, and
// tells what happens to images.
type images struct {
	*image.Store
	users  func(imageID string) []image.User
	events *events.Journal
}

func (i images) tell(action apievents.Action, id, name string) {
	i.events.Publish(events.Message{
		Type: apievents.ImageEventType, Action: action,
		Actor: apievents.Actor{ID: id, Attributes: map[string]string{"name": name}},
	})
}

func (i images) Import(ctx context.Context, r io.Reader, o image.ImportOptions) (image.Image, error) {
	img, err := i.Store.Import(ctx, r, o)
	if err == nil {
		i.tell(apievents.ActionImport, img.ID, nameOf(img))
	}
	return img, err
}

// Commit makes an image of a container.
func (i images) Commit(ctx context.Context, o image.CommitOptions) (image.Image, error) {
	img, err := i.Store.Commit(ctx, o)
	if err == nil && o.Ref != "" {
		i.tell(apievents.ActionTag, img.ID, o.Ref)
	}
	return img, err
}

func (i images) Load(ctx context.Context, r io.Reader, o image.LoadOptions) error {
	told := o.Loaded
	o.Loaded = func(line string) {
		_, name, _ := strings.Cut(line, ": ")
		if img, err := i.Get(ctx, name); err == nil {
			i.tell(apievents.ActionLoad, img.ID, name)
		}
		if told != nil {
			told(line)
		}
	}
	return i.Store.Load(ctx, r, o)
}

func (i images) Save(ctx context.Context, w io.Writer, refs []string, platform string) error {
	err := i.Store.Save(ctx, w, refs, platform)
	if err == nil {
		for _, ref := range refs {
			if img, err := i.Get(ctx, ref); err == nil {
				i.tell(apievents.ActionSave, img.ID, ref)
			}
		}
	}
	return err
}

func (i images) Tag(ctx context.Context, ref, target string) error {
	err := i.Store.Tag(ctx, ref, target)
	if err == nil {
		if img, err := i.Get(ctx, ref); err == nil {
			i.tell(apievents.ActionTag, img.ID, target)
		}
	}
	return err
}

func (i images) Remove(ctx context.Context, ref string, o image.RemoveOptions) ([]image.Deleted, error) {
	o.Users = i.users
	gone, err := i.Store.Remove(ctx, ref, o)
	i.tellGone(gone)
	return gone, err
}

func (i images) Prune(ctx context.Context, o image.PruneOptions) (image.Pruned, error) {
	o.Users = i.users
	p, err := i.Store.Prune(ctx, o)
	i.tellGone(p.Deleted)
	return p, err
}

func (i images) tellGone(gone []image.Deleted) {
	for _, d := range gone {
		if d.Untagged != "" {
			i.tell(apievents.ActionUnTag, d.Untagged, d.Untagged)
		} else {
			i.tell(apievents.ActionDelete, d.Deleted, d.Deleted)
		}
	}
}

// nameOf is what people call an image: its first tag, else its id.
func nameOf(img image.Image) string {
	if len(img.RepoTags) > 0 {
		return img.RepoTags[0]
	}
	return img.ID
}
