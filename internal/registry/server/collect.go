package server

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// Options say what a collection takes.
type Options struct {
	Grace    time.Duration // nothing younger is taken
	DryRun   bool          // only tell
	Untagged bool          // also manifests that no tag leads to
	Rules    []Rule        // also tags
}

// Collected is what a collection took, or with DryRun would take.
type Collected struct {
	DryRun    bool     `json:"dryRun"`
	Tags      []string `json:"tags"`      // NAME:TAG
	Manifests []string `json:"manifests"` // NAME@DIGEST
	Blobs     []string `json:"blobs"`     // digests
	Uploads   []string `json:"uploads"`   // NAME/ID: abandoned
	Bytes     int64    `json:"bytes"`     // of blobs and uploads
	Kept      int      `json:"kept"`      // blobs
}

// errCollecting is the answer to who comes second.
var errCollecting = errors.New("a collection is already running")

// Collect removes what nothing leads to, while clients push and pull. What is
// refused by a lease stays until the next. It blocks for the disk.
func (s *Server) Collect(ctx context.Context, o Options) (*Collected, error) {
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	if !s.collecting.TryLock() {
		return nil, errCollecting
	}
	defer s.collecting.Unlock()
	began := s.now()
	c := &collection{store: s.store, leases: s.leases, o: o, now: began, cutoff: began.Add(-o.Grace),
		marked: map[digest.Digest]bool{}, links: map[digest.Digest][]string{}, alias: map[digest.Digest]digest.Digest{}, out: &Collected{DryRun: o.DryRun}}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	s.log.Info("collected", "dry-run", o.DryRun, "tags", len(c.out.Tags), "manifests", len(c.out.Manifests), "blobs", len(c.out.Blobs),
		"uploads", len(c.out.Uploads), "bytes", c.out.Bytes, "kept", c.out.Kept, "took", s.now().Sub(began))
	return c.out, nil
}

// collection is one run of the collector.
type collection struct {
	store  *store
	leases *leases
	o      Options
	now    time.Time
	cutoff time.Time // what was made or used since stays; never after the begin
	marked map[digest.Digest]bool
	links  map[digest.Digest][]string      // directories of the links to a blob
	gone   map[string]bool                 // tags that are removed, in a dry run in thought only
	alias  map[digest.Digest]digest.Digest // blobs that have another name: linked, under a digest of another algorithm
	out    *Collected
	walked map[digest.Digest]bool // manifests that markAll has seen
	finish []func() error         // gives the space back of what was taken out of sight
}

func (c *collection) run(ctx context.Context) error {
	c.gone, c.walked = map[string]bool{}, map[digest.Digest]bool{}
	var doomed []held
	for _, step := range []func(context.Context, string) error{
		c.expire,
		func(ctx context.Context, name string) error {
			more, err := c.markRepo(ctx, name)
			doomed = append(doomed, more...)
			return err
		},
	} {
		if err := c.store.repos(ctx, func(name string) error { return step(ctx, name) }); err != nil {
			return err
		}
	}
	if err := c.sweepManifests(ctx, doomed); err != nil {
		return err
	}
	if len(c.out.Tags)+len(c.out.Manifests) > 0 && !c.o.DryRun {
		// What named a blob is gone for good before the blob goes.
		if err := c.store.sync(); err != nil {
			return err
		}
	}
	c.markAliases()
	if err := c.sweepBlobs(ctx); err != nil {
		return err
	}
	return c.store.repos(ctx, func(name string) error {
		if err := c.sweepUploads(ctx, name); err != nil {
			return err
		}
		return c.tidy(ctx, name)
	})
}

// take removes what key stands for, which are dirs in this order, if no client is busy with it nor was within
// the grace, which ends when the collection begins: what clients do meanwhile
// counts. fresh looks, under the lock, whether it still is what was seen.
func (c *collection) take(key string, fresh func() (bool, error), dirs ...string) (bool, error) {
	ok, err := c.leases.unlessHeld(key, c.cutoff, func() (bool, error) {
		if ok, err := fresh(); err != nil || !ok {
			return false, err
		}
		if c.o.DryRun {
			return true, nil
		}
		for _, dir := range dirs {
			finish, err := c.store.discard(dir)
			if err != nil {
				return false, err
			}
			if finish != nil {
				c.finish = append(c.finish, finish)
			}
		}
		return true, nil
	})
	// Here, since clients wait for the lock, and large files take their time.
	for _, finish := range c.finish {
		err = errors.Join(err, finish())
	}
	c.finish = nil
	return ok, err
}

// expire removes the tags that the rules are about.
func (c *collection) expire(ctx context.Context, name string) error {
	var list []tagState
	for _, r := range c.o.Rules {
		if !r.about(name) {
			continue
		}
		if list == nil {
			names, err := c.store.list(ctx, tagsDir(name))
			if err != nil {
				return err
			}
			list = []tagState{}
			for _, tag := range names {
				if _, set, err := c.store.tagged(ctx, name, tag); err == nil {
					list = append(list, tagState{tag, set})
				} else if !missing(err) {
					return err
				}
			}
		}
		for _, t := range r.expired(list, c.now) {
			key := name + ":" + t.name
			if c.gone[key] {
				continue
			}
			ok, err := c.take(key, func() (bool, error) {
				_, set, err := c.store.tagged(ctx, name, t.name)
				return err == nil && set.Equal(t.set), nil
			}, tagDir(name, t.name))
			if err != nil {
				return err
			}
			if ok {
				c.gone[key] = true
				c.out.Tags = append(c.out.Tags, key)
			}
		}
	}
	return ctx.Err()
}
