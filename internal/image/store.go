package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/image/layer"
	"escale.dev/escale/internal/sys/blockgroup"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// snapshotterName is containerd's name of its overlay snapshotter.
const snapshotterName = "overlayfs"

// DefaultMinFree is how many bytes of the disk imports and loads leave free.
const DefaultMinFree = 256 << 20

// lockTimeout is how long Open waits for another engine to let go of the store.
const lockTimeout = 2 * time.Second

// Config says where a store is.
type Config struct {
	// Root holds content/ and snapshots/ (containerd's layouts) and meta.db.
	Root   string
	Logger *slog.Logger
	// MinFree is how many bytes on the disk imports and loads leave free; 0
	// means DefaultMinFree, or a twentieth of a disk for which that is much; less
	// than 0: none.
	MinFree int64
	// MaxLayer bounds the bytes that a layer may unpack to; 0 means
	// layer.DefaultBytes.
	MaxLayer int64
	// Init lies below the layers of every container that is made from now on; nil: nothing does.
	Init *InitLayer
}

// Store keeps images and the root file systems made of them. It is safe for
// concurrent use. What it returns shares memory with it and is to be read only.
type Store struct {
	cfg       Config
	log       *slog.Logger
	bolt      *bolt.DB
	db        *metadata.DB
	content   content.Store
	snaps     snapshots.Snapshotter
	leases    leases.Manager
	backend   snapshots.Snapshotter
	userXattr bool
	boot      string
	roots     *Roots
	gc        *collector
	remotes   *Remotes

	write   sync.Mutex   // held while records change
	commits sync.RWMutex // held by a collection, and shared by what commits

	mu     sync.RWMutex
	byID   map[digest.Digest]*record
	byRef  map[string]digest.Digest // full form of tags and digest references
	sorted []digest.Digest          // keys of byID

	closing sync.Once
	closed  error
}

// Open opens or makes the store at c.Root and begins to collect what a killed
// engine left half-made. It blocks for the disk, and up to two seconds when
// another engine holds the store (kind Unavailable). The records of a later
// format are refused (FailedPrecondition). ctx ends only the opening.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: c, log: c.Logger, byID: map[digest.Digest]*record{}, byRef: map[string]digest.Digest{}, boot: bootID()}
	s.remotes = newRemotes(s)
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("image store %s: %w", c.Root, err), s.Close())
	}
	// Detached: collecting outlives the call that opened the store.
	s.gc.start(s.namespace(context.WithoutCancel(ctx)))
	s.gc.kick(true)
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.cfg.Root, 0o711); err != nil {
		return err
	}
	s.bolt, err = bolt.Open(filepath.Join(s.cfg.Root, "meta.db"), 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType, NoStatistics: true})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("another engine uses it: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	if err := s.bolt.Update(initFormat); err != nil {
		return err
	}
	blobRoot := filepath.Join(s.cfg.Root, "content")
	if err := os.MkdirAll(blobRoot, 0o700); err != nil { // layers hold what only root may read
		return err
	}
	// Nothing half-written is resumed.
	if err := os.RemoveAll(filepath.Join(blobRoot, "ingest")); err != nil {
		return err
	}
	blobs, err := local.NewStore(blobRoot)
	if err != nil {
		return err
	}
	snapRoot := filepath.Join(s.cfg.Root, "snapshots")
	if err := s.stackable(ctx, snapRoot); err != nil {
		return err
	}
	ms, err := storage.NewMetaStore(filepath.Join(snapRoot, "metadata.db"))
	if err != nil {
		return err
	}
	s.backend, err = overlay.NewSnapshotter(snapRoot, overlay.AsynchronousRemove, overlay.WithMetaStore(ms))
	if err != nil {
		return err
	}
	if err := setAside(ctx, ms, filepath.Join(snapRoot, "snapshots")); err != nil {
		return err
	}
	blockgroup.Spread(filepath.Join(snapRoot, "snapshots"))
	if s.userXattr, err = overlayutils.NeedsUserXAttr(snapRoot); err != nil {
		s.log.Warn("overlayfs: cannot tell whether userxattr is needed", "error", err)
	}
	s.db = metadata.NewDB(s.bolt, flushing{blobs, blobRoot}, map[string]snapshots.Snapshotter{snapshotterName: plain{s.backend}})
	if err := s.db.Init(ctx); err != nil {
		return err
	}
	s.content, s.snaps, s.leases = s.db.ContentStore(), s.db.Snapshotter(snapshotterName), metadata.NewLeaseManager(s.db)
	s.gc = newCollector(s)
	s.roots = &Roots{s: s, dir: filepath.Join(snapRoot, "snapshots"), chains: map[string]chain{}, mounter: newMounter()}
	if s.cfg.Init != nil {
		s.roots.init = s.cfg.Init.Version
		if err := makeInit(snapRoot, s.cfg.Init); err != nil {
			return err
		}
	}
	ctx = s.namespace(ctx)
	if err := s.dropWork(ctx); err != nil {
		return err
	}
	if err := s.roots.load(ctx); err != nil {
		return err
	}
	return s.loadRecords(ctx)
}

