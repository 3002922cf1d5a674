package engine

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/system"
	apivolume "github.com/moby/moby/api/types/volume"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
)

// dfRoutes tell what takes the disk.
type dfRoutes struct {
	*Server
	shared *singleflight.Group // who asks meanwhile gets the same answer
}

func (d dfRoutes) routes() []route {
	return []route{{http.MethodGet, "/system/df", d.df}}
}

// usage is what one kind of thing takes, in bytes.
type usage[T any] struct {
	ActiveCount int64 `json:",omitempty"`
	Items       []T   `json:",omitempty"`
	Reclaimable int64 `json:",omitempty"`
	TotalCount  int64 `json:",omitempty"`
	TotalSize   int64 `json:",omitempty"`
}

// newUsage is the answer since API 1.52.
type newUsage struct {
	ImageUsage      *usage[summary]           `json:",omitempty"`
	ContainerUsage  *usage[json.RawMessage]   `json:",omitempty"`
	VolumeUsage     *usage[apivolume.Volume]  `json:",omitempty"`
	BuildCacheUsage *usage[build.CacheRecord] `json:",omitempty"`
}

// oldUsage is the answer before API 1.52, and since then stands beside the new one
// unless the client asks for all of that: many ask with no version at all and know
// only this. What was not asked for is null.
type oldUsage struct {
	LayersSize int64
	Images     []summary
	Containers []json.RawMessage
	Volumes    []apivolume.Volume
	BuildCache []build.CacheRecord
}

