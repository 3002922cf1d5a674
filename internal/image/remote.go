package image

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// Source is a repository of a registry, or another node, to pull from. Its errors have their
// kinds, and the words to show.
type Source interface {
	// Resolve tells what a tag or digest stands for.
	Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error)
	// Manifest fetches a manifest or index by tag or digest, verified.
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	// Blob opens a blob at an offset, not verified.
	Blob(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error)
	// Passing tells whether another attempt may go better after err.
	Passing(err error) bool
}

// Target is a repository of a registry to push to.
type Target interface {
	// Push sends a blob, unless the repository has it. from are repositories of
	// the same registry that may have it. open begins what is sent, perhaps more
	// than once.
	Push(ctx context.Context, d ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (Sent, error)
	// PushManifest sends a manifest and lets a tag, or its digest, stand for it.
	PushManifest(ctx context.Context, ref string, d ocispec.Descriptor, data []byte) error
	// Passing tells whether another attempt may go better after err.
	Passing(err error) bool
}

// Sent is how a blob got to a repository: neither field set, by sending it.
type Sent struct {
	Existed bool
	Mounted string // repository of the same registry that had it
}

// PullOptions says how an image is pulled.
type PullOptions struct {
	Source   Source
	Platform string // "linux/amd64"; empty: the host's
	// Progress is told steps in order, from one goroutine; when it is slow, of
	// steps that differ only in bytes the last.
	Progress func(Progress)
	// Unlisted: that a tag stands for the image is not noted with its digest, as no
	// registry has said so.
	Unlisted bool
}

// Pulled is what a pull brought.
type Pulled struct {
	Image  Image
	Digest digest.Digest // what the name stands for: manifest or index
	New    bool          // the name stood for another image, or none
}

// PushOptions says how an image is pushed.
type PushOptions struct {
	Target   Target
	Platform string // that the image must be for; empty: any
	Progress func(Progress)
}

// Pushed is what was pushed under one tag.
type Pushed struct {
	Tag    string
	Digest digest.Digest
	Size   int64 // bytes of the manifest
}

// Transfers bounds what goes on with registries. Zero means the default.
type Transfers struct {
	Downloads int           // layers at once; 3
	Uploads   int           // layers at once; 5
	Attempts  int           // at one layer, without much progress between; 5
	Pause     time.Duration // before the second attempt, doubled with each; a second
}

// transfers are the bounds in use.
type transfers struct {
	Transfers
	down, up *semaphore.Weighted
}

// Remotes moves images between a store and registries.
type Remotes struct {
	s      *Store
	bounds atomic.Pointer[transfers]

	mu      sync.Mutex
	byChain map[digest.Digest]*flight       // layers on their way, each once however many pulls wait for it
	blobs   map[digest.Digest]chan struct{} // being fetched; closed when it is not any more
	configs map[digest.Digest]*sharedConfig // of pulls under way
}

// Remotes are what the store has to do with registries.
func (s *Store) Remotes() *Remotes { return s.remotes }

func newRemotes(s *Store) *Remotes {
	m := &Remotes{s: s, byChain: map[digest.Digest]*flight{}, blobs: map[digest.Digest]chan struct{}{}, configs: map[digest.Digest]*sharedConfig{}}
	m.Set(Transfers{})
	return m
}

// Set changes the bounds for what begins from now on.
func (m *Remotes) Set(t Transfers) {
	for to, fallback := range map[*int]int{&t.Downloads: 3, &t.Uploads: 5, &t.Attempts: 5} {
		if *to <= 0 {
			*to = fallback
		}
	}
	if t.Pause <= 0 {
		t.Pause = time.Second
	}
	m.bounds.Store(&transfers{t, semaphore.NewWeighted(int64(t.Downloads)), semaphore.NewWeighted(int64(t.Uploads))})
}
