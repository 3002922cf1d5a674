package daemon

import (
	"context"
	"path/filepath"

	"escale.dev/escale/internal/builder"
	"escale.dev/escale/internal/image"
	apievents "github.com/moby/moby/api/types/events"
)

// openBuilder makes the builder; BuildKit itself starts with the first build.
func (d *Daemon) openBuilder(ctx context.Context) error {
	c := d.cfg
	d.builder = builder.New(builder.Config{
		Dir: filepath.Join(c.DataRoot, "builder"), RunDir: filepath.Join(c.ExecRoot, "build"),
		Images: builtImages{image.Builds{Store: d.images}, images{Store: d.images, events: d.events}}, Networks: d.networks,
		Runtime: d.monitors, Binary: d.now().runtimes[c.Runtime], Specs: d.confined,
		CgroupParent: c.CgroupParent, SystemdCgroup: d.facts.SystemdCgroup, AppArmorProfile: d.confined.name(),
		DNS:     builder.DNS{Servers: c.DNS, Search: c.DNSSearch, Options: c.DNSOptions},
		Version: Version, Logger: d.log.With("component", "builder"),
	})
	d.onClose(d.builder.Close)
	return d.builder.Open(ctx)
}

// builtImages is the image store as the builder has it: what is built is told.
type builtImages struct {
	image.Builds
	tells images
}

// Adopt is the store's.
func (b builtImages) Adopt(ctx context.Context, a image.Adopted) (image.Image, error) {
	img, err := b.Builds.Adopt(ctx, a)
	if err == nil {
		for _, n := range a.Names {
			b.tells.tell(apievents.ActionTag, img.ID, n)
		}
	}
	return img, err
}