// loadRecords fills the memory from the disk. An image whose config is gone is
// said and left out; what is suspect after a power cut is repaired.
func (s *Store) loadRecords(ctx context.Context) error {
	var list []*record
	err := s.bolt.View(func(tx *bolt.Tx) (err error) {
		list, err = readRecords(tx)
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range list {
		config, err := content.ReadBlob(ctx, s.content, r.Config)
		if err == nil {
			err = r.fill(config)
		}
		if err == nil && r.Boot != "" && r.Boot != s.boot {
			err = s.repair(ctx, r)
		}
		if err != nil {
			s.log.Error("image is damaged and left out", "image", r.ID, "tags", r.Tags, "error", err)
			continue
		}
		s.keep(r)
	}
	return nil
}

// Close ends the collector and closes the databases. It is idempotent.
func (s *Store) Close() error {
	s.closing.Do(func() {
		if s.gc != nil {
			s.gc.stop()
		}
		if s.roots != nil {
			s.roots.mounter.stop()
		}
		var errs []error
		if s.backend != nil {
			errs = append(errs, s.backend.Close())
		}
		if s.bolt != nil {
			errs = append(errs, s.bolt.Close())
		}
		s.closed = errors.Join(errs...)
	})
	return s.closed
}

// Roots are the root file systems of containers.
func (s *Store) Roots() *Roots { return s.roots }

// namespace puts a context into our one namespace.
func (s *Store) namespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// update runs fn in one transaction of meta.db: containerd's stores and our
// records change together, with one commit to the disk.
func (s *Store) update(ctx context.Context, fn func(ctx context.Context, tx *bolt.Tx) error) error {
	// containerd's collector takes what the backend has and the committed
	// metadata does not know: what fn makes there is known only with the commit.
	s.commits.RLock()
	defer s.commits.RUnlock()
	return s.db.Update(func(tx *bolt.Tx) error {
		return fn(boltutil.WithTransaction(s.namespace(ctx), tx), tx)
	})
}

// limits are those of a layer.
func (s *Store) limits() layer.Limits {
	return layer.Limits{Bytes: s.cfg.MaxLayer, Space: s.space}
}

// maxLayer bounds the bytes of an unpacked layer.
func (s *Store) maxLayer() int64 {
	if s.cfg.MaxLayer > 0 {
		return s.cfg.MaxLayer
	}
	return layer.DefaultBytes
}

// space refuses to go on when the disk is about to be full.
func (s *Store) space() error {
	if s.cfg.MinFree < 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: s.cfg.Root, Err: err}
	}
	keep := s.cfg.MinFree
	if keep == 0 {
		keep = min(DefaultMinFree, int64(st.Blocks)*st.Bsize/20)
	}
	if free := int64(st.Bavail) * st.Bsize; free < keep {
		return fmt.Errorf("%s: %d MB are free and %d are kept free: %w", s.cfg.Root, free>>20, keep>>20, unix.ENOSPC)
	}
	return nil
}

// bootID tells one run of the machine from another.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
