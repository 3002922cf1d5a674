package daemon

import (
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"escale.dev/escale/internal/builder"
	"escale.dev/escale/internal/builder/client"
	"escale.dev/escale/internal/builder/plan"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/registry"
	apievents "github.com/moby/moby/api/types/events"
)

// openBuilder makes the builder; BuildKit itself starts with the first build.
func (d *Daemon) openBuilder(ctx context.Context) error {
	c := d.cfg
	var err error
	if d.registry, err = registry.New(d.now().cfg.client()); err != nil {
		return err
	}
	d.builder = builder.New(builder.Config{
		Dir: filepath.Join(c.DataRoot, "builder"), RunDir: filepath.Join(c.ExecRoot, "build"),
		Images: builtImages{image.Builds{Store: d.images}, images{Store: d.images, events: d.events}}, Networks: d.networks,
		Runtime: d.monitors, Binary: d.defaultBinary, Specs: d.confined,
		CgroupParent: c.CgroupParent, Scopes: c.scopes(), AppArmorProfile: d.confined.name(),
		Hosts: d.registry.Hosts, Gateway: d.gateway,
		DNS:     builder.DNS{Servers: c.DNS, Search: c.DNSSearch, Options: c.DNSOptions},
		Version: Version, Logger: d.log.With("component", "builder"),
	})
	d.onClose(d.builder.Close)
	return d.builder.Open(ctx)
}

// gateway is what host-gateway stands for in builds.
func (d *Daemon) gateway() string {
	if ips := d.cfg.HostGatewayIPs; len(ips) > 0 {
		return ips[0]
	}
	return d.networks.HostGateway()
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

// buildClient builds what `escale build` asks: a plan that is read from a file
// descriptor. It is in this program because BuildKit is.
func buildClient(stdout, stderr io.Writer) int {
	// detached: the first context of a process
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	file := os.NewFile(plan.FD, "plan")
	defer file.Close()
	return client.Run(ctx, file, client.Streams{In: os.Stdin, Out: stdout, Err: stderr})
}
