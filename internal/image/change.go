package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// change is a set of changes of records that becomes true at once. Its user
// holds Store.write from the first look at a record to the commit.
type change struct {
	s     *Store
	puts  map[digest.Digest]*record
	drops map[digest.Digest]*record
	moved map[digest.Digest]bool // consist of something else than before
}

func newChange(s *Store) *change {
	return &change{s: s, puts: map[digest.Digest]*record{}, drops: map[digest.Digest]*record{}, moved: map[digest.Digest]bool{}}
}

// current is a record as the change will leave it; nil: there is none.
func (c *change) current(id digest.Digest) *record {
	if r := c.puts[id]; r != nil {
		return r
	}
	if c.drops[id] != nil {
		return nil
	}
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	return c.s.byID[id]
}

// known is a record that is there now, or will be.
func (c *change) known(id digest.Digest) *record {
	if r := c.current(id); r != nil {
		return r
	}
	return c.drops[id]
}

// edit gives a copy of a record to change.
func (c *change) edit(id digest.Digest) *record {
	r := c.current(id).clone()
	c.puts[id] = r
	return r
}

// add takes a new record in, or leaves the one that is there already, whose
// manifest and blobs are as good.
func (c *change) add(r *record) *record {
	if old := c.current(r.ID); old != nil {
		return old
	}
	delete(c.drops, r.ID)
	c.puts[r.ID] = r
	return r
}

// index lets a tag of r, a record being changed, stand for an index; zero: for the
// image alone. What the index consists of has to be held until the commit.
func (c *change) index(r *record, tag string, d ocispec.Descriptor) {
	if r.Indexes[tag].Digest == d.Digest {
		return
	}
	next := maps.Clone(r.Indexes)
	if next == nil {
		next = map[string]ocispec.Descriptor{}
	}
	if next[tag] = d; d.Digest == "" {
		delete(next, tag)
	}
	r.Indexes = next
	c.renew(r.ID)
}

// top notes an index by which an image was pulled. It has to be held until the commit.
func (c *change) top(id digest.Digest, d ocispec.Descriptor) {
	if slices.ContainsFunc(c.current(id).Tops, func(t ocispec.Descriptor) bool { return t.Digest == d.Digest }) {
		return
	}
	r := c.edit(id)
	r.Tops = append(slices.Clone(r.Tops), d)
	c.renew(id)
}

// tag moves a name to an image, which it means alone from then on. It tells the id of the image that had it.
func (c *change) tag(r *record, name reference.NamedTagged) (had digest.Digest) {
	key := name.String()
	if had = c.holder(key); had != "" && had != r.ID {
		old := c.edit(had)
		old.Tags = without(old.Tags, key)
		c.index(old, key, ocispec.Descriptor{})
		old.name()
	}
	r = c.edit(r.ID)
	c.index(r, key, ocispec.Descriptor{})
	r.Tags = with(r.Tags, key)
	r.LastTagged = time.Now().UTC()
	r.name()
	return had
}

// holder is the image that has a name.
func (c *change) holder(key string) digest.Digest {
	for id, r := range c.puts {
		for _, t := range r.Tags {
			if t == key {
				return id
			}
		}
	}
	c.s.mu.RLock()
	id := c.s.byRef[key]
	c.s.mu.RUnlock()
	if c.puts[id] != nil || c.drops[id] != nil {
		return "" // it was taken away by this change
	}
	return id
}

// renew makes the image's lease one on what the changed record names.
func (c *change) renew(id digest.Digest) { c.moved[id] = true }

// untag takes a name away.
func (c *change) untag(id digest.Digest, key string) {
	r := c.edit(id)
	r.Tags, r.Digests = without(r.Tags, key), without(r.Digests, key)
	c.index(r, key, ocispec.Descriptor{})
	r.name()
}

// remove takes an image away.
func (c *change) remove(id digest.Digest) {
	c.drops[id] = c.current(id)
	delete(c.puts, id)
}

// commit makes the change durable, with what more extra does in the same
// transaction, and then visible. Images get a lease on all they consist of, and
// lose it.
func (c *change) commit(ctx context.Context, extra func(context.Context) error) error {
	err := c.s.update(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		b := tx.Bucket(bucketOwn).Bucket(bucketImages)
		for id, r := range c.puts {
			isNew := b.Get([]byte(id)) == nil || c.moved[id]
			data, err := r.encode()
			if err != nil {
				return err
			}
			if err := b.Put([]byte(id), data); err != nil {
				return err
			}
			if isNew {
				if err := c.s.hold(ctx, r); err != nil {
					return fmt.Errorf("image %s: %w", id, err)
				}
			}
		}
		for id := range c.drops {
			if err := b.Delete([]byte(id)); err != nil {
				return err
			}
			if err := c.s.leases.Delete(ctx, imageLease(id)); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		if extra != nil {
			return extra(ctx)
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, r := range c.drops {
		c.s.drop(r)
	}
	for _, r := range c.puts {
		c.s.keep(r)
	}
	return nil
}

// imageLease keeps what an image consists of.
func imageLease(id digest.Digest) leases.Lease {
	return leases.Lease{ID: "image/" + id.String()}
}

// hold leases the blobs and the top snapshot of an image; snapshots hold their
// parents. ctx carries a transaction.
func (s *Store) hold(ctx context.Context, r *record) error {
	l := imageLease(r.ID)
	err := s.leases.Delete(ctx, l)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if l, err = s.leases.Create(ctx, leases.WithID(l.ID)); err != nil {
		return err
	}
	resources := []leases.Resource{contentResource(r.Target.Digest), contentResource(r.Config.Digest)}
	for _, ly := range r.Layers {
		resources = append(resources, contentResource(ly.Blob.Digest))
	}
	for _, d := range r.Indexes {
		resources = append(resources, contentResource(d.Digest)) // whose labels lead to all of it
	}
	for _, d := range r.Tops {
		resources = append(resources, contentResource(d.Digest))
	}
	if chain := r.chain(); chain != "" {
		resources = append(resources, snapshotResource(chain.String()))
	}
	var errs []error
	for _, res := range resources {
		errs = append(errs, s.leases.AddResource(ctx, l, res))
	}
	return errors.Join(errs...)
}

func contentResource(d digest.Digest) leases.Resource {
	return leases.Resource{ID: d.String(), Type: "content"}
}

func snapshotResource(key string) leases.Resource {
	return leases.Resource{ID: key, Type: "snapshots/" + snapshotterName}
}
