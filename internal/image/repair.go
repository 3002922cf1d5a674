package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"escale.dev/escale/internal/image/layer"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// repair unpacks the layers of an image again, in place: the machine went down
// before they were known to be on the disk. Their blobs are on it, containerd
// saw to that. Containers of the image stay as they are.
func (s *Store) repair(ctx context.Context, r *record) error {
	s.log.Warn("the machine went down soon after this image was stored; unpacking it again", "image", r.ID, "tags", r.Tags)
	if r.Snapshot != "" {
		return rebuild(ctx, s, r)
	}
	for i, l := range r.Layers {
		dirs, err := s.layerDirs(ctx, l.ChainID, fmt.Sprintf("repair/%s", l.ChainID))
		if err == nil {
			err = s.repairLayer(ctx, l, dirs)
		}
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// rebuild unpacks the layers of a built image to snapshots of the image store's
// own: those that the build had made may hold more than one layer.
func rebuild(ctx context.Context, s *Store, r *record) (err error) {
	w, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// Not abandon: nothing collects yet while the store is being opened.
			_ = s.leases.Delete(w.ctx, w.lease)
		}
	}()
	var parent digest.Digest
	for i, l := range r.Layers {
		_, there, err := w.placed(l.ChainID)
		if err != nil {
			return err
		}
		if !there {
			u, err := w.unpackBlob(l.Blob)
			if err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			if _, err := w.place(u, parent, l.ChainID); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
		}
		parent = l.ChainID
	}
	s.keep(r)
	c := newChange(s)
	c.edit(r.ID).Snapshot = ""
	return c.commit(ctx, func(ctx context.Context) error {
		again := c.puts[r.ID]
		if err := s.hold(ctx, again); err != nil {
			return err
		}
		*r = *again
		return w.end(ctx)
	})
}

func (s *Store) repairLayer(ctx context.Context, l layerRecord, dirs []string) error {
	if err := empty(dirs[0]); err != nil {
		return err
	}
	ra, err := s.content.ReaderAt(ctx, l.Blob)
	if err != nil {
		return err
	}
	defer ra.Close()
	plain, _, err := layer.Decompress(ctx, content.NewReader(ra), s.maxLayer())
	if err != nil {
		return err
	}
	defer plain.Close()
	var res layer.Result
	digester := digest.Canonical.Digester()
	err = layer.Broadcast(ctx, plain, copyTo(digester.Hash()), func(r io.Reader) (err error) {
		res, err = layer.Apply(ctx, dirs[0], r, layer.Options{Limits: s.limits(), UserXattr: s.userXattr})
		return err
	})
	if err != nil {
		return err
	}
	if got := digester.Digest(); got != l.DiffID {
		return fmt.Errorf("its blob has become %s, not %s", got, l.DiffID)
	}
	return layer.Inherit(dirs[0], res.Implied, dirs[1:])
}

// empty removes what is in a directory.
func empty(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
