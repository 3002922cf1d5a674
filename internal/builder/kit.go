package builder

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/sys/nobind"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cache/remotecache"
	inlinecache "github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	snapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/leaseutil"
	bknet "github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// kit is a running BuildKit.
type kit struct {
	control  *control.Controller
	worker   *imageWorker
	sessions *session.Manager
	server   *grpc.Server
	temp     func() error // gives up the directory of temporary files
	once     sync.Once
	err      error
}

// newKit starts BuildKit; ctx ends it.
func newKit(ctx context.Context, cfg *Config, exec *executor) (_ *kit, err error) {
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0 && err != nil; i-- {
			_ = undo[i]()
		}
	}()
	pool := filepath.Join(cfg.RunDir, mountPool)
	if err := os.Mkdir(pool, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := nobind.Prepare(pool); err != nil {
		return nil, err
	}
	records, err := metadata.NewStore(filepath.Join(cfg.Dir, "metadata.db"))
	if err != nil {
		return nil, err
	}
	undo = append(undo, records.Close)
	w, err := newWorker(ctx, cfg, exec, records) // empties the pool
	if err != nil {
		return nil, err
	}
	if err := dropOrphans(ctx, w.LeaseManager(), records); err != nil {
		return nil, err
	}
	temp, err := makeTemp(pool)
	if err != nil {
		return nil, err
	}
	undo = append(undo, temp)
	cache, err := bboltcachestorage.NewStore(filepath.Join(cfg.Dir, "cache.db"))
	if err != nil {
		return nil, err
	}
	undo = append(undo, cache.Close)
	history, err := boltutil.SafeOpen(filepath.Join(cfg.Dir, "history.db"), 0o600, &bolt.Options{})
	if err != nil {
		return nil, err
	}
	undo = append(undo, history.Close)
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	all := &worker.Controller{}
	if err := all.Add(w); err != nil {
		return nil, err
	}
	gw, err := gateway.NewGatewayFrontend(all.Infos(), nil)
	if err != nil {
		return nil, err
	}
	builtin := forwarder.NewGatewayForwarder(all.Infos(), dockerfile.Build)
	hosts := w.RegistryHosts
	ctl, err := control.NewController(control.Opt{
		SessionManager: sessions, WorkerController: all,
		Frontends: map[string]frontend.Frontend{"dockerfile.v0": builtin, "gateway.v0": fallback{gateway: gw, builtin: builtin}},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"registry": registrycache.ResolveCacheExporterFunc(sessions, hosts),
			"local":    localcache.ResolveCacheExporterFunc(sessions), "inline": inlinecache.ResolveCacheExporterFunc(),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registrycache.ResolveCacheImporterFunc(sessions, w.ContentStore(), hosts),
			"local":    localcache.ResolveCacheImporterFunc(sessions),
		},
		CacheManager: solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(all)),
		Entitlements: []string{"network.host"}, // as Docker: security.insecure is refused
		HistoryDB:    history, CacheStore: cache, LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(),
		GarbageCollect: w.GarbageCollect, GracefulStop: ctx.Done(),
	})
	if err != nil {
		return nil, err
	}
	k := &kit{control: ctl, worker: w, sessions: sessions, server: newServer(), temp: temp}
	ctl.Register(k.server)
	return k, nil
}

// newWorker makes BuildKit's worker of the image store's parts.
func newWorker(ctx context.Context, cfg *Config, exec *executor, records *metadata.Store) (*imageWorker, error) {
	shared := cfg.Images.Shared()
	contents := snapshot.NewContentStore(shared.Content, image.Namespace)
	hosts := cfg.Hosts
	if hosts == nil {
		hosts = docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	}
	id, err := base.ID(cfg.Dir)
	if err != nil {
		return nil, err
	}
	snaps := snapshot.NewSnapshotter(shared.Name, layerNames{shared.Snapshotter}, image.Namespace, nil)
	applier, differ := apply.NewFileSystemApplier(contents), walking.NewWalkingDiff(contents)
	// By this label clients know that all exporters are there.
	labels := map[string]string{"org.mobyproject.buildkit.worker.snapshotter": shared.Name, "org.mobyproject.buildkit.worker.executor": "escale"}
	if g := cfg.gateway(); g != "" {
		labels["org.mobyproject.buildkit.worker.moby.host-gateway-ip"] = g
	}
	w, err := base.NewWorker(ctx, base.WorkerOpt{
		ID: id, Root: cfg.Dir, Labels: labels, MetadataStore: records,
		BuildkitVersion:  client.BuildkitVersion{Package: "escale.dev/escale", Version: cfg.Version},
		NetworkProviders: map[pb.NetMode]bknet.Provider{}, // the executor has its own
		Executor:         exec, ContentStore: contents, Snapshotter: snaps, Applier: applier, Differ: differ,
		ImageStore:     imageNames{cfg.Images},
		Platforms:      []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())},
		LeaseManager:   leaseutil.WithNamespace(layerLeases{shared.Leases}, image.Namespace),
		GarbageCollect: func(ctx context.Context) (gc.Stats, error) { return nil, cfg.Images.Collect(ctx) },
		RegistryHosts:  hosts, MountPoolRoot: filepath.Join(cfg.RunDir, mountPool), GCPolicy: gcPolicy(cfg.Dir),
	})
	if err != nil {
		return nil, err
	}
	w.SourceManager.Register(localFirst{Source: w.ImageSource, images: cfg.Images})
	writer, err := containerimage.NewImageWriter(containerimage.WriterOpt{Snapshotter: snaps, ContentStore: contents, Applier: applier, Differ: differ})
	if err != nil {
		return nil, err
	}
	return &imageWorker{Worker: w, images: cfg.Images, writer: writer}, nil
}

// close ends BuildKit. Idempotent.
func (k *kit) close() error {
	k.once.Do(func() {
		k.server.Stop()
		k.err = errors.Join(k.control.Close(), k.temp())
	})
	return k.err
}

// gcPolicy bounds the cache by default: it may take a fifth of the disk, and
// leaves a tenth of it free. What sources and cache mounts leave goes first.
func gcPolicy(dir string) []client.PruneInfo {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []client.PruneInfo{{All: true, MaxUsedSpace: 10 << 30}}
	}
	disk := int64(st.Blocks) * st.Bsize
	most, free := disk/5, disk/10
	return []client.PruneInfo{
		{Filter: []string{"type==source.local,type==exec.cachemount,type==source.git.checkout"}, KeepDuration: 48 * hour, MaxUsedSpace: min(most/4, 2<<30)},
		{KeepDuration: 60 * 24 * hour, ReservedSpace: most / 10, MaxUsedSpace: most, MinFreeSpace: free},
		{ReservedSpace: most / 10, MaxUsedSpace: most, MinFreeSpace: free},
		{All: true, ReservedSpace: most / 10, MaxUsedSpace: most, MinFreeSpace: free},
	}
}