func (d dfRoutes) df(w *response, r *request) error {
	want, err := objects(r)
	if err != nil {
		return err
	}
	var all newUsage
	var g errgroup.Group
	// detached: others may wait for the same answer
	ctx := detached(r)
	if want[system.ImageObject] {
		g.Go(func() (err error) {
			all.ImageUsage, err = d.images(ctx, r.version)
			return err
		})
	}
	if want[system.ContainerObject] {
		g.Go(func() (err error) {
			all.ContainerUsage, err = once(d.shared, "containers "+r.version.String(), func() (*usage[json.RawMessage], error) {
				return d.containers(ctx, r.version)
			})
			return err
		})
	}
	if want[system.VolumeObject] {
		g.Go(func() (err error) {
			all.VolumeUsage, err = once(d.shared, "volumes", func() (*usage[apivolume.Volume], error) { return d.volumes(ctx) })
			return err
		})
	}
	if want[system.BuildCacheObject] {
		g.Go(func() (err error) {
			all.BuildCacheUsage, err = once(d.shared, "build cache", func() (*usage[build.CacheRecord], error) { return d.buildCache(ctx) })
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shaped(r, all))
}

// objects reads what is asked for: everything, unless types are named.
func objects(r *request) (map[system.DiskUsageObject]bool, error) {
	want := map[system.DiskUsageObject]bool{
		system.ContainerObject: true, system.ImageObject: true, system.VolumeObject: true, system.BuildCacheObject: true,
	}
	types := r.query.all("type")
	if r.version.before(42) || len(types) == 0 {
		return want, nil
	}
	asked := map[system.DiskUsageObject]bool{}
	for _, t := range types {
		if !want[system.DiskUsageObject(t)] {
			return nil, invalidf("unknown object type: %s", t)
		}
		asked[system.DiskUsageObject(t)] = true
	}
	return asked, nil
}

// shaped gives the answer the form of the client's version.
func shaped(r *request, all newUsage) any {
	var old oldUsage
	if u := all.ImageUsage; u != nil {
		old.LayersSize, old.Images = u.TotalSize, u.Items
	}
	if u := all.ContainerUsage; u != nil {
		old.Containers = u.Items
	}
	if u := all.VolumeUsage; u != nil {
		old.Volumes = u.Items
	}
	if u := all.BuildCacheUsage; u != nil {
		old.BuildCache = u.Items
	}
	if r.version.before(52) {
		return old
	}
	verbose := r.query.bool("verbose")
	brief := newUsage{withItems(all.ImageUsage, verbose), withItems(all.ContainerUsage, verbose), withItems(all.VolumeUsage, verbose), withItems(all.BuildCacheUsage, verbose)}
	if !verbose {
		return struct {
			oldUsage
			newUsage
		}{old, brief}
	}
	return brief
}

func withItems[T any](u *usage[T], keep bool) *usage[T] {
	if u == nil || keep {
		return u
	}
	brief := *u
	brief.Items = nil
	return &brief
}

// once runs f unless the same is under way: then its result counts.
func once[T any](g *singleflight.Group, key string, f func() (T, error)) (T, error) {
	v, err, _ := g.Do(key, func() (any, error) { return f() })
	if err != nil {
		var none T
		return none, err
	}
	return v.(T), nil
}

// images tells what layers take: each counts once. What images without
// containers have for themselves can be given back.
func (d dfRoutes) images(ctx context.Context, ver version) (*usage[summary], error) {
	images, err := d.cfg.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	users, shared := d.users(), layerUse(images)
	u := &usage[summary]{Items: make([]summary, 0, len(images)), TotalCount: int64(len(images))}
	layers, kept := map[string]int64{}, map[string]bool{}
	for n := range images {
		img := &images[n]
		s := imageRoutes{d.Server}.summary(img, ver, nonNil(img.RepoTags), nonNil(img.RepoDigests), users, shared)
		s.Containers = int64(len(users(img.ID)))
		u.Items = append(u.Items, s)
		if s.Containers > 0 {
			u.ActiveCount++
		}
		for _, l := range img.Layers {
			layers[l.ChainID] = l.Size
			kept[l.ChainID] = kept[l.ChainID] || s.Containers > 0
		}
	}
	for chain, size := range layers {
		u.TotalSize += size
		if !kept[chain] {
			u.Reclaimable += size
		}
	}
	slices.SortStableFunc(u.Items, func(a, b summary) int { return int(b.Created - a.Created) })
	return u, nil
}

func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// containers tells what containers have written.
func (d dfRoutes) containers(ctx context.Context, ver version) (*usage[json.RawMessage], error) {
	views := d.cfg.Containers.List()
	sizes := make([]containerSize, len(views))
	gone := make([]bool, len(views))
	err := someAtATime(len(views), func(i int) (err error) {
		sizes[i].rw, sizes[i].root, err = d.cfg.Containers.Size(ctx, string(views[i].ID))
		if errdefs.IsNotFound(err) {
			gone[i], err = true, nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	u := &usage[json.RawMessage]{Items: []json.RawMessage{}}
	l := d.listEncoder(ctx, ver, views)
	for i := range views {
		if gone[i] {
			continue
		}
		l.buf = nil
		l.container(&views[i], sizes[i])
		u.Items = append(u.Items, l.buf)
		u.TotalCount++
		u.TotalSize += sizes[i].rw
		if st := &views[i].State; st.Running() || st.Status == container.Restarting {
			u.ActiveCount++
		} else {
			u.Reclaimable += sizes[i].rw
		}
	}
	return u, nil
}

// volumes tells what is in volumes.
func (d dfRoutes) volumes(ctx context.Context) (*usage[apivolume.Volume], error) {
	list, err := d.volumeUsage(ctx)
	if err != nil {
		return nil, err
	}
	u := &usage[apivolume.Volume]{Items: list, TotalCount: int64(len(list))}
	for i := range list {
		data := list[i].UsageData
		size := max(data.Size, 0) // -1: it could not be measured
		u.TotalSize += size
		if data.RefCount > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += size
		}
	}
	return u, nil
}

// buildCache tells what builds keep. What an image shares is the image's.
func (d dfRoutes) buildCache(ctx context.Context) (*usage[build.CacheRecord], error) {
	list, err := d.cfg.Builder.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	u := &usage[build.CacheRecord]{Items: append([]build.CacheRecord{}, list...), TotalCount: int64(len(list))}
	for i := range list {
		if c := &list[i]; c.InUse {
			u.ActiveCount++
		} else if !c.Shared {
			u.Reclaimable += c.Size
		}
		if !list[i].Shared {
			u.TotalSize += list[i].Size
		}
	}
	return u, nil
}

// someAtATime calls f for 0 to n-1, a few at a time, and gives the first error.
func someAtATime(n int, f func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}

// layerUse counts the images that have each layer, by chain id.
func layerUse(images []image.Image) map[string]int {
	use := map[string]int{}
	for n := range images {
		for _, l := range images[n].Layers {
			use[l.ChainID]++
		}
	}
	return use
}

// sharedSize is the bytes of the layers that another image has too.
func sharedSize(img *image.Image, use map[string]int) (size int64) {
	for _, l := range img.Layers {
		if use[l.ChainID] > 1 {
			size += l.Size
		}
	}
	return size
}
