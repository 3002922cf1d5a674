package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/image/layer"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

const (
	workPrefix = "work/"
	// workExpires ends a lease whose work was forgotten; Open ends it earlier.
	workExpires = 24 * time.Hour
	// labelSize is the bytes of a layer's files, on its snapshot.
	labelSize = "dev.escale/size"
	// labelDiffID is containerd's, on a packed layer.
	labelDiffID = "containerd.io/uncompressed"
)

// work is an import or a load under way. All that it makes is held by one
// lease, and goes when the work is abandoned.
type work struct {
	s     *Store
	ctx   context.Context // carries namespace and lease
	lease leases.Lease
	n     int
}

func (s *Store) begin(ctx context.Context) (*work, error) {
	ctx = s.namespace(ctx)
	l, err := s.leases.Create(ctx, leases.WithID(workPrefix+rand.Text()), leases.WithExpiration(workExpires))
	if err != nil {
		return nil, err
	}
	return &work{s: s, ctx: leases.WithLease(ctx, l.ID), lease: l}, nil
}

// abandon removes all that the work made. It blocks until that is gone.
func (w *work) abandon() {
	ctx := context.WithoutCancel(w.ctx) // detached: undoing goes on when the client is gone
	if err := w.s.leases.Delete(ctx, w.lease); err != nil && !errdefs.IsNotFound(err) {
		w.s.log.Warn("abandoning work", "lease", w.lease.ID, "error", err)
	}
	if err := w.s.gc.run(ctx); err != nil {
		w.s.log.Warn("abandoning work", "lease", w.lease.ID, "error", err)
	}
}

// end gives up the lease as part of a transaction.
func (w *work) end(ctx context.Context) error { return w.s.leases.Delete(ctx, w.lease) }

// key is a new name for something that the work makes.
func (w *work) key() string {
	w.n++
	return w.lease.ID + "/" + strconv.Itoa(w.n)
}

// unpacked is a layer on its way: stored as a blob and unpacked to a snapshot
// of its own, whose place among other layers is not yet known.
type unpacked struct {
	blob   ocispec.Descriptor
	diffID digest.Digest
	key    string // of the snapshot; "" once it has its place
	dir    string // its directory
	res    layer.Result
}

