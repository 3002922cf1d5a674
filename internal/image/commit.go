package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"escale.dev/escale/internal/image/changes"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions says what an image is made of.
type CommitOptions struct {
	Parent    string // full id of the image below
	Ref       string // name to give it; empty: none
	Config    changes.Config
	Author    string
	Comment   string
	CreatedBy string // command, for the history
	// Diff writes the archive of the layer on top, and tells how many entries
	// are in it. One without entries is left out.
	Diff func(ctx context.Context, w io.Writer) (entries int, err error)
}

// ParseCommitName checks a name that a commit may give. Kind: InvalidArgument.
func ParseCommitName(ref string) error {
	_, err := parseImportName(ref)
	return err
}

// Commit makes an image of another and a layer. It blocks until all is stored;
// after an error or the end of ctx nothing is left, and what an engine that was
// killed meanwhile had made goes with the next Open. Kinds: InvalidArgument,
// NotFound (the image below), ResourceExhausted; a full disk is ENOSPC.
func (s *Store) Commit(ctx context.Context, o CommitOptions) (img Image, err error) {
	name, err := importName(o.Ref)
	if err != nil {
		return Image{}, err
	}
	parent, err := s.lookup(o.Parent)
	if err != nil {
		return Image{}, err
	}
	if err := s.space(); err != nil {
		return Image{}, err
	}
	w, err := s.begin(ctx)
	if err != nil {
		return Image{}, err
	}
	defer func() {
		if err != nil {
			w.abandon()
		}
	}()
	layers, err := w.onTop(parent, o.Diff)
	if err != nil {
		return Image{}, err
	}
	data, err := committedConfig(parent, layers, &o)
	if err != nil {
		return Image{}, err
	}
	made := &record{Layers: layers}
	if len(layers) == len(parent.Layers) {
		made.Snapshot = parent.Snapshot
	}
	rec, err := w.store(made, data, nil, "")
	if err != nil {
		return Image{}, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	// Had it been removed before the new manifest held its layers, they might be gone.
	if c.current(parent.ID) == nil {
		_, err := s.lookup(o.Parent)
		return Image{}, fmt.Errorf("removed meanwhile: %w", err)
	}
	return c.publish(ctx, w, rec, name)
}

// onTop stores a layer and puts it on top of others.
func (w *work) onTop(parent *record, diff func(context.Context, io.Writer) (int, error)) ([]layerRecord, error) {
	below := parent.Layers
	ctx, cancel := context.WithCancel(w.ctx)
	r, wr := io.Pipe()
	entries, written := 0, make(chan error, 1)
	go func() {
		n, err := diff(ctx, wr)
		wr.CloseWithError(err)
		entries = n
		written <- err
	}()
	u, err := w.unpack(r, false)
	cancel()
	r.CloseWithError(io.ErrClosedPipe) // so that nobody goes on writing
	if diffErr := <-written; err == nil && diffErr != nil {
		err = diffErr
	}
	if err != nil || entries == 0 {
		return below, err
	}
	if len(below) >= maxLayers {
		return nil, invalidf("max depth exceeded")
	}
	diffs := make([]digest.Digest, 0, len(below)+1)
	for _, l := range below {
		diffs = append(diffs, l.DiffID)
	}
	l := layerRecord{DiffID: u.diffID, Blob: u.blob, ChainID: identity.ChainID(append(diffs, u.diffID))}
	if l.Size, err = w.place(u, parent.chain(), l.ChainID); err != nil {
		return nil, err
	}
	return append(slices.Clone(below), l), nil
}

// committedConfig is the config blob of an image on top of parent.
func committedConfig(parent *record, layers []layerRecord, o *CommitOptions) ([]byte, error) {
	now := time.Now().UTC()
	conf := importedConfig{DockerOCIImage: parent.image.Config, Comment: o.Comment}
	conf.Created, conf.Author, conf.Config = &now, o.Author, o.Config
	conf.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: make([]digest.Digest, 0, len(layers))}
	for _, l := range layers {
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, l.DiffID)
	}
	conf.History = append(slices.Clone(conf.History), ocispec.History{
		Created: &now, CreatedBy: o.CreatedBy, Author: o.Author, Comment: o.Comment, EmptyLayer: len(layers) == len(parent.Layers),
	})
	return json.Marshal(conf)
}
