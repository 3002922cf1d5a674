package builder

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/builder/request"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/moby/api/types/build"
)

const hour = time.Hour

// empty tells that nothing was ever built here: then BuildKit is not started to
// tell so.
func (b *Builder) empty() bool {
	b.mu.Lock()
	started := b.kit != nil
	b.mu.Unlock()
	_, err := os.Stat(b.path("metadata.db"))
	return !started && errors.Is(err, fs.ErrNotExist)
}

// DiskUsage lists what the cache holds, oldest first.
func (b *Builder) DiskUsage(ctx context.Context) ([]build.CacheRecord, error) {
	if b.empty() {
		return nil, nil
	}
	k, err := b.start()
	if err != nil {
		return nil, err
	}
	list, err := k.worker.DiskUsage(ctx, client.DiskUsageInfo{})
	if err != nil {
		return nil, err
	}
	out := make([]build.CacheRecord, 0, len(list))
	for _, u := range list {
		out = append(out, build.CacheRecord{
			ID: u.ID, Parents: u.Parents, Type: string(u.RecordType), Description: u.Description, InUse: u.InUse, Shared: u.Shared,
			Size: u.Size, CreatedAt: u.CreatedAt, LastUsedAt: u.LastUsedAt, UsageCount: u.UsageCount,
		})
	}
	slices.SortFunc(out, func(a, b build.CacheRecord) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Prune removes parts of the cache that nothing uses, and returns when the disk
// has its space back. Kind: InvalidArgument.
func (b *Builder) Prune(ctx context.Context, o request.Prune) (request.Pruned, error) {
	filter, err := pruneFilter(o.Filters)
	if err != nil {
		return request.Pruned{}, err
	}
	if b.empty() {
		return request.Pruned{}, nil
	}
	k, err := b.start()
	if err != nil {
		return request.Pruned{}, err
	}
	return k.prune(ctx, &control.PruneRequest{
		Filter: filter, All: o.All, KeepDuration: int64(o.UnusedFor),
		ReservedSpace: o.ReservedSpace, MaxUsedSpace: o.MaxUsedSpace, MinFreeSpace: o.MinFreeSpace,
	})
}

func (k *kit) prune(ctx context.Context, r *control.PruneRequest) (request.Pruned, error) {
	p, err := k.drop(ctx, r)
	if err == nil && len(p.IDs) > 0 {
		err = k.worker.images.Collect(ctx)
	}
	return p, err
}

// drop takes records out of the cache; the disk has its space back after a collection.
func (k *kit) drop(ctx context.Context, r *control.PruneRequest) (p request.Pruned, err error) {
	err = k.control.Prune(r, &sink[control.UsageRecord]{ctx: ctx, send: func(u *control.UsageRecord) error {
		p.IDs = append(p.IDs, u.ID)
		p.Bytes += u.Size
		return nil
	}})
	return p, err
}

// dropHalfMade takes out what steps were writing when the engine was killed:
// snapshots that are not committed and no cache mounts. Sources go along. No build
// may be under way: it could have found what is taken from it.
func (k *kit) dropHalfMade(ctx context.Context) error {
	_, err := k.drop(ctx, &control.PruneRequest{All: true, Filter: []string{"mutable,type==regular"}})
	return err
}

// pruneFields are the fields that a prune can be filtered by.
var pruneFields = []string{"id", "parents", "type", "description", "inuse", "shared", "private"}

// pruneFilter puts filters into BuildKit's words: all names must fit, and of
// several values of one name any.
func pruneFilter(f map[string][]string) ([]string, error) {
	all := []string{""}
	for _, name := range pruneFields {
		values := f[name]
		if len(values) == 0 {
			continue
		}
		var next []string
		for _, value := range values {
			term := name
			switch {
			case value == "":
			case name == "id" && strings.HasSuffix(value, "*"), name == "parents":
				term += "~=" + value
			default:
				term += "==" + value
			}
			if strings.ContainsAny(value, ",") {
				return nil, invalid("invalid value of filter %s: %s", name, value)
			}
			for _, head := range all {
				next = append(next, strings.TrimPrefix(head+","+term, ","))
			}
		}
		all = next
	}
	if len(all) == 1 && all[0] == "" {
		return nil, nil
	}
	return all, nil
}
