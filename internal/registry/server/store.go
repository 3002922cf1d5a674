package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/sys/atomicfile"
)

// The library's layout (its registry/storage/paths.go), which has not changed
// since version 2 of 2015 and is what other registries' directories have too.
const (
	layout       = "/docker/registry/v2"
	repositories = layout + "/repositories"
	blobRoot     = layout + "/blobs"
)

// store is the registry's directory: the library's files, read and removed
// where the library has no call for it, and our own beside them.
type store struct {
	root   string
	disk   *disk    // of what only is here: always uploads, and without a bucket all
	driver storage  // of content
	lock   *os.File // a collection must know every client, so it is one registry alone
}

func openStore(ctx context.Context, root string, s3 *S3) (*store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("registry root %s: in use by another registry: %w", root, err)
	}
	if err := recoverRoot(root, lock); err != nil {
		lock.Close()
		return nil, err
	}
	d := newDisk(root)
	s := &store{root: root, disk: d, driver: d, lock: lock}
	if s3 != nil {
		if s.driver, err = openBucket(ctx, s3, d); err != nil {
			lock.Close()
			return nil, err
		}
	}
	return s, nil
}

// recoverRoot removes what a killed registry was about to write or to remove, and
// brings to the disk what it could not: what is seen from now on is relied on.
func recoverRoot(root string, f *os.File) error {
	if err := os.RemoveAll(filepath.Join(root, "tmp")); err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("registry root %s: %w", root, err)
	}
	return nil
}

// secret signs the state of uploads: kept, so that they are resumed also after
// a restart.
func (s *store) secret() (string, error) { return keptText(filepath.Join(s.root, "upload-secret")) }

// keptText is a random text that a file keeps, made at the first need.
func keptText(file string) (string, error) {
	b, err := os.ReadFile(file)
	if text := strings.TrimSpace(string(b)); err == nil && text != "" {
		return text, nil
	}
	if err != nil && !missing(err) {
		return "", err
	}
	text := rand.Text()
	return text, atomicfile.Write(file, []byte(text+"\n"), 0o600, atomicfile.Options{Sync: true})
}

func split(d digest.Digest) string { return d.Algorithm().String() + "/" + d.Encoded() }

func blobDir(d digest.Digest) string {
	return path.Join(blobRoot, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

func repoDir(name, rest string) string          { return path.Join(repositories, name, rest) }
func tagsDir(name string) string                { return repoDir(name, "_manifests/tags") }
func tagDir(name, tag string) string            { return path.Join(tagsDir(name), tag) }
func revisionsDir(name string) string           { return repoDir(name, "_manifests/revisions") }
func revision(n string, d digest.Digest) string { return path.Join(revisionsDir(n), split(d)) }
func layersDir(name string) string              { return repoDir(name, "_layers") }
func uploadsDir(name string) string             { return repoDir(name, "_uploads") }

func missing(err error) bool {
	var not storagedriver.PathNotFoundError
	return errors.As(err, &not) || errors.Is(err, fs.ErrNotExist)
}

// list gives the names in a directory; none when it is not there.
func (s *store) list(ctx context.Context, dir string) ([]string, error) {
	paths, err := s.driver.List(ctx, dir)
	if err != nil {
		if missing(err) {
			return nil, nil
		}
		return nil, err
	}
	for i, p := range paths {
		paths[i] = path.Base(p)
	}
	return paths, nil
}

// repos gives the name of every repository to do, the deeper ones after those
// that hold them.
func (s *store) repos(ctx context.Context, do func(name string) error) error {
	return s.reposBelow(ctx, "", do)
}

func (s *store) reposBelow(ctx context.Context, name string, do func(string) error) error {
	names, err := s.list(ctx, path.Join(repositories, name))
	if err != nil {
		return err
	}
	own := false
	for _, n := range names {
		if strings.HasPrefix(n, "_") {
			own = true
			continue
		}
		if err := s.reposBelow(ctx, path.Join(name, n), do); err != nil {
			return err
		}
	}
	if own && name != "" {
		return do(name)
	}
	return nil
}

// digests gives those that a directory of links is named after, ALGORITHM/HEX.
func (s *store) digests(ctx context.Context, dir string) ([]digest.Digest, error) {
	algorithms, err := s.list(ctx, dir)
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, a := range algorithms {
		hexes, err := s.list(ctx, path.Join(dir, a))
		if err != nil {
			return nil, err
		}
		for _, h := range hexes {
			if d := digest.NewDigestFromEncoded(digest.Algorithm(a), h); d.Validate() == nil {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// tagged is the digest a tag means, and when it was last set.
func (s *store) tagged(ctx context.Context, name, tag string) (digest.Digest, time.Time, error) {
	link := path.Join(tagDir(name, tag), "current/link")
	info, err := s.driver.Stat(ctx, link)
	if err != nil {
		return "", time.Time{}, err
	}
	b, err := s.driver.GetContent(ctx, link)
	if err != nil {
		return "", time.Time{}, err
	}
	d, err := digest.Parse(string(b))
	return d, info.ModTime(), err
}

// link is the digest that a directory's link means.
func (s *store) link(ctx context.Context, dir string) (digest.Digest, error) {
	b, err := s.driver.GetContent(ctx, path.Join(dir, "link"))
	if err != nil {
		return "", err
	}
	return digest.Parse(string(b))
}

// sync brings everything to the disk.
func (s *store) sync() error { return s.driver.sync() }

// has reports whether a repository has a manifest.
func (s *store) has(ctx context.Context, name string, d digest.Digest) (bool, error) {
	_, err := s.driver.Stat(ctx, path.Join(revision(name, d), "link"))
	if missing(err) {
		return false, nil
	}
	return err == nil, err
}

// manifest reads a manifest, at most maxManifest bytes of it.
func (s *store) manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	r, err := s.driver.Reader(ctx, path.Join(blobDir(d), "data"), 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxManifest+1))
}

// remove removes a directory; one that is gone is no error.
func (s *store) remove(ctx context.Context, dir string) error {
	if err := s.driver.Delete(ctx, dir); !missing(err) {
		return err
	}
	return nil
}

// discard takes a directory out of sight; one that is gone is no error. What it
// gives, which may be nil, gives the space back.
func (s *store) discard(dir string) (finish func() error, err error) {
	finish, err = s.driver.discard(dir)
	if missing(err) {
		return nil, nil
	}
	return finish, err
}

// untag removes the tags of a repository that mean a manifest.
func (s *store) untag(ctx context.Context, name string, d digest.Digest) error {
	names, err := s.list(ctx, tagsDir(name))
	if err != nil {
		return err
	}
	for _, tag := range names {
		if is, _, err := s.tagged(ctx, name, tag); err != nil || is != d {
			continue // gone since, or it means nothing
		}
		if err := s.remove(ctx, tagDir(name, tag)); err != nil {
			return err
		}
	}
	return nil
}

// use notes on the disk that a blob was used, for collections after a restart.
func (s *store) use(d digest.Digest, now time.Time) {
	// That it fails is no harm: the lease in memory counts as well.
	_ = s.driver.use(path.Join(blobDir(d), "data"), now)
}
