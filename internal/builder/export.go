package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"escale.dev/escale/internal/image"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageWorker is BuildKit's worker whose images become ours.
type imageWorker struct {
	*base.Worker
	images Images
	writer *containerimage.ImageWriter
}

// Exporter implements worker.Worker.
func (w *imageWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	switch name {
	case exporterMoby, client.ExporterImage:
		return imageExporter{w, sm}, nil
	}
	return w.Worker.Exporter(name, sm)
}

// ResolveSourceMetadata implements worker.Worker: like localFirst.
func (w *imageWorker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, jobs solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if opt.ImageOpt != nil && opt.ImageOpt.ResolveMode != pb.AttrImageResolveModeForcePull {
		local := *opt.ImageOpt
		local.ResolveMode = pb.AttrImageResolveModePreferLocal
		opt.ImageOpt = &local
	}
	return w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, jobs)
}

// exporterMoby is what clients call the exporter into the engine's own images.
const exporterMoby = "moby"

// imageExporter leaves results as images in the store.
type imageExporter struct {
	w  *imageWorker
	sm *session.Manager
}

// Resolve implements exporter.Exporter.
func (e imageExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	x := &imageExport{w: e.w, id: id, attrs: attrs}
	// A layer is stored as it is: packing it is for who sends it somewhere.
	x.opts.RefCfg = cacheconfig.RefConfig{Compression: compression.New(compression.Uncompressed)}
	oci := true
	x.opts.OCITypes = &oci
	rest, err := x.opts.Load(ctx, attrs)
	if err != nil {
		return nil, err
	}
	if attrs["compression"] == "" {
		x.opts.RefCfg.Compression = compression.New(compression.Uncompressed)
	}
	if push, _ := strconv.ParseBool(rest["push"]); push {
		if x.push, err = e.pusher(ctx, id, attrs); err != nil {
			return nil, err
		}
	}
	for _, n := range strings.Split(x.opts.ImageName, ",") {
		if n != "" {
			x.names = append(x.names, n)
		}
	}
	return x, nil
}

// pusher is BuildKit's own exporter, for pushing alone.
func (e imageExporter) pusher(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	bare, err := e.w.Worker.Exporter(client.ExporterImage, e.sm)
	if err != nil {
		return nil, err
	}
	attrs = maps.Clone(attrs)
	attrs["store"] = "false"
	return bare.Resolve(ctx, id, attrs)
}

// imageExport is one export.
type imageExport struct {
	w     *imageWorker
	id    int
	attrs map[string]string
	opts  containerimage.ImageCommitOpts
	names []string
	push  exporter.ExporterInstance // nil: the image stays here
}

func (x *imageExport) ID() int                  { return x.id }
func (x *imageExport) Name() string             { return "exporting to image" }
func (x *imageExport) Type() string             { return client.ExporterImage }
func (x *imageExport) Attrs() map[string]string { return x.attrs }
func (x *imageExport) Config() *exporter.Config {
	return exporter.NewConfigWithCompression(x.opts.RefCfg.Compression)
}

// Export implements exporter.ExporterInstance.
func (x *imageExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (_ map[string]string, _ exporter.FinalizeFunc, kept exporter.DescriptorReference, err error) {
	src = src.Clone()
	src.Attestations = nil // an image here is one manifest
	ref, err := single(src)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, done, err := leaseutil.WithLease(ctx, x.w.LeaseManager(), leaseutil.MakeTemporary)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if kept == nil {
			_ = done(context.WithoutCancel(ctx))
		}
	}()
	desc, err := x.commit(ctx, src, info)
	if err != nil {
		return nil, nil, nil, err
	}
	a := image.Adopted{Manifest: *desc, Names: x.names}
	if err := x.layers(ctx, ref, session.NewGroup(info.SessionID), &a); err != nil {
		return nil, nil, nil, err
	}
	told := progress.OneOff(ctx, "writing image "+desc.Digest.String())
	img, err := x.w.images.Adopt(ctx, a)
	if told(err) != nil {
		return nil, nil, nil, err
	}
	for _, n := range x.names {
		_ = progress.OneOff(ctx, "naming to "+n)(nil)
	}
	answer := map[string]string{
		exptypes.ExporterImageDigestKey: img.ID, exptypes.ExporterImageConfigDigestKey: img.ID,
	}
	if len(x.names) > 0 {
		answer["image.name"] = strings.Join(x.names, ",")
	}
	kept = containerimage.NewDescriptorReference(*desc, done)
	if x.push == nil {
		return answer, nil, kept, nil
	}
	_, finalize, pushed, err := x.push.Export(ctx, src, info)
	if err != nil {
		return nil, nil, nil, errors.Join(err, kept.Release())
	}
	return answer, finalize, both{kept, pushed}, nil
}

