package managed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"

	"escale.dev/escale/internal/image/layer"
	apievents "github.com/moby/moby/api/types/events"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/distribution/reference"
)

// Create makes a plugin, disabled, of a tar archive with config.json and rootfs/. Kinds:
// InvalidArgument, Conflict.
func (m *Manager) Create(ctx context.Context, name string, r io.Reader) error {
	if ref, err := reference.ParseNormalizedNamed(name); err == nil {
		if _, ok := ref.(reference.Canonical); ok {
			return invalidf("canonical references are not permitted")
		}
	}
	name, done, err := m.reserve(name)
	if err != nil {
		return err
	}
	defer done()
	dir, err := os.MkdirTemp(m.cfg.Dir, newPrefix)
	if err != nil {
		return err
	}
	plain, _, err := layer.Decompress(ctx, r, math.MaxInt64)
	if err != nil {
		m.discard(dir)
		return invalidf("failed to read from tar: %s", err)
	}
	defer plain.Close()
	rec, err := m.pack(ctx, filepath.Join(dir, "rootfs"), plain)
	if err != nil {
		m.discard(dir)
		return err
	}
	rec.Plugin.Name, rec.Plugin.PluginReference = name, name
	e, err := m.add(rec, dir)
	if err == nil {
		m.tell(apievents.ActionCreate, e)
	}
	return err
}

// pack unpacks the root file system of an archive and keeps it as a layer, with
// configuration and manifest.
func (m *Manager) pack(ctx context.Context, root string, r io.Reader) (rec record, err error) {
	blob, err := m.blobs.writer()
	if err != nil {
		return rec, err
	}
	defer blob.discard()
	z := gzip.NewWriter(blob)
	diff := digest.SHA256.Digester()
	pr, pw := io.Pipe()
	var raw []byte
	split := make(chan error, 1)
	go func() {
		var err error
		raw, err = splitArchive(r, io.MultiWriter(pw, z, diff.Hash()))
		pw.CloseWithError(err)
		split <- err
	}()
	err = unpack(ctx, root, pr)
	if err == nil {
		_, err = io.Copy(io.Discard, pr) // the end of the archive
	}
	pr.CloseWithError(err) // ends the other side, if it has not
	if other := <-split; other != nil && (err == nil || !errors.Is(err, other)) {
		err = other
	}
	if err != nil {
		return rec, err
	}
	if raw == nil {
		return rec, invalidf("config not found")
	}
	if err := z.Close(); err != nil {
		return rec, err
	}
	packed, err := blob.commit("")
	if err != nil {
		return rec, err
	}
	return m.compose(raw, packed, diff.Digest())
}

// compose makes configuration and manifest of a plugin of one layer.
func (m *Manager) compose(raw []byte, packed, diff digest.Digest) (rec record, err error) {
	var c apiplugin.Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return rec, invalidf("failed to parse config: %s", err)
	}
	if err := checkConfig(&c); err != nil {
		return rec, err
	}
	c.Rootfs = &apiplugin.RootFS{Type: "layers", DiffIds: []string{diff.String()}}
	if raw, err = json.Marshal(c); err != nil {
		return rec, err
	}
	size, _ := m.blobs.has(packed)
	man := manifest{SchemaVersion: 2, MediaType: manifestType, Layers: []ocispec.Descriptor{{MediaType: layerType, Digest: packed, Size: size}}}
	man.Config = ocispec.Descriptor{MediaType: configType, Size: int64(len(raw))}
	if man.Config.Digest, _, err = m.blobs.put(bytes.NewReader(raw), "", maxConfig); err != nil {
		return rec, err
	}
	if raw, err = json.Marshal(man); err != nil {
		return rec, err
	}
	rec = record{Plugin: apiplugin.Plugin{Config: c}, Config: man.Config.Digest, Blobs: []digest.Digest{packed}, Rootfs: "rootfs"}
	rec.Manifest, _, err = m.blobs.put(bytes.NewReader(raw), "", maxConfig)
	return rec, err
}

// splitArchive writes what an archive has in rootfs/ as an archive of its own, and
// gives its config.json; nil: it has none.
func splitArchive(r io.Reader, w io.Writer) (config []byte, err error) {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	found := false
	for {
		hdr, err := in.Next()
		if err == io.EOF && !found {
			return nil, invalidf("no rootfs found")
		}
		if err == io.EOF {
			return config, out.Close()
		}
		if err != nil {
			return nil, invalidf("failed to read from tar: %s", err)
		}
		name := strings.TrimPrefix(path.Clean(hdr.Name), "/")
		switch rest, ok := strings.CutPrefix(name, "rootfs/"); {
		case name == "config.json":
			if config, err = io.ReadAll(io.LimitReader(in, maxConfig+1)); err != nil {
				return nil, invalidf("failed to read config.json: %s", err)
			}
			if len(config) > maxConfig {
				return nil, invalidf("config.json is larger than %d bytes", maxConfig)
			}
		case name == "rootfs":
			found = true
		case ok:
			found = true
			hdr.Name = rest
			if hdr.Typeflag == tar.TypeLink {
				hdr.Linkname = strings.TrimPrefix(strings.TrimPrefix(path.Clean(hdr.Linkname), "/"), "rootfs/")
			}
			hdr.Format = tar.FormatUnknown
			if err := out.WriteHeader(hdr); err != nil {
				return nil, err
			}
			if _, err := io.Copy(out, in); err != nil {
				return nil, invalidf("failed to read from tar: %s", err)
			}
		}
	}
}