// unpack reads a layer once: it goes to the content store, through the hash and
// into a new snapshot at the same time. With keepPacked a compressed layer is
// stored as it comes, else as a plain tar.
func (w *work) unpack(r io.Reader, keepPacked bool) (*unpacked, error) {
	u := &unpacked{key: w.key()}
	mounts, err := w.s.snaps.Prepare(w.ctx, u.key, "")
	if err != nil {
		return nil, err
	}
	u.dir = mounts[0].Source // without a parent it is a bind mount
	blob, err := w.s.content.Writer(w.ctx, content.WithRef(w.key()))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	var packing layer.Compression
	br := bufio.NewReaderSize(&watched{r: r, check: w.s.space}, 64<<10)
	if head, _ := br.Peek(16); keepPacked {
		packing = layer.Detect(head)
	}
	if packing != layer.Gzip && packing != layer.Zstd {
		packing = layer.None // OCI has no media type for the others
	}
	if packing == layer.None {
		err = w.unpackPlain(u, br, blob)
	} else {
		err = w.unpackPacked(u, br, blob)
	}
	if err != nil {
		return nil, err
	}
	st, err := blob.Status()
	if err != nil {
		return nil, err
	}
	u.blob = ocispec.Descriptor{MediaType: mediaType(packing), Digest: blob.Digest(), Size: st.Offset}
	labels := map[string]string{labelDiffID: u.diffID.String()}
	if err := blob.Commit(w.ctx, st.Offset, "", content.WithLabels(labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return u, nil
}

func mediaType(c layer.Compression) string {
	switch c {
	case layer.Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case layer.Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

func (w *work) unpackPlain(u *unpacked, r io.Reader, blob content.Writer) error {
	plain, _, err := layer.Decompress(w.ctx, r, w.s.maxLayer())
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := layer.Broadcast(w.ctx, plain, copyTo(blob), w.apply(u)); err != nil {
		return err
	}
	u.diffID = blob.Digest()
	return nil
}

func (w *work) unpackPacked(u *unpacked, r io.Reader, blob content.Writer) error {
	diff := sha256.New()
	err := layer.Broadcast(w.ctx, r, copyTo(blob), func(r io.Reader) error {
		plain, _, err := layer.Decompress(w.ctx, r, w.s.maxLayer())
		if err != nil {
			return err
		}
		defer plain.Close()
		return layer.Broadcast(w.ctx, plain, copyTo(diff), w.apply(u))
	})
	u.diffID = sum(diff)
	return err
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

func copyTo(dst io.Writer) func(io.Reader) error {
	return func(r io.Reader) error {
		_, err := io.Copy(dst, r)
		return err
	}
}

func (w *work) apply(u *unpacked) func(io.Reader) error {
	return func(r io.Reader) (err error) {
		u.res, err = layer.Apply(w.ctx, u.dir, r, layer.Options{Limits: w.s.limits(), UserXattr: w.s.userXattr})
		return err
	}
}

// watched asks now and then whether the disk has room for more.
type watched struct {
	r     io.Reader
	check func() error
	n     int64
}

func (d *watched) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if d.n += int64(n); d.n >= layer.SpaceStep {
		d.n = 0
		if err := d.check(); err != nil {
			return 0, err
		}
	}
	return n, err
}

// place makes the unpacked layer the one on top of parent. That it is there
// already is fine: then the other one counts. It tells the layer's size.
func (w *work) place(u *unpacked, parent, chain digest.Digest) (int64, error) {
	if size, ok, err := w.placed(chain); ok || err != nil {
		return size, err
	}
	opts := []snapshots.Opt{snapshots.WithLabels(map[string]string{labelSize: strconv.FormatInt(u.res.Size, 10)})}
	if parent != "" {
		if len(u.res.Implied) > 0 {
			lowers, err := w.s.layerDirs(w.ctx, parent, w.key())
			if err != nil {
				return 0, err
			}
			if err := layer.Inherit(u.dir, u.res.Implied, lowers); err != nil {
				return 0, err
			}
		}
		opts = append(opts, snapshots.WithParent(parent.String()))
	}
	err := w.s.snaps.Commit(w.ctx, chain.String(), u.key, opts...)
	if errdefs.IsAlreadyExists(err) {
		size, _, err := w.placed(chain)
		return size, err
	}
	u.key = ""
	return u.res.Size, err
}

// placed tells whether a layer is there, and if so leases it.
func (w *work) placed(chain digest.Digest) (size int64, ok bool, err error) {
	err = w.s.update(w.ctx, func(ctx context.Context, _ *bolt.Tx) error {
		info, err := w.s.snaps.Stat(ctx, chain.String())
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		if size, err = sizeOf(info); err != nil {
			// A build has unpacked it, which notes no sizes.
			usage, usageErr := w.s.snaps.Usage(ctx, chain.String())
			if usageErr != nil {
				return errors.Join(err, usageErr)
			}
			size = usage.Size
		}
		return w.s.leases.AddResource(ctx, w.lease, snapshotResource(chain.String()))
	})
	return size, ok, err
}

func sizeOf(info snapshots.Info) (int64, error) {
	size, err := strconv.ParseInt(info.Labels[labelSize], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("layer %s: its size is not noted: %w", info.Name, err)
	}
	return size, nil
}

// layerDirs are the directories of a chain, topmost first. key names a view for
// the time of the call.
func (s *Store) layerDirs(ctx context.Context, chain digest.Digest, key string) ([]string, error) {
	mounts, err := s.snaps.View(ctx, key, chain.String())
	if err != nil {
		return nil, err
	}
	if err := s.snaps.Remove(ctx, key); err != nil {
		return nil, err
	}
	if mounts[0].Type == "bind" {
		return []string{mounts[0].Source}, nil
	}
	for _, o := range relative(mounts[0].Options, s.roots.dir) {
		if list, ok := strings.CutPrefix(o, "lowerdir="); ok {
			dirs := strings.Split(list, ":")
			for i := range dirs {
				dirs[i] = filepath.Join(s.roots.dir, dirs[i])
			}
			return dirs, nil
		}
	}
	return nil, fmt.Errorf("layer %s: no directories in its mount: %w", chain, errdefs.ErrInternal)
}

// blob stores a small blob.
func (w *work) blob(mediaType string, data []byte, labels map[string]string) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, content.WriteBlob(w.ctx, w.s.content, w.key(), bytes.NewReader(data), d, content.WithLabels(labels))
}

// record stores config and manifest of an image whose layers have their place.
// manifest nil: one is made.
func (w *work) record(config []byte, layers []layerRecord, manifest []byte, manifestType string) (*record, error) {
	return w.store(&record{Layers: layers}, config, manifest, manifestType)
}

// store completes a record that has its layers.
func (w *work) store(r *record, config, manifest []byte, manifestType string) (*record, error) {
	r.Boot = w.s.boot
	layers := r.Layers
	var labels map[string]string
	if chain := r.chain(); chain != "" {
		labels = map[string]string{"containerd.io/gc.ref.snapshot." + snapshotterName: chain.String()}
	}
	var err error
	if r.Config, err = w.blob(ocispec.MediaTypeImageConfig, config, labels); err != nil {
		return nil, err
	}
	if manifest == nil {
		if manifest, err = makeManifest(r.Config, layers); err != nil {
			return nil, err
		}
		manifestType = ocispec.MediaTypeImageManifest
	}
	labels = map[string]string{"containerd.io/gc.ref.content.config": r.Config.Digest.String()}
	for i, l := range layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Blob.Digest.String()
	}
	if r.Target, err = w.blob(manifestType, manifest, labels); err != nil {
		return nil, err
	}
	r.ID = r.Config.Digest
	return r, r.fill(config)
}
