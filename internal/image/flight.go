package image

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// flight is one layer on its way. It ends when it has its place, when it fails,
// or when nobody waits for it any more. Until the last of those who wait has
// left, its own lease holds what it brought.
type flight struct {
	m      *Remotes
	s      *Store
	src    Source
	layer  layerRecord // Blob as the manifest has it
	parent *flight     // of the layer below; nil: it has its place, or there is none
	below  digest.Digest
	cancel context.CancelFunc
	done   chan struct{}
	w      *work // nil: it did not begin
	err    error // valid when done, as layer.Size

	refs int // with Remotes.mu

	mu        sync.Mutex
	last      Progress
	listeners map[*mailbox]bool
}

// join waits for a layer together with others, or begins to fetch it. Who joins
// must leave.
func (m *Remotes) join(ctx context.Context, src Source, l layerRecord, below digest.Digest, parent *flight, to *mailbox) *flight {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.byChain[l.ChainID]
	if f == nil {
		f = &flight{m: m, s: m.s, src: src, layer: l, parent: parent, below: below, done: make(chan struct{}), listeners: map[*mailbox]bool{}}
		// Detached: others may wait for it when this one has gone.
		ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		f.last = Progress{ID: short(l.Blob.Digest.String()), Status: "Pulling fs layer"}
		m.byChain[l.ChainID] = f
		go f.run(ctx)
	}
	f.refs++
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listeners[to] = true
	to.post(f.last)
	return f
}

// leave ends waiting. The last one who leaves ends the flight, and returns when
// nothing is left of it but what others hold.
func (f *flight) leave(to *mailbox) {
	f.mu.Lock()
	delete(f.listeners, to)
	f.mu.Unlock()
	f.m.mu.Lock()
	f.refs--
	last := f.refs == 0
	if last && f.m.byChain[f.layer.ChainID] == f {
		delete(f.m.byChain, f.layer.ChainID)
	}
	f.m.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	<-f.done
	switch {
	case f.w == nil:
	case f.err != nil:
		f.w.abandon()
	default:
		f.w.finish()
	}
}

// finish gives up the lease of work whose results others hold by now.
func (w *work) finish() {
	ctx := context.WithoutCancel(w.ctx) // detached: the lease goes also when the client is gone
	if err := w.s.leases.Delete(ctx, w.lease); err != nil && !errdefs.IsNotFound(err) {
		w.s.log.Warn("ending work", "lease", w.lease.ID, "error", err)
	}
	w.s.gc.kick(false)
}

// tell lets all who wait know.
func (f *flight) tell(status string, current, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = Progress{ID: short(f.layer.Blob.Digest.String()), Status: status, Current: current, Total: total}
	for to := range f.listeners {
		to.post(f.last)
	}
}

func (f *flight) run(ctx context.Context) {
	defer close(f.done)
	if f.err = f.bring(ctx); f.err != nil {
		// Who comes from now on begins anew.
		f.m.mu.Lock()
		if f.m.byChain[f.layer.ChainID] == f {
			delete(f.m.byChain, f.layer.ChainID)
		}
		f.m.mu.Unlock()
	}
}

