package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/minio/minio-go/v7"
)

// storage is where the registry's content is, as the library wants it, and what
// the library has no call for.
type storage interface {
	storagedriver.StorageDriver
	// discard takes a path out of sight. What it gives gives the space back.
	discard(p string) (finish func() error, err error)
	// removeEmpty removes a directory with nothing in it; another it leaves.
	removeEmpty(p string) error
	// use notes that a file was relied on; Stat tells that time from then on.
	use(p string, now time.Time) error
	// sync returns when all that was removed is gone for good.
	sync() error
}

// bucket is storage in a bucket of S3's protocol. What clients are still sending
// is on the disk: S3 has no files that grow, and a part of one must be of five
// megabytes. What is put or moved into the bucket is seen when it is whole.
// The times at which blobs were relied on are on the disk too, as S3
// changes an object's time only by copying it.
type bucket struct {
	*disk
	client *minio.Core
	name   string
	prefix string // of all keys; empty, or ends in a slash
}

// openBucket connects to the bucket and ends what a killed registry was about to
// send. It blocks for the network.
func openBucket(ctx context.Context, c *S3, d *disk) (*bucket, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	b := &bucket{disk: d, client: client, name: c.Bucket, prefix: c.Prefix}
	ok, err := client.BucketExists(ctx, b.name)
	if err != nil {
		return nil, fmt.Errorf("registry bucket %s at %s: %w", b.name, c.Endpoint, err)
	}
	if !ok {
		return nil, fmt.Errorf("registry bucket %s at %s: there is no such bucket", b.name, c.Endpoint)
	}
	if err := b.own(ctx); err != nil {
		return nil, err
	}
	for u := range client.ListIncompleteUploads(ctx, b.name, b.prefix, true) {
		if absent(u.Err) {
			break // some say so when there are none
		}
		if u.Err != nil {
			return nil, fmt.Errorf("registry bucket %s: %w", b.name, u.Err)
		}
		if err := client.AbortMultipartUpload(ctx, b.name, u.Key, u.UploadID); err != nil && !absent(err) {
			return nil, fmt.Errorf("registry bucket %s: %w", b.name, err)
		}
	}
	return b, nil
}

