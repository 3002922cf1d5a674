package server

import (
	"context"
	"path"

	"github.com/opencontainers/go-digest"
)

// held is a manifest in a repository.
type held struct {
	name    string
	digest  digest.Digest
	subject digest.Digest   // of a referrer
	lists   []digest.Digest // of an index
}

// markRepo marks what a repository leads to, and gives the manifests in it that
// nothing leads to.
func (c *collection) markRepo(ctx context.Context, name string) ([]held, error) {
	layers, err := c.store.digests(ctx, layersDir(name))
	if err != nil {
		return nil, err
	}
	for _, d := range layers {
		dir := path.Join(layersDir(name), split(d))
		c.links[d] = append(c.links[d], dir)
		if d.Algorithm() == digest.Canonical {
			continue
		}
		if is, err := c.store.link(ctx, dir); err == nil {
			c.alias[d], c.links[is] = is, append(c.links[is], dir)
		} else if !missing(err) {
			return nil, err
		}
	}
	revisions, err := c.store.digests(ctx, revisionsDir(name))
	if err != nil || len(revisions) == 0 {
		return nil, err
	}
	keep := map[digest.Digest]bool{}
	if c.o.Untagged {
		if err := c.roots(ctx, name, revisions, keep); err != nil {
			return nil, err
		}
	}
	docs, err := c.documents(ctx, name, revisions)
	if err != nil {
		return nil, err
	}
	if !c.o.Untagged {
		for d := range docs {
			keep[d] = true
		}
	}
	spread(docs, keep)
	var doomed []held
	for d, doc := range docs {
		if keep[d] {
			c.mark(d, doc)
			continue
		}
		h := held{name: name, digest: d}
		for _, m := range doc.Manifests {
			h.lists = append(h.lists, m.Digest)
		}
		if doc.Subject != nil {
			h.subject = doc.Subject.Digest
		}
		doomed = append(doomed, h)
	}
	return doomed, ctx.Err()
}

// roots are the tagged manifests, and those that are young.
func (c *collection) roots(ctx context.Context, name string, revisions []digest.Digest, keep map[digest.Digest]bool) error {
	names, err := c.store.list(ctx, tagsDir(name))
	if err != nil {
		return err
	}
	for _, tag := range names {
		if c.gone[name+":"+tag] {
			continue
		}
		d, _, err := c.store.tagged(ctx, name, tag)
		if missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		keep[d] = true
	}
	for _, d := range revisions {
		if keep[d] {
			continue
		}
		info, err := c.store.driver.Stat(ctx, path.Join(revision(name, d), "link"))
		if missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		keep[d] = !info.ModTime().Before(c.cutoff)
	}
	return nil
}

// documents reads the manifests of a repository. One that is there and cannot
// be read ends the collection: what it leads to is not known.
func (c *collection) documents(ctx context.Context, name string, revisions []digest.Digest) (map[digest.Digest]*document, error) {
	docs := map[digest.Digest]*document{}
	for _, d := range revisions {
		if ok, err := c.store.has(ctx, name, d); err != nil || !ok {
			if err != nil {
				return nil, err
			}
			continue // removed: its directory stays
		}
		doc, err := c.store.document(ctx, d)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, invalid("manifest %s of %s: %s", d, name, err)
		}
		docs[d] = doc
	}
	return docs, nil
}

// spread adds to keep what an index that is kept lists, and what refers to a
// manifest that is kept, until there is no more.
func spread(docs map[digest.Digest]*document, keep map[digest.Digest]bool) {
	referring := map[digest.Digest][]digest.Digest{}
	for d, doc := range docs {
		if doc.Subject != nil {
			referring[doc.Subject.Digest] = append(referring[doc.Subject.Digest], d)
		}
	}
	var work []digest.Digest
	for d, k := range keep {
		if k {
			work = append(work, d)
		}
	}
	add := func(d digest.Digest) {
		if !keep[d] {
			keep[d] = true
			work = append(work, d)
		}
	}
	for len(work) > 0 {
		d := work[len(work)-1]
		work = work[:len(work)-1]
		for _, r := range referring[d] {
			add(r)
		}
		if doc := docs[d]; doc != nil {
			for _, m := range doc.Manifests {
				add(m.Digest)
			}
		}
	}
}

func (c *collection) mark(d digest.Digest, doc *document) {
	c.marked[d] = true
	for _, ref := range doc.references() {
		c.marked[ref] = true
	}
}

// markAliases marks the blobs that are marked by another name.
func (c *collection) markAliases() {
	for d, is := range c.alias {
		if c.marked[d] {
			c.marked[is] = true
		}
	}
}

// markAll marks a manifest with all it leads to.
func (c *collection) markAll(ctx context.Context, d digest.Digest) error {
	if c.walked[d] {
		return nil // or an index that lists one a thousand times, which does the same, would take for ever
	}
	c.walked[d] = true
	doc, err := c.store.document(ctx, d)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	c.mark(d, doc)
	for _, m := range doc.Manifests {
		if err := c.markAll(ctx, m.Digest); err != nil {
			return err
		}
	}
	return nil
}
