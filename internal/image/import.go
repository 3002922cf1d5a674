package image

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"escale.dev/escale/internal/image/changes"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importedConfig is the config blob of an imported image.
type importedConfig struct {
	dockerspec.DockerOCIImage
	Comment string `json:"comment,omitempty"`
}

// Import makes an image of one layer from the tar r, which may be compressed
// with gzip, zstd, bzip2 or xz. It reads r once and blocks until all is stored;
// after an error or the end of ctx nothing is left. Progress is told no sooner
// than half a second after the start. Kinds: InvalidArgument for what is wrong
// with r or o, ResourceExhausted for a layer beyond the limit; a full disk is
// ENOSPC.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (img Image, err error) {
	name, err := importName(o.Ref)
	if err != nil {
		return Image{}, err
	}
	platform, err := parsePlatform(o.Platform)
	if err != nil {
		return Image{}, err
	}
	var config changes.Config
	if err := changes.Apply(&config, o.Changes); err != nil {
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
	u, err := w.unpack(counted(r, o.Progress, Progress{Status: "Importing", Total: o.Size}, time.Now().Add(progressDelay)), false)
	if err != nil {
		return Image{}, asInvalid(err)
	}
	size, err := w.place(u, "", u.diffID)
	if err != nil {
		return Image{}, err
	}
	now := time.Now().UTC()
	conf := importedConfig{Comment: o.Message}
	conf.Image = ocispec.Image{
		Created: &now, Platform: platform,
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{u.diffID}},
		History: []ocispec.History{{Created: &now, Comment: o.Message}},
	}
	conf.Config = config
	data, err := json.Marshal(conf)
	if err != nil {
		return Image{}, err
	}
	rec, err := w.record(data, []layerRecord{{DiffID: u.diffID, ChainID: u.diffID, Blob: u.blob, Size: size}}, nil, "")
	if err != nil {
		return Image{}, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	return c.publish(ctx, w, rec, name)
}

// publish adds the image that w made, with a name or without, and is the last of
// its steps; Store.write is held.
func (c *change) publish(ctx context.Context, w *work, rec *record, name reference.NamedTagged) (Image, error) {
	rec = c.add(rec)
	if name != nil {
		c.tag(rec, name)
	}
	if err := c.commit(ctx, w.end); err != nil {
		return Image{}, err
	}
	c.s.gc.kick(false)
	return c.current(rec.ID).image, nil
}

// importName is parseImportName for a name that may be left out.
func importName(ref string) (reference.NamedTagged, error) {
	if ref == "" {
		return nil, nil
	}
	return parseImportName(ref)
}

// parseImportName reads the name for an imported image.
func parseImportName(ref string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, invalidf("%s", err)
	}
	if _, ok := named.(reference.Canonical); ok {
		return nil, invalidf("cannot import digest reference")
	}
	return parseTag(ref)
}

// parsePlatform reads "linux/arm64"; "" is the host's.
func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		p := platforms.DefaultSpec()
		p.OSVersion, p.OSFeatures = "", nil
		return p, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return p, invalidf("%s", err)
	}
	if p.OS != "linux" {
		return p, invalidf("operating system is not supported")
	}
	return platforms.Normalize(p), nil
}

// makeManifest makes an OCI manifest.
func makeManifest(config ocispec.Descriptor, layers []layerRecord) ([]byte, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: make([]ocispec.Descriptor, 0, len(layers))}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Blob)
	}
	return json.Marshal(m)
}

const (
	progressDelay = 500 * time.Millisecond // before the first word of an import
	progressEvery = 100 * time.Millisecond
)

// counted tells report how far reading r is, not before next.
func counted(r io.Reader, report func(Progress), p Progress, next time.Time) io.Reader {
	if report == nil {
		return r
	}
	return &counter{r: r, report: report, p: p, next: next}
}

type counter struct {
	r      io.Reader
	report func(Progress)
	p      Progress
	next   time.Time
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.p.Current += int64(n)
	done := c.p.Total > 0 && c.p.Current == c.p.Total && n > 0
	if now := time.Now(); now.After(c.next) || done {
		c.next = now.Add(progressEvery)
		c.report(c.p)
	}
	return n, err
}