// own makes the bucket this registry's alone: what clients are busy with is known
// here only, and another's collection would take it.
func (b *bucket) own(ctx context.Context) error {
	mine, err := keptText(filepath.Join(b.root, "bucket-owner"))
	if err != nil {
		return err
	}
	key := b.prefix + "owner"
	once := minio.PutObjectOptions{DisableContentSha256: true, SendContentMd5: true}
	once.SetMatchETagExcept("*")
	_, err = b.client.Client.PutObject(ctx, b.name, key, strings.NewReader(mine), int64(len(mine)), once)
	if err == nil {
		return nil
	}
	r, _, _, readErr := b.client.GetObject(ctx, b.name, key, minio.GetObjectOptions{})
	if readErr != nil {
		return fmt.Errorf("registry bucket %s: %w", b.name, cmp.Or(err, readErr))
	}
	defer r.Close()
	is, err := io.ReadAll(io.LimitReader(r, 1024))
	if err != nil {
		return fmt.Errorf("registry bucket %s: %w", b.name, err)
	}
	if string(is) != mine {
		return fmt.Errorf("registry bucket %s: its object %s says that it is another registry's: two would collect what the other is sent; remove that object to take the bucket over: %w",
			b.name, key, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// absent tells whether S3 says that something is not there.
func absent(err error) bool {
	code := minio.ToErrorResponse(err).Code
	return code == minio.NoSuchKey || code == "NoSuchUpload" || code == "NotFound"
}

// here tells whether a path is on the disk.
func here(p string) bool { return transient(p + "/") }

// key is the object of a path, which never is outside the prefix.
func (b *bucket) key(p string) (string, error) {
	if p == "/" {
		return b.prefix, nil
	}
	if !storagedriver.PathRegexp.MatchString(p) || path.Clean(p) != p {
		return "", storagedriver.InvalidPathError{Path: p, DriverName: diskName}
	}
	return b.prefix + strings.TrimPrefix(p, "/"), nil
}

func (b *bucket) failed(p string, err error) error {
	if err == nil {
		return nil
	}
	if absent(err) {
		return storagedriver.PathNotFoundError{Path: p, DriverName: diskName}
	}
	return fmt.Errorf("registry bucket %s: %s: %w", b.name, p, err)
}

// GetContent reads a small object.
func (b *bucket) GetContent(ctx context.Context, p string) ([]byte, error) {
	if here(p) {
		return b.disk.GetContent(ctx, p)
	}
	r, err := b.Reader(ctx, p, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return data, b.failed(p, err)
}

// PutContent writes a small object.
func (b *bucket) PutContent(ctx context.Context, p string, data []byte) error {
	if here(p) {
		return b.disk.PutContent(ctx, p, data)
	}
	return b.put(ctx, p, bytes.NewReader(data), int64(len(data)))
}

func (b *bucket) put(ctx context.Context, p string, r io.Reader, size int64) error {
	key, err := b.key(p)
	if err != nil {
		return err
	}
	// By MD5 any server finds what was damaged on the way; a body that is signed in
	// pieces not all of them can read.
	_, err = b.client.Client.PutObject(ctx, b.name, key, r, size, minio.PutObjectOptions{ContentType: "application/octet-stream", SendContentMd5: true, DisableContentSha256: true})
	return b.failed(p, err)
}

// Reader opens an object at an offset.
func (b *bucket) Reader(ctx context.Context, p string, offset int64) (io.ReadCloser, error) {
	if here(p) {
		return b.disk.Reader(ctx, p, offset)
	}
	key, err := b.key(p)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, storagedriver.InvalidOffsetError{Path: p, Offset: offset, DriverName: diskName}
	}
	var o minio.GetObjectOptions
	if offset > 0 {
		if err := o.SetRange(offset, 0); err != nil {
			return nil, err
		}
	}
	r, _, _, err := b.client.GetObject(ctx, b.name, key, o)
	if minio.ToErrorResponse(err).Code == "InvalidRange" {
		return http.NoBody, nil // at its end
	}
	if err != nil {
		return nil, b.failed(p, err)
	}
	return r, nil
}

// Writer opens a file on the disk. Objects are not written to: they are put and
// moved.
func (b *bucket) Writer(ctx context.Context, p string, appending bool) (storagedriver.FileWriter, error) {
	if !here(p) {
		return nil, storagedriver.ErrUnsupportedMethod{DriverName: diskName}
	}
	return b.disk.Writer(ctx, p, appending)
}

// Stat tells size and time of a file or directory.
func (b *bucket) Stat(ctx context.Context, p string) (storagedriver.FileInfo, error) {
	if here(p) {
		return b.disk.Stat(ctx, p)
	}
	key, err := b.key(p)
	if err != nil {
		return nil, err
	}
	info, err := b.client.StatObject(ctx, b.name, key, minio.StatObjectOptions{})
	if err == nil {
		at := info.LastModified
		if used, err := b.disk.Stat(ctx, usedFile(p)); err == nil && used.ModTime().After(at) {
			at = used.ModTime()
		}
		return storagedriver.FileInfoInternal{FileInfoFields: storagedriver.FileInfoFields{Path: p, Size: info.Size, ModTime: at}}, nil
	}
	if err = b.failed(p, err); !missing(err) {
		return nil, err
	}
	if _, err := b.List(ctx, p); err != nil {
		return nil, err
	}
	return storagedriver.FileInfoInternal{FileInfoFields: storagedriver.FileInfoFields{Path: p, IsDir: true}}, nil
}

// objects lists what is below a directory, or only what is in it.
func (b *bucket) objects(ctx context.Context, p string, recursive bool) ([]minio.ObjectInfo, error) {
	dir, err := b.key(p)
	if err != nil {
		return nil, err
	}
	dir = strings.TrimSuffix(dir, "/") + "/"
	if dir == "/" {
		dir = ""
	}
	var out []minio.ObjectInfo
	for o := range b.client.Client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: dir, Recursive: recursive}) {
		if o.Err != nil {
			return nil, b.failed(p, o.Err)
		}
		out = append(out, o)
	}
	return out, ctx.Err()
}

// List gives the paths in a directory, in no order: those of the bucket, and of
// uploads under way.
func (b *bucket) List(ctx context.Context, p string) ([]string, error) {
	names, err := b.disk.List(ctx, p)
	if err != nil && !missing(err) || here(p) {
		return names, err
	}
	found, listErr := b.objects(ctx, p, false)
	if listErr != nil {
		return nil, listErr
	}
	for _, o := range found {
		names = append(names, path.Join(p, path.Base(o.Key)))
	}
	if len(names) == 0 {
		return nil, cmp.Or(err, error(storagedriver.PathNotFoundError{Path: p, DriverName: diskName}))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Walk calls f for every path below p, by name.
func (b *bucket) Walk(ctx context.Context, p string, f storagedriver.WalkFn, options ...func(*storagedriver.WalkOptions)) error {
	return storagedriver.WalkFallback(ctx, b, p, f, options...)
}

// Move puts a file in another's place. What goes into the bucket is sent, and
// removed here once it is there.
func (b *bucket) Move(ctx context.Context, from, to string) error {
	switch {
	case here(from) && here(to):
		return b.disk.Move(ctx, from, to)
	case !here(from):
		return storagedriver.ErrUnsupportedMethod{DriverName: diskName}
	}
	src, err := b.file(from)
	if err != nil {
		return err
	}
	f, err := os.Open(src)
	if err != nil {
		return notFound(from, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := b.put(ctx, to, f, st.Size()); err != nil {
		return err
	}
	return os.Remove(src)
}

// Delete removes an object, or all below a path.
func (b *bucket) Delete(ctx context.Context, p string) error {
	err := b.disk.Delete(ctx, p)
	if err != nil && !missing(err) || here(p) {
		return err
	}
	if removed, removeErr := b.remove(ctx, p); removeErr != nil || removed {
		return removeErr
	}
	return err
}

// remove takes what is in the bucket at and below a path. What a tag means goes
// last: a registry that is killed amid it leaves the tag as it was.
func (b *bucket) remove(ctx context.Context, p string) (bool, error) {
	key, err := b.key(p)
	if err != nil {
		return false, err
	}
	list, err := b.objects(ctx, p, true)
	if err != nil {
		return false, err
	}
	_, err = b.client.StatObject(ctx, b.name, key, minio.StatObjectOptions{})
	switch {
	case err == nil:
		list = append(list, minio.ObjectInfo{Key: key})
	case !absent(err):
		return false, b.failed(p, err)
	}
	slices.SortStableFunc(list, func(x, y minio.ObjectInfo) int {
		last := func(k string) int { return strings.Count(k, "/current/link") }
		return cmp.Compare(last(x.Key), last(y.Key))
	})
	for _, o := range list {
		if err := b.client.RemoveObject(ctx, b.name, o.Key, minio.RemoveObjectOptions{}); err != nil && !absent(err) {
			return false, b.failed(p, err)
		}
	}
	if used, err := b.file(usedFile(path.Join(p, "data"))); err == nil {
		_ = os.Remove(used) // of a blob that is gone it says nothing
	}
	return len(list) > 0, nil
}

func (b *bucket) discard(p string) (finish func() error, err error) {
	if here(p) {
		return b.disk.discard(p)
	}
	finish, err = b.disk.discard(p)
	if err != nil && !missing(err) {
		return nil, err
	}
	// detached: a collection does not stop between a blob and what leads to it.
	removed, removeErr := b.remove(context.Background(), p)
	if removeErr != nil {
		return nil, errors.Join(removeErr, done(finish))
	}
	if removed {
		err = nil
	}
	return finish, err
}

func done(finish func() error) error {
	if finish == nil {
		return nil
	}
	return finish()
}

func (b *bucket) removeEmpty(p string) error {
	if here(p) {
		return b.disk.removeEmpty(p)
	}
	return nil // S3 has no directories
}

// usedFile is where the time is kept at which a blob was relied on.
func usedFile(p string) string { return "/used" + p }

func (b *bucket) use(p string, now time.Time) error {
	name, err := b.file(usedFile(p))
	if err != nil {
		return err
	}
	err = b.within(path.Dir(name), func() error { return os.WriteFile(name, nil, 0o600) })
	if err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, now)
}

// sync has nothing to wait for: what S3 has answered it has done.
func (b *bucket) sync() error { return nil }
