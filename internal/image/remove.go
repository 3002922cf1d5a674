package image

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Remove takes a name away from an image, or an image by its id or part of it.
// The image itself goes with its last name, unless a container needs it. What
// was done is told in order: names, the image, its layers from the top. The
// disk gets its space back soon after. Kinds: NotFound, Conflict.
func (s *Store) Remove(ctx context.Context, ref string, o RemoveOptions) ([]Deleted, error) {
	s.write.Lock()
	defer s.write.Unlock()
	rm := &removal{s: s, c: newChange(s), users: usersOf(o.Users)}
	if err := rm.remove(ref, o.Force); err != nil {
		return nil, err
	}
	if err := rm.c.commit(ctx, nil); err != nil {
		return nil, err
	}
	s.gc.kick(false)
	return rm.out, nil
}

func usersOf(f func(string) []User) func(string) []User {
	if f == nil {
		return func(string) []User { return nil }
	}
	return f
}

// removal is a removal being worked out.
type removal struct {
	s     *Store
	c     *change
	users func(string) []User
	out   []Deleted
	bytes int64 // given back by the layers of out
}

func (rm *removal) remove(ref string, force bool) error {
	r, err := rm.s.lookup(ref)
	if err != nil {
		return err
	}
	if r = rm.c.current(r.ID); r == nil {
		return kindf(errdefs.ErrNotFound, "No such image: %s", ref)
	}
	if isPrefix(r.ID, ref) {
		return rm.byID(r, force)
	}
	return rm.byName(r, ref, force)
}

// isPrefix tells whether ref means the image by its id.
func isPrefix(id digest.Digest, ref string) bool {
	return strings.HasPrefix(id.String(), ref) || strings.HasPrefix(id.Encoded(), ref)
}

// byName takes the name away, and the image if that was its last one.
func (rm *removal) byName(r *record, ref string, force bool) error {
	if !force && isSingle(r) {
		if users := rm.users(r.ID.String()); len(users) > 0 {
			return kindf(errdefs.ErrConflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				ref, short(users[0].Container), short(r.ID.String()))
		}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return invalidf("%s", err)
	}
	rm.untag(r, refKey(named))
	r = rm.c.current(r.ID)
	_, canonical := named.(reference.Canonical)
	if !canonical && !slices.ContainsFunc(r.Tags, func(t string) bool { return repository(t) == named.Name() }) {
		// Its digest references go with the last tag of the repository.
		for _, d := range r.Digests {
			if repository(d) == named.Name() {
				rm.untag(r, d)
			}
		}
		r = rm.c.current(r.ID)
	}
	if len(r.Tags)+len(r.Digests) > 0 {
		return nil
	}
	if rm.conflict(r, force) != nil {
		return nil // a container needs the image: it stays, without a name
	}
	rm.delete(r)
	return nil
}

// byID takes the image away with all its names, if these are of one
// repository or force is given.
func (rm *removal) byID(r *record, force bool) error {
	if conflict := rm.conflict(r, force); conflict != nil {
		return conflict
	}
	rm.delete(r)
	return nil
}

// names are all names of an image, tags first.
func names(r *record) []string { return append(slices.Clone(r.Tags), r.Digests...) }

// conflict tells why an image may not be deleted; nil: it may.
func (rm *removal) conflict(r *record, force bool) error {
	id, users := short(r.ID.String()), rm.users(r.ID.String())
	for _, u := range users {
		if u.Running {
			return kindf(errdefs.ErrConflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", id, short(u.Container))
		}
	}
	switch {
	case force:
	case len(r.Tags)+len(r.Digests) > 0 && !isSingle(r):
		return kindf(errdefs.ErrConflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", id)
	case len(users) > 0:
		return kindf(errdefs.ErrConflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", id, short(users[0].Container))
	}
	return nil
}

func (rm *removal) untag(r *record, key string) {
	rm.c.untag(r.ID, key)
	rm.out = append(rm.out, Deleted{Untagged: familiarOne(key)})
}

// delete takes the image away and tells the layers that go with it: those that
// neither another image nor a container has.
func (rm *removal) delete(r *record) {
	for _, name := range names(r) {
		rm.untag(r, name)
	}
	rm.c.remove(r.ID)
	rm.out = append(rm.out, Deleted{Deleted: r.ID.String()})
	layers, blobs := rm.s.inUse(rm.c)
	for i := len(r.Layers) - 1; i >= 0; i-- {
		l := r.Layers[i]
		if layers[l.ChainID] {
			break
		}
		rm.out = append(rm.out, Deleted{Deleted: l.ChainID.String()})
		rm.bytes += l.Size
		if !blobs[l.Blob.Digest] {
			rm.bytes += l.Blob.Size
		}
	}
}

// inUse lists what the images that remain, and the containers, keep: layers by
// chain, and blobs.
func (s *Store) inUse(c *change) (layers, blobs map[digest.Digest]bool) {
	layers, blobs = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	s.mu.RLock()
	ids := slices.Clone(s.sorted)
	s.mu.RUnlock()
	for id := range c.puts {
		ids = append(ids, id)
	}
	for _, id := range ids {
		if r := c.current(id); r != nil {
			for _, l := range r.Layers {
				layers[l.ChainID], blobs[l.Blob.Digest] = true, true
			}
		}
	}
	s.roots.inUse(layers)
	// Where a build named the snapshots, containers know the top one by that name.
	for _, id := range ids {
		if r := c.known(id); r != nil && r.Snapshot != "" && layers[digest.Digest(r.Snapshot)] {
			for _, l := range r.Layers {
				layers[l.ChainID] = true
			}
		}
	}
	return layers, blobs
}

// isSingle tells whether all names of an image are of one repository, and at
// most one of them is a tag.
func isSingle(r *record) bool {
	if len(r.Tags) > 1 || len(r.Tags)+len(r.Digests) == 0 {
		return false
	}
	all := names(r)
	return !slices.ContainsFunc(all, func(n string) bool { return repository(n) != repository(all[0]) })
}

// repository is the name without tag and digest.
func repository(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return named.Name()
}

func familiarOne(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return reference.FamiliarString(named)
}

// short is an id as people see it: 12 digits.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}