// bring fetches the layer, unpacks it on the way, and gives it its place.
func (f *flight) bring(ctx context.Context) (err error) {
	if f.w, err = f.s.begin(ctx); err != nil {
		return err
	}
	if size, ok, err := f.w.placed(f.layer.ChainID); err != nil {
		return err
	} else if ok {
		if held, err := f.w.hold(f.layer.Blob.Digest); held || err != nil {
			f.layer.Size = size
			f.tell("Already exists", 0, 0)
			return err
		}
	}
	u, err := f.get()
	if err != nil {
		return err
	}
	if u.diffID != f.layer.DiffID {
		return invalidf("layer %s: the image's config says that it unpacks to %s, it does to %s", f.layer.Blob.Digest, f.layer.DiffID, u.diffID)
	}
	if f.parent != nil {
		select {
		case <-f.parent.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if f.parent.err != nil {
			return f.parent.err
		}
	}
	if f.below != "" {
		_, ok, err := f.w.placed(f.below)
		if err == nil && !ok {
			err = fmt.Errorf("layer %s went away: %w", f.below, errdefs.ErrInternal)
		}
		if err != nil {
			return err
		}
	}
	f.tell("Extracting", f.layer.Blob.Size, f.layer.Blob.Size)
	if f.layer.Size, err = f.w.place(u, f.below, f.layer.ChainID); err != nil {
		return err
	}
	f.tell("Pull complete", 0, 0)
	return nil
}

// get unpacks the layer from the registry, or from what another flight or image
// has brought.
func (f *flight) get() (*unpacked, error) {
	release, err := f.m.hold(f.w.ctx, f.layer.Blob.Digest)
	if err != nil {
		return nil, err
	}
	defer release()
	ok, err := f.w.hold(f.layer.Blob.Digest)
	if err != nil {
		return nil, err
	}
	if ok {
		info, err := f.s.content.Info(f.w.ctx, f.layer.Blob.Digest)
		if err != nil {
			return nil, err
		}
		if diff := digest.Digest(info.Labels[labelDiffID]); diff != "" {
			f.tell("Download complete", 0, 0)
			u, err := f.w.unpackBlob(f.layer.Blob)
			if err == nil {
				u.diffID = diff
			}
			return u, err
		}
	}
	return f.fetch()
}

// fetch gets the layer from the registry.
func (f *flight) fetch() (*unpacked, error) {
	bounds := f.m.bounds.Load()
	if !bounds.down.TryAcquire(1) {
		f.tell("Waiting", 0, 0)
		if err := bounds.down.Acquire(f.w.ctx, 1); err != nil {
			return nil, err
		}
	}
	defer bounds.down.Release(1)
	blob := f.layer.Blob
	in := &resuming{ctx: f.w.ctx, src: f.src, blob: blob, bounds: bounds, retry: func(wait time.Duration) {
		f.tell(retrying(wait), 0, 0)
	}}
	defer in.Close()
	f.tell("Downloading", 0, blob.Size)
	u, err := f.w.unpack(counted(in, f.count, Progress{Total: blob.Size}, time.Now()), true)
	switch {
	case in.err != nil:
		return nil, in.err
	case err != nil:
		return nil, fmt.Errorf("layer %s: %w", blob.Digest, asInvalid(err))
	}
	f.tell("Verifying Checksum", 0, 0)
	if u.blob.Digest != blob.Digest {
		return nil, invalidf("filesystem layer verification failed for digest %s: got %s", blob.Digest, u.blob.Digest)
	}
	f.tell("Download complete", 0, 0)
	return u, nil
}

func (f *flight) count(p Progress) { f.tell("Downloading", p.Current, p.Total) }

func retrying(wait time.Duration) string {
	s := max(1, int(wait.Round(time.Second)/time.Second))
	if s == 1 {
		return "Retrying in 1 second"
	}
	return fmt.Sprintf("Retrying in %d seconds", s)
}

// hold makes one flight at a time handle a blob. It blocks for the others.
func (m *Remotes) hold(ctx context.Context, d digest.Digest) (release func(), err error) {
	for {
		m.mu.Lock()
		busy := m.blobs[d]
		if busy == nil {
			mine := make(chan struct{})
			m.blobs[d] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.blobs, d)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// take makes what a flight brought w's too. It waits for the flight.
func (w *work) take(f *flight) (layerRecord, error) {
	select {
	case <-f.done:
	case <-w.ctx.Done():
		return layerRecord{}, context.Cause(w.ctx)
	}
	if f.err != nil {
		return layerRecord{}, f.err
	}
	ok, err := w.hold(f.layer.Blob.Digest)
	if ok && err == nil {
		_, ok, err = w.placed(f.layer.ChainID)
	}
	if err == nil && !ok {
		err = fmt.Errorf("layer %s went away: %w", f.layer.Blob.Digest, errdefs.ErrInternal)
	}
	return f.layer, err
}

// retainRecord leases all that an image consists of; false: it went away.
func (w *work) retainRecord(r *record) (bool, error) {
	if chain := r.chain(); chain != "" {
		if _, ok, err := w.placed(chain); !ok || err != nil {
			return false, err
		}
	}
	err := w.retain([]saved{{record: r}})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// smallBlob fetches what is small, a config, and verifies it.
func smallBlob(ctx context.Context, src Source, bounds *transfers, d ocispec.Descriptor) ([]byte, error) {
	in := &resuming{ctx: ctx, src: src, blob: d, bounds: bounds, retry: func(time.Duration) {}}
	defer in.Close()
	data, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(data); got != d.Digest {
		return nil, invalidf("image config verification failed for digest %s: got %s", d.Digest, got)
	}
	return data, nil
}
