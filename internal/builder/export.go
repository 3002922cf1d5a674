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
	case client.ExporterLocal:
		e, err := w.Worker.Exporter(name, sm)
		return folderExporter{e, sm}, err
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
	x.packed = x.opts.RefCfg.Compression
	if attrs["compression"] == "" {
		x.packed = compression.New(compression.Gzip).SetForce(true) // also what is here unpacked
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
	// What is pushed has the digest of what is kept.
	for key, value := range map[string]string{"oci-mediatypes": "true", "oci-artifact": "false"} {
		if attrs[key] == "" {
			attrs[key] = value
		}
	}
	if attrs["compression"] == "" {
		attrs["force-compression"] = "true" // layers are kept unpacked here
	}
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
	// packed is how layers of what goes out by an index are compressed.
	packed compression.Config
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
	src.Attestations = asked(src.Attestations)
	res, err := resultOf(src)
	if err != nil {
		return nil, nil, nil, err
	}
	if res.index && len(x.names) == 0 {
		_ = progress.OneOff(ctx, "WARNING: without a name (--tag) an image is kept alone: attestations and platforms other than "+res.platform()+" are not")(nil)
		if res, err = res.alone(src); err != nil {
			return nil, nil, nil, err
		}
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
	a, err := x.commit(ctx, src, info, res)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := x.layers(ctx, src, res, session.NewGroup(info.SessionID), a); err != nil {
		return nil, nil, nil, err
	}
	desc := a.Manifest
	if res.index {
		desc = a.Index
	}
	told := progress.OneOff(ctx, "writing image "+desc.Digest.String())
	img, err := x.w.images.Adopt(ctx, *a)
	if told(err) != nil {
		return nil, nil, nil, err
	}
	for _, n := range x.names {
		_ = progress.OneOff(ctx, "naming to "+n)(nil)
	}
	answer := map[string]string{
		exptypes.ExporterImageDigestKey: img.ID, exptypes.ExporterImageConfigDigestKey: img.ID,
	}
	if res.index {
		answer[exptypes.ExporterImageDigestKey] = desc.Digest.String()
	}
	if len(x.names) > 0 {
		answer["image.name"] = strings.Join(x.names, ",")
	}
	kept = containerimage.NewDescriptorReference(desc, done)
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

// commit writes layers, configs and manifests, and what lists them.
func (x *imageExport) commit(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo, res built) (*image.Adopted, error) {
	opts := x.opts
	as, _, err := containerimage.ParseAnnotations(src.Metadata)
	if err != nil {
		return nil, err
	}
	opts.Annotations = opts.Annotations.Merge(as)
	if opts.OCIArtifact == nil {
		artifact := false // registries and clients of all ages take that
		opts.OCIArtifact = &artifact
	}
	if res.index {
		// It is never packed later, when its digest is known to others.
		opts.RefCfg.Compression = x.packed
	}
	desc, _, err := x.w.writer.Commit(ctx, src, info.SessionID, info.InlineCache, &opts, info.CompatibilityVersion, x.Type())
	if err != nil {
		return nil, err
	}
	out := &image.Adopted{Manifest: *desc, Names: x.names}
	if desc.MediaType != ocispecs.MediaTypeImageIndex {
		return out, nil
	}
	var index ocispecs.Index
	if err := x.read(ctx, *desc, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) <= res.at {
		return nil, fmt.Errorf("an index of %d manifests for %d platforms: %w", len(index.Manifests), res.at+1, errdefs.ErrInternal)
	}
	out.Manifest = index.Manifests[res.at] // images come in the platforms' order, then attestations
	if res.index {
		out.Index = *desc
	}
	return out, nil
}

func (x *imageExport) read(ctx context.Context, d ocispecs.Descriptor, into any) error {
	data, err := content.ReadBlob(ctx, x.w.ContentStore(), d)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// layers makes sure that the image's layers are unpacked and committed, and notes
// their top snapshot, and that all blobs are here. What is still with a registry
// is fetched with the client's login.
func (x *imageExport) layers(ctx context.Context, src *exporter.Source, res built, client session.Group, a *image.Adopted) error {
	refs := []cache.ImmutableRef{res.ref}
	cfg := x.opts.RefCfg
	if res.index {
		cfg.Compression = x.packed
		for _, ref := range src.Refs {
			if ref != res.ref {
				refs = append(refs, ref)
			}
		}
	}
	for i, ref := range refs {
		if ref == nil {
			continue
		}
		if i == 0 {
			if err := ref.Finalize(ctx); err != nil {
				return err
			}
			if err := ref.Extract(ctx, client); err != nil {
				return err
			}
			a.Snapshot = snapshotOf(ref)
		}
		// A layer whose snapshot was here already has not been fetched by that.
		remotes, err := ref.GetRemotes(ctx, false, cfg, false, client)
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
	}
	if !res.index {
		return x.blobs(ctx, a.Manifest)
	}
	var index ocispecs.Index
	if err := x.read(ctx, a.Index, &index); err != nil {
		return err
	}
	for _, m := range index.Manifests {
		if err := x.blobs(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// snapshotOf is the key of the snapshot of a record; see cache/metadata.go of BuildKit.
func snapshotOf(ref cache.ImmutableRef) string {
	if key := ref.GetString("cache.snapshot"); key != "" {
		return layerName(key)
	}
	return ref.ID()
}

// blobs checks that all blobs of a manifest are here.
func (x *imageExport) blobs(ctx context.Context, d ocispecs.Descriptor) error {
	var m ocispecs.Manifest
	if err := x.read(ctx, d, &m); err != nil {
		return err
	}
	for _, l := range m.Layers {
		if _, err := x.w.ContentStore().Info(ctx, digest.Digest(l.Digest)); err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return nil
}
