package server

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// sweepManifests takes manifests out of their repositories. Of one that a client
// is busy with stays all that it leads to, and what refers to it.
func (c *collection) sweepManifests(ctx context.Context, doomed []held) error {
	spared := map[place]bool{}
	order, leads := leadingFirst(doomed)
	for _, h := range order {
		at := place{h.name, h.digest}
		ok := false
		if !spared[at] {
			var err error
			if ok, err = c.sweepManifest(ctx, h); err != nil {
				return err
			}
		}
		if ok {
			continue
		}
		for _, d := range leads[at] {
			spared[place{h.name, d}] = true
		}
		if err := c.markAll(ctx, h.digest); err != nil {
			return err
		}
	}
	return nil
}

// place is where a manifest is.
type place struct {
	name   string
	digest digest.Digest
}

// leadingFirst orders manifests so that each comes before those that are kept if
// it is, which leads tells: what it lists, and what refers to it.
func leadingFirst(doomed []held) (order []held, leads map[place][]digest.Digest) {
	at := map[place]held{}
	leads = map[place][]digest.Digest{}
	for _, h := range doomed {
		p := place{h.name, h.digest}
		at[p] = h
		leads[p] = append(leads[p], h.lists...)
		if h.subject != "" {
			s := place{h.name, h.subject}
			leads[s] = append(leads[s], h.digest)
		}
	}
	seen := map[place]bool{}
	var visit func(p place)
	visit = func(p place) {
		h, ok := at[p]
		if !ok || seen[p] {
			return
		}
		seen[p] = true
		for _, d := range leads[p] {
			visit(place{p.name, d})
		}
		order = append(order, h)
	}
	for _, h := range doomed {
		visit(place{h.name, h.digest})
	}
	slices.Reverse(order)
	return order, leads
}

// sweepManifest takes a manifest out of its repository, if nobody is busy with it.
func (c *collection) sweepManifest(ctx context.Context, h held) (bool, error) {
	dirs := []string{revision(h.name, h.digest)}
	if h.subject != "" {
		dirs = append(dirs, referrerFile(h.name, h.subject, h.digest))
	}
	ok, err := c.take(string(h.digest), func() (bool, error) {
		info, err := c.store.driver.Stat(ctx, path.Join(dirs[0], "link"))
		if missing(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return info.ModTime().Before(c.cutoff), nil
	}, dirs...)
	if ok {
		c.out.Manifests = append(c.out.Manifests, h.name+"@"+string(h.digest))
	}
	return ok, err
}

// sweepBlobs takes the blobs without a mark. Links go before the blob: killed in
// between, the next collection finds a blob without links.
func (c *collection) sweepBlobs(ctx context.Context) error {
	algorithms, err := c.store.list(ctx, blobRoot)
	if err != nil {
		return err
	}
	for _, a := range algorithms {
		parts, err := c.store.list(ctx, path.Join(blobRoot, a))
		if err != nil {
			return err
		}
		for _, p := range parts {
			hexes, err := c.store.list(ctx, path.Join(blobRoot, a, p))
			if err != nil {
				return err
			}
			for _, h := range hexes {
				if d := digest.NewDigestFromEncoded(digest.Algorithm(a), h); d.Validate() == nil {
					if err := c.sweepBlob(ctx, d); err != nil {
						return err
					}
				}
			}
		}
	}
	return ctx.Err()
}

func (c *collection) sweepBlob(ctx context.Context, d digest.Digest) error {
	if c.marked[d] {
		c.out.Kept++
		return nil
	}
	var size int64
	ok, err := c.take(string(d), func() (bool, error) {
		info, err := c.store.driver.Stat(ctx, path.Join(blobDir(d), "data"))
		if missing(err) {
			return true, nil // a directory without its blob: the power went
		}
		if err != nil {
			return false, err
		}
		size = info.Size()
		return info.ModTime().Before(c.cutoff), nil
	}, append(slices.Clip(c.links[d]), blobDir(d))...)
	if err != nil {
		return err
	}
	if !ok {
		c.out.Kept++
		return nil
	}
	c.out.Blobs, c.out.Bytes = append(c.out.Blobs, string(d)), c.out.Bytes+size
	return nil
}

// minUpload is the age under which an upload that nobody writes to is not given
// up, whatever the grace: its client may have lost its way, and come back.
const minUpload = time.Hour

// sweepUploads takes the uploads that were left.
func (c *collection) sweepUploads(ctx context.Context, name string) error {
	ids, err := c.store.list(ctx, uploadsDir(name))
	if err != nil {
		return err
	}
	for _, id := range ids {
		dir := path.Join(uploadsDir(name), id)
		cutoff := c.now.Add(-max(c.o.Grace, minUpload))
		var size int64
		ok, err := c.take("upload:"+id, func() (bool, error) {
			newest := time.Time{}
			for _, f := range []string{"data", "startedat"} {
				info, err := c.store.driver.Stat(ctx, path.Join(dir, f))
				if missing(err) {
					continue
				}
				if err != nil {
					return false, err
				}
				if f == "data" {
					size = info.Size()
				}
				if info.ModTime().After(newest) {
					newest = info.ModTime()
				}
			}
			return newest.Before(cutoff), nil
		}, dir)
		if err != nil {
			return err
		}
		if ok {
			c.out.Uploads, c.out.Bytes = append(c.out.Uploads, name+"/"+id), c.out.Bytes+size
		}
	}
	return ctx.Err()
}

// tidy removes what is left of manifests that are gone: directories, entries of
// referrers, and of the manifests that a tag has meant.
func (c *collection) tidy(ctx context.Context, name string) error {
	if c.o.DryRun {
		return nil
	}
	gone := func(d digest.Digest) func() (bool, error) {
		return func() (bool, error) {
			ok, err := c.store.has(ctx, name, d)
			return !ok, err
		}
	}
	revisions, err := c.store.digests(ctx, revisionsDir(name))
	if err != nil {
		return err
	}
	for _, d := range revisions {
		if _, err := c.take(string(d), gone(d), revision(name, d)); err != nil {
			return err
		}
	}
	tags, err := c.store.list(ctx, tagsDir(name))
	if err != nil {
		return err
	}
	for _, tag := range tags {
		index := path.Join(tagDir(name, tag), "index")
		were, err := c.store.digests(ctx, index)
		if err != nil {
			return err
		}
		for _, d := range were {
			if _, err := c.take(name+":"+tag, gone(d), path.Join(index, split(d))); err != nil {
				return err
			}
		}
	}
	return c.tidyReferrers(ctx, name, gone)
}

func (c *collection) tidyReferrers(ctx context.Context, name string, gone func(digest.Digest) func() (bool, error)) error {
	subjects, err := c.store.digests(ctx, repoDir(name, "_referrers"))
	if err != nil {
		return err
	}
	for _, s := range subjects {
		files, err := c.store.list(ctx, referrersDir(name, s))
		if err != nil {
			return err
		}
		for _, f := range files {
			a, hex, _ := strings.Cut(f, "-")
			d := digest.NewDigestFromEncoded(digest.Algorithm(a), hex)
			if d.Validate() != nil {
				continue
			}
			if _, err := c.take(string(d), gone(d), referrerFile(name, s, d)); err != nil {
				return err
			}
		}
		if err := c.store.driver.removeEmpty(referrersDir(name, s)); err != nil {
			return err
		}
	}
	return ctx.Err()
}
