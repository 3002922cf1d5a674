package builder

import (
	"context"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	bksnapshot "github.com/moby/buildkit/snapshot"
)

// BuildKit names the snapshot of a layer by its chain of digests behind a prefix
// of its own, so as not to meet those of engines that did not verify what they
// unpacked. The image store does verify, and names it by the chain alone. Here the
// two names are one: a layer is unpacked once, whoever unpacks it.

// layerName is the image store's name of what BuildKit calls key.
func layerName(key string) string {
	if chain, ok := bksnapshot.ParseLayerSnapshotID(key); ok {
		return chain.String()
	}
	return key
}

// layerNames is a snapshotter that takes BuildKit's names. The names it tells are
// the store's; it takes these, too.
type layerNames struct{ snapshots.Snapshotter }

func (s layerNames) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return s.Snapshotter.Stat(ctx, layerName(key))
}

func (s layerNames) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	info.Name = layerName(info.Name)
	return s.Snapshotter.Update(ctx, info, fields...)
}

func (s layerNames) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.Snapshotter.Usage(ctx, layerName(key))
}

func (s layerNames) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return s.Snapshotter.Mounts(ctx, layerName(key))
}

func (s layerNames) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(ctx, layerName(key), layerName(parent), opts...)
}

func (s layerNames) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(ctx, layerName(key), layerName(parent), opts...)
}

func (s layerNames) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.Snapshotter.Commit(ctx, layerName(name), layerName(key), opts...)
}

func (s layerNames) Remove(ctx context.Context, key string) error {
	return s.Snapshotter.Remove(ctx, layerName(key))
}

// layerLeases are leases that hold snapshots by BuildKit's names.
type layerLeases struct{ leases.Manager }

func (m layerLeases) AddResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	r.ID = layerName(r.ID)
	return m.Manager.AddResource(ctx, l, r)
}

func (m layerLeases) DeleteResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	r.ID = layerName(r.ID)
	return m.Manager.DeleteResource(ctx, l, r)
}