// both are two references to release; the first is the image's.
type both struct {
	exporter.DescriptorReference
	other exporter.DescriptorReference
}

// Release implements exporter.DescriptorReference.
func (b both) Release() error {
	err := b.DescriptorReference.Release()
	if b.other != nil {
		err = errors.Join(err, b.other.Release())
	}
	return err
}

// single is the result, which must be of one platform.
func single(src *exporter.Source) (cache.ImmutableRef, error) {
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, err
	}
	if len(ps.Platforms) > 1 {
		return nil, fmt.Errorf("images of several platforms are not kept here: use --output type=oci: %w", errdefs.ErrNotImplemented)
	}
	if len(src.Refs) == 0 {
		return src.Ref, nil
	}
	ref, _ := src.FindRef(ps.Platforms[0].ID)
	return ref, nil
}

// commit writes layers, config and manifest, and gives the manifest.
func (x *imageExport) commit(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (*ocispecs.Descriptor, error) {
	opts := x.opts
	as, _, err := containerimage.ParseAnnotations(src.Metadata)
	if err != nil {
		return nil, err
	}
	opts.Annotations = opts.Annotations.Merge(as)
	artifact := false
	opts.OCIArtifact = &artifact
	desc, _, err := x.w.writer.Commit(ctx, src, info.SessionID, info.InlineCache, &opts, info.CompatibilityVersion, x.Type())
	if err != nil {
		return nil, err
	}
	if desc.MediaType != ocispecs.MediaTypeImageIndex {
		return desc, nil
	}
	data, err := content.ReadBlob(ctx, x.w.ContentStore(), *desc)
	if err != nil {
		return nil, err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("an index of %d manifests for one platform: %w", len(index.Manifests), errdefs.ErrInternal)
	}
	return &index.Manifests[0], nil
}

// layers makes sure that all of ref is unpacked and committed, and notes its top
// snapshot. What is still with a registry is fetched with the client's login.
func (x *imageExport) layers(ctx context.Context, ref cache.ImmutableRef, client session.Group, a *image.Adopted) error {
	if ref == nil {
		return nil
	}
	if err := ref.Finalize(ctx); err != nil {
		return err
	}
	if err := ref.Extract(ctx, client); err != nil {
		return err
	}
	// A layer whose snapshot was here already has not been fetched by that.
	remotes, err := ref.GetRemotes(ctx, false, x.opts.RefCfg, false, client)
	if err != nil {
		return err
	}
	for _, r := range remotes {
		if lazy, ok := r.Provider.(cache.Unlazier); ok {
			if err := lazy.Unlazy(ctx); err != nil {
				return err
			}
		}
	}
	a.Snapshot = snapshotOf(ref)
	return x.blobs(ctx, *a)
}

// snapshotOf is the key of a record's snapshot; see cache/metadata.go of BuildKit.
func snapshotOf(ref cache.ImmutableRef) string {
	if key := ref.GetString("cache.snapshot"); key != "" {
		return key
	}
	return ref.ID()
}

// blobs checks that all blobs are here.
func (x *imageExport) blobs(ctx context.Context, a image.Adopted) error {
	data, err := content.ReadBlob(ctx, x.w.ContentStore(), a.Manifest)
	if err != nil {
		return err
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	for _, l := range m.Layers {
		if _, err := x.w.ContentStore().Info(ctx, digest.Digest(l.Digest)); err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return nil
}
