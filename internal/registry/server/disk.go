package server

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
)

// diskName is the name of our driver at the library.
const diskName = "escale-disk"

// disk is the library's driver of storage over a directory. The library has one
// too, whose base links exporters of telemetry over gRPC: 124 packages for an
// engine that has no use for them. What is committed or moved is on the disk
// when the call returns, and not seen by anybody before: so whatever a client is
// told is there outlives a power cut, also where another client brought it.
// Uploads are the exception: they begin anew.
type disk struct {
	root string

	mu     sync.Mutex
	moving map[string]chan struct{} // places that a file is on its way to; closed when it is on the disk
	fresh  map[string]uint64        // directories whose entry may not be on the disk yet: as which they were made
	made   uint64

	watch func(op, path string) // for tests; nil: nobody
}

func newDisk(root string) *disk {
	return &disk{root: root, moving: map[string]chan struct{}{}, fresh: map[string]uint64{}}
}

// registerDisk makes the driver known to the library, once a process.
var registerDisk = sync.OnceFunc(func() { factory.Register(diskName, diskFactory{}) })

type diskFactory struct{}

// Create is the factory's one method; the parameter is the storage itself, which
// the registry uses beside the library.
func (diskFactory) Create(_ context.Context, parameters map[string]any) (storagedriver.StorageDriver, error) {
	d, ok := parameters["disk"].(storage)
	if !ok {
		return nil, errors.New("storage without a disk")
	}
	return d, nil
}

// Name is of the driver.
func (*disk) Name() string { return diskName }

// file gives the place of a path, which never is outside the root.
func (d *disk) file(p string) (string, error) {
	if p == "/" {
		return d.root, nil
	}
	if !storagedriver.PathRegexp.MatchString(p) || path.Clean(p) != p {
		return "", storagedriver.InvalidPathError{Path: p, DriverName: diskName}
	}
	return filepath.Join(d.root, p), nil
}

func notFound(p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return storagedriver.PathNotFoundError{Path: p, DriverName: diskName}
	}
	return err
}

// GetContent reads a small file.
func (d *disk) GetContent(ctx context.Context, p string) ([]byte, error) {
	f, err := d.settled(ctx, p)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(f)
	return b, notFound(p, err)
}

// transient reports whether a path may be lost in a power cut.
func transient(p string) bool {
	return strings.Contains(p, "/_uploads/") || strings.HasPrefix(p, "/tmp/")
}

// PutContent writes a small file: whole, or not at all.
func (d *disk) PutContent(ctx context.Context, p string, content []byte) error {
	tmp := "/tmp/" + rand.Text()
	w, err := d.Writer(ctx, tmp, false)
	if err != nil {
		return err
	}
	if _, err = w.Write(content); err == nil && !transient(p) {
		err = w.Commit(ctx)
	}
	if err = errors.Join(err, w.Close()); err == nil {
		err = d.Move(ctx, tmp, p)
	}
	if err != nil {
		os.Remove(filepath.Join(d.root, tmp))
	}
	if strings.Contains(p, "/hashstates/") {
		// It saves a second reading of an upload, no more; but the library leaves
		// the upload's file open, with the space it takes, when it cannot write it.
		return nil
	}
	return err
}

// Reader opens a file at an offset.
func (d *disk) Reader(ctx context.Context, p string, offset int64) (io.ReadCloser, error) {
	name, err := d.settled(ctx, p)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, storagedriver.InvalidOffsetError{Path: p, Offset: offset, DriverName: diskName}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, notFound(p, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Writer opens a file to write to, from its beginning or its end.
func (d *disk) Writer(_ context.Context, p string, appending bool) (storagedriver.FileWriter, error) {
	name, err := d.file(p)
	if err != nil {
		return nil, err
	}
	flags := os.O_WRONLY | os.O_CREATE
	if !appending {
		flags |= os.O_TRUNC
	}
	var f *os.File
	err = d.within(filepath.Dir(name), func() (err error) {
		f, err = os.OpenFile(name, flags, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &diskWriter{disk: d, f: f, size: size}, nil
}

// Stat tells size and time of a file or directory.
func (d *disk) Stat(ctx context.Context, p string) (storagedriver.FileInfo, error) {
	name, err := d.settled(ctx, p)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, notFound(p, err)
	}
	info := storagedriver.FileInfoFields{Path: p, ModTime: st.ModTime(), IsDir: st.IsDir()}
	if !info.IsDir {
		info.Size = st.Size()
	}
	return storagedriver.FileInfoInternal{FileInfoFields: info}, nil
}

// List gives the paths in a directory, in no order.
func (d *disk) List(_ context.Context, p string) ([]string, error) {
	name, err := d.file(p)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, notFound(p, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(0)
	if err != nil {
		return nil, notFound(p, err)
	}
	for i, n := range names {
		names[i] = path.Join(p, n)
	}
	return names, nil
}

// RedirectURL gives none: content is served here.
func (*disk) RedirectURL(*http.Request, string) (string, error) { return "", nil }

// Walk calls f for every path below p, by name.
func (d *disk) Walk(ctx context.Context, p string, f storagedriver.WalkFn, options ...func(*storagedriver.WalkOptions)) error {
	return storagedriver.WalkFallback(ctx, d, p, f, options...)
}
