package image

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// flushStep is how much of a blob is written before the disk is told to begin.
const flushStep = 8 << 20

// flushing is a content store whose blobs go to the disk while they are being
// written. A blob is synced before it counts; without this the disk would stand
// idle while a layer is hashed and unpacked, and then be waited for.
type flushing struct {
	content.Store
	root string
}

// WalkStatusRefs is what garbage collection looks for behind the interface.
func (f flushing) WalkStatusRefs(ctx context.Context, fn func(ref string) error) error {
	if w, ok := f.Store.(interface {
		WalkStatusRefs(context.Context, func(string) error) error
	}); ok {
		return w.WalkStatusRefs(ctx, fn)
	}
	all, err := f.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, st := range all {
		if err := fn(st.Ref); err != nil {
			return err
		}
	}
	return nil
}

// Writer implements content.Ingester.
func (f flushing) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := f.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			w.Close()
			return nil, err
		}
	}
	// Where containerd's store keeps what is being written. It is an advantage
	// only: a layout that is another one day makes imports slower, nothing else.
	data, err := os.Open(filepath.Join(f.root, "ingest", digest.FromString(o.Ref).Encoded(), "data"))
	if err != nil {
		return w, nil
	}
	return &flushed{Writer: w, data: data}, nil
}

// flushed is a blob being written.
type flushed struct {
	content.Writer
	data    *os.File
	written int64
	told    int64      // up to where the disk was told
	ends    chan int64 // offsets up to which to write; nil before the first
	done    sync.WaitGroup
	once    sync.Once
}

// Write implements io.Writer.
func (f *flushed) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	f.written += int64(n)
	if f.written-f.told >= flushStep {
		if f.ends == nil {
			f.ends = make(chan int64, 1)
			f.done.Go(f.flush)
		}
		select {
		case f.ends <- f.written:
			f.told = f.written
		default: // the disk is behind; the next step is a larger one
		}
	}
	return n, err
}

// flush begins writing what came since the last time; it waits only when the
// disk's queue is full. Errors show in the sync at the end.
func (f *flushed) flush() {
	var from int64
	for to := range f.ends {
		_ = unix.SyncFileRange(int(f.data.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE)
		from = to
	}
}

// stop ends the flushing. Idempotent.
func (f *flushed) stop() {
	f.once.Do(func() {
		if f.ends != nil {
			close(f.ends)
		}
		f.done.Wait()
		f.data.Close()
	})
}

// Commit implements content.Writer.
func (f *flushed) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	f.stop()
	return f.Writer.Commit(ctx, size, expected, opts...)
}

// Close implements content.Writer.
func (f *flushed) Close() error {
	f.stop()
	return f.Writer.Close()
}

// Truncate implements content.Writer: what was begun is written all the same.
func (f *flushed) Truncate(size int64) error {
	f.written = size
	f.told = min(f.told, size)
	return f.Writer.Truncate(size)
}
