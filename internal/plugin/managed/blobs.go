package managed

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// blobs keeps configurations and layers by their digests, packed as they came: a plugin
// can be pushed again.
type blobs struct{ dir string }

func (b blobs) path(d digest.Digest) string { return filepath.Join(b.dir, d.Encoded()) }

// has tells the size of a blob; false: it is not there.
func (b blobs) has(d digest.Digest) (int64, bool) {
	info, err := os.Stat(b.path(d))
	if err != nil {
		return 0, false
	}
	return info.Size(), true
}

func (b blobs) open(d digest.Digest) (io.ReadCloser, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return os.Open(b.path(d))
}

// put keeps what r gives, of at most max bytes. A digest that is wanted must be its own.
func (b blobs) put(r io.Reader, want digest.Digest, max int64) (d digest.Digest, size int64, err error) {
	w, err := b.writer()
	if err != nil {
		return "", 0, err
	}
	defer w.discard()
	n, err := io.Copy(w, io.LimitReader(r, max+1))
	switch {
	case err != nil:
		return "", 0, err
	case n > max:
		return "", 0, invalidf("blob %s is larger than %d bytes", want, max)
	}
	got, err := w.commit(want)
	return got, n, err
}

// blobWriter is a blob that is being written.
type blobWriter struct {
	b    blobs
	f    *os.File
	hash digest.Digester
	done bool
}

func (b blobs) writer() (*blobWriter, error) {
	f, err := os.OpenFile(filepath.Join(b.dir, newPrefix+rand.Text()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &blobWriter{b: b, f: f, hash: digest.SHA256.Digester()}, nil
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.hash.Hash().Write(p[:n])
	return n, err
}

// commit gives the blob its name. Kind: DataLoss for one that is not what was wanted.
func (w *blobWriter) commit(want digest.Digest) (digest.Digest, error) {
	got := w.hash.Digest()
	if want != "" && want != got {
		return "", fmt.Errorf("verification failed for digest %s: got %s: %w", want, got, errdefs.ErrDataLoss)
	}
	if err := errors.Join(w.f.Sync(), w.f.Close()); err != nil {
		return "", err
	}
	w.done = true
	return got, os.Rename(w.f.Name(), w.b.path(got))
}

// discard drops what was not committed. Idempotent.
func (w *blobWriter) discard() {
	if !w.done {
		w.done = true
		w.f.Close()
		os.Remove(w.f.Name())
	}
}

// collect deletes the blobs that no plugin has, while none is being made.
func (m *Manager) collect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.making) > 0 {
		return // whoever is last does it
	}
	used := map[string]bool{}
	for _, e := range m.byID {
		e.mu.Lock()
		for _, d := range append([]digest.Digest{e.rec.Config, e.rec.Manifest}, e.rec.Blobs...) {
			if d.Validate() == nil {
				used[d.Encoded()] = true
			}
		}
		e.mu.Unlock()
	}
	list, err := os.ReadDir(m.blobs.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.cfg.Logger.Warn("collecting blobs of plugins", "error", err)
	}
	for _, d := range list {
		if !used[d.Name()] {
			os.Remove(filepath.Join(m.blobs.dir, d.Name()))
		}
	}
}
