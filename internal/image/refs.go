package image

import (
	"context"
	"slices"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// keep puts a record into memory, in place of the one of its id. Callers hold
// mu, or are alone.
func (s *Store) keep(r *record) {
	if old := s.byID[r.ID]; old != nil {
		s.forgetRefs(old)
	} else {
		i, _ := slices.BinarySearch(s.sorted, r.ID)
		s.sorted = slices.Insert(s.sorted, i, r.ID)
	}
	s.byID[r.ID] = r
	for _, ref := range r.Tags {
		s.byRef[ref] = r.ID
	}
	for _, ref := range r.Digests {
		s.byRef[ref] = r.ID
	}
}

// drop takes a record out of memory. Callers hold mu.
func (s *Store) drop(r *record) {
	old := s.byID[r.ID]
	if old == nil {
		return
	}
	s.forgetRefs(old)
	delete(s.byID, r.ID)
	if i, ok := slices.BinarySearch(s.sorted, r.ID); ok {
		s.sorted = slices.Delete(s.sorted, i, i+1)
	}
}

// forgetRefs drops the names that still are r's.
func (s *Store) forgetRefs(r *record) {
	for _, refs := range [][]string{r.Tags, r.Digests} {
		for _, ref := range refs {
			if s.byRef[ref] == r.ID {
				delete(s.byRef, ref)
			}
		}
	}
}

// lookup finds an image by name, name:tag, name@digest, id or prefix of an id.
func (s *Store) lookup(ref string) (*record, error) {
	parsed, err := reference.ParseAnyReference(ref)
	if err != nil {
		return nil, invalidf("%s", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	named, isNamed := parsed.(reference.Named)
	if !isNamed {
		if d, ok := parsed.(reference.Digested); ok {
			if r := s.byID[d.Digest()]; r != nil {
				return r, nil
			}
		}
		return nil, errNoSuch(parsed)
	}
	if id, ok := s.byRef[refKey(named)]; ok {
		return s.byID[id], nil
	}
	r, err := s.byPrefix(ref)
	if r == nil && err == nil {
		err = errNoSuch(parsed)
	}
	return r, err
}

// refKey is the full form under which a reference is kept: of a name with tag
// and digest the digest counts.
func refKey(named reference.Named) string {
	named = reference.TagNameOnly(named)
	if c, ok := named.(reference.Canonical); ok {
		return reference.TrimNamed(named).String() + "@" + c.Digest().String()
	}
	return named.String()
}

// byPrefix finds an image by the beginning of its id, with or without the
// algorithm; nil when there is none. Callers hold mu.
func (s *Store) byPrefix(prefix string) (*record, error) {
	hex := strings.TrimPrefix(prefix, "sha256:")
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil, nil
	}
	full := digest.Digest("sha256:" + hex)
	i := sort.Search(len(s.sorted), func(i int) bool { return s.sorted[i] >= full })
	if i == len(s.sorted) || !strings.HasPrefix(string(s.sorted[i]), string(full)) {
		return nil, nil
	}
	if i+1 < len(s.sorted) && strings.HasPrefix(string(s.sorted[i+1]), string(full)) {
		return nil, kindf(errdefs.ErrNotFound, "ambiguous reference")
	}
	return s.byID[s.sorted[i]], nil
}

// Get finds an image: name (of which latest is meant), name:tag, name@digest,
// a full id or a unique prefix of one. It touches no disk. Unknown or
// ambiguous: NotFound; not a reference: InvalidArgument.
func (s *Store) Get(_ context.Context, ref string) (Image, error) {
	r, err := s.lookup(ref)
	if err != nil {
		return Image{}, err
	}
	img := r.image
	img.Index = r.indexOf(ref)
	return img, nil
}

// indexOf is the index that ref stands for if it is a tag with one; else zero.
func (r *record) indexOf(ref string) ocispec.Descriptor {
	if len(r.Indexes) == 0 {
		return ocispec.Descriptor{}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ocispec.Descriptor{}
	}
	return r.Indexes[refKey(named)]
}

// List gives every image, newest first. It touches no disk.
func (s *Store) List(context.Context) ([]Image, error) {
	s.mu.RLock()
	out := make([]Image, 0, len(s.byID))
	for _, id := range s.sorted {
		r := s.byID[id]
		img := r.image
		for _, t := range r.Tags {
			if index := r.Indexes[t]; index.Digest != "" {
				img.Index = index
				break
			}
		}
		out = append(out, img)
	}
	s.mu.RUnlock()
	slices.SortStableFunc(out, func(a, b Image) int { return created(b).Compare(created(a)) })
	return out, nil
}

// Tag gives an image one more name, which another image loses if it had it.
// target without a tag means latest. Kinds: NotFound, InvalidArgument.
func (s *Store) Tag(ctx context.Context, ref, target string) error {
	name, err := parseTag(target)
	if err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	r, err := s.lookup(ref)
	if err != nil {
		return err
	}
	c := newChange(s)
	index := r.indexOf(ref)
	c.tag(r, name)
	c.index(c.puts[r.ID], name.String(), index)
	return c.commit(ctx, nil)
}

// parseTag reads a name to give to an image.
func parseTag(target string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(target)
	if err != nil {
		return nil, invalidf("%s", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, invalidf("refusing to create a tag with a digest reference")
	}
	if reference.FamiliarName(named) == string(digest.Canonical) {
		return nil, invalidf("refusing to create an ambiguous tag using digest algorithm as name")
	}
	return reference.TagNameOnly(named).(reference.NamedTagged), nil
}
