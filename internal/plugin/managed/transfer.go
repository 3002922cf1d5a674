package managed

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"escale.dev/escale/internal/image/layer"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	apievents "github.com/moby/moby/api/types/events"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	configType   = "application/vnd.docker.plugin.v1+json"
	layerType    = "application/vnd.docker.image.rootfs.diff.tar.gzip"

	maxConfig = 8 << 20 // bytes of a configuration
)

// Progress is told how a transfer goes on, by a blob's short digest, or "" of the whole.
type Progress func(id, status string, current, total int64)

// Transfer says what is brought from a registry.
type Transfer struct {
	Remote     reference.Named // with a tag or digest
	Auth       registry.AuthConfig
	Privileges apiplugin.Privileges // that the user has granted
	Told       Progress
}

// manifest is a plugin's in a registry, in Docker's form: registries take no other.
type manifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType,omitempty"`
	Config        ocispec.Descriptor   `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
}

// tagOf is what a name stands for in a repository.
func tagOf(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Digested:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return "latest"
}

// head fetches the manifest of a plugin and its configuration, which it keeps.
func (m *Manager) head(ctx context.Context, repo Repository, ref reference.Named) (man manifest, d ocispec.Descriptor, c apiplugin.Config, err error) {
	d, raw, err := repo.Manifest(ctx, tagOf(ref))
	if err != nil {
		return man, d, c, err
	}
	if err := json.Unmarshal(raw, &man); err != nil {
		return man, d, c, invalidf("manifest of %s: %s", reference.FamiliarString(ref), err)
	}
	if man.Config.MediaType != configType {
		return man, d, c, invalidf("did not find plugin config for specified reference %s", ref)
	}
	if d.Digest, _, err = m.blobs.put(bytes.NewReader(raw), "", int64(len(raw))); err != nil {
		return man, d, c, err
	}
	if err := m.fetch(ctx, repo, man.Config, maxConfig); err != nil {
		return man, d, c, err
	}
	r, err := m.blobs.open(man.Config.Digest)
	if err != nil {
		return man, d, c, err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return man, d, c, invalidf("failed to parse config: %s", err)
	}
	return man, d, c, checkConfig(&c)
}

// fetch brings a blob, unless it is there.
func (m *Manager) fetch(ctx context.Context, repo Repository, d ocispec.Descriptor, most int64) error {
	if err := d.Digest.Validate(); err != nil {
		return invalidf("digest %q: %s", d.Digest, err)
	}
	if _, ok := m.blobs.has(d.Digest); ok {
		return nil
	}
	r, err := repo.Blob(ctx, d.Digest, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	_, _, err = m.blobs.put(r, d.Digest, most)
	return err
}

// Privileges tells what a plugin in a registry needs, to be granted by the user.
func (m *Manager) Privileges(ctx context.Context, t Transfer) (apiplugin.Privileges, error) {
	done := m.make("privileges " + rand.Text())
	defer done()
	repo, err := m.eng.Open(ctx, t.Remote, t.Auth, false)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	_, _, c, err := m.head(ctx, repo, t.Remote)
	if err != nil {
		return nil, err
	}
	return privileges(&c), nil
}

// make notes that something is being made whose blobs nobody has yet.
func (m *Manager) make(what string) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making[what] = true
	return func() {
		m.mu.Lock()
		delete(m.making, what)
		m.mu.Unlock()
		m.collect()
	}
}

// reserve takes a name for a plugin that is to be. Kinds: Conflict, InvalidArgument.
func (m *Manager) reserve(name string) (full string, done func(), err error) {
	if full, err = fullName(name); err != nil {
		return "", nil, invalidf("failed to parse %q: %s", name, err)
	}
	m.mu.Lock()
	taken := m.making[full]
	for _, e := range m.byID {
		taken = taken || e.view().Name == full
	}
	m.mu.Unlock()
	if taken {
		return "", nil, conflictf("plugin %s already exists", full)
	}
	return full, m.make(full), nil
}

// Pull installs a plugin, disabled, under a name. Kinds: Conflict for a name that is taken,
// InvalidArgument for privileges that are not those it needs.
func (m *Manager) Pull(ctx context.Context, name string, t Transfer) error {
	name, done, err := m.reserve(name)
	if err != nil {
		return err
	}
	defer done()
	rec, dir, err := m.bring(ctx, t)
	if err != nil {
		return err
	}
	m.tellPull(name, t.Remote)
	rec.Plugin.Name, rec.Plugin.PluginReference = name, t.Remote.String()
	_, err = m.add(rec, dir)
	return err
}

// bring fetches a plugin and unpacks it into a directory of its own.
func (m *Manager) bring(ctx context.Context, t Transfer) (rec record, dir string, err error) {
	repo, err := m.eng.Open(ctx, t.Remote, t.Auth, false)
	if err != nil {
		return rec, "", err
	}
	defer repo.Close()
	man, d, c, err := m.head(ctx, repo, t.Remote)
	if err != nil {
		return rec, "", err
	}
	if err := granted(privileges(&c), t.Privileges); err != nil {
		return rec, "", err
	}
	t.Told("", "Pulling from "+reference.Path(t.Remote), 0, 0)
	if dir, err = os.MkdirTemp(m.cfg.Dir, newPrefix); err != nil {
		return rec, "", err
	}
	rec = record{Plugin: apiplugin.Plugin{Config: c}, Config: man.Config.Digest, Manifest: d.Digest, Rootfs: "rootfs"}
	for _, l := range man.Layers {
		if err = m.layer(ctx, repo, l, filepath.Join(dir, rec.Rootfs), t.Told); err != nil {
			m.discard(dir)
			return rec, "", err
		}
		rec.Blobs = append(rec.Blobs, l.Digest)
	}
	t.Told("", "Digest: "+d.Digest.String(), 0, 0)
	return rec, dir, nil
}

// layer fetches a layer and applies it to a directory.
func (m *Manager) layer(ctx context.Context, repo Repository, l ocispec.Descriptor, root string, told Progress) error {
	id := short(l.Digest)
	told(id, "Downloading", 0, l.Size)
	if err := m.fetch(ctx, repo, l, max(l.Size, 0)); err != nil {
		return err
	}
	told(id, "Extracting", l.Size, l.Size)
	r, err := m.blobs.open(l.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := unpack(ctx, root, r); err != nil {
		return fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	told(id, "Pull complete", l.Size, l.Size)
	return nil
}

func short(d digest.Digest) string {
	if e := d.Encoded(); len(e) > 12 {
		return e[:12]
	}
	return d.Encoded()
}

// unpack applies a layer, packed or not, to a directory that nobody else has.
func unpack(ctx context.Context, root string, r io.Reader) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	plain, _, err := layer.Decompress(ctx, r, math.MaxInt64)
	if err != nil {
		return invalidf("%s", err)
	}
	defer plain.Close()
	_, err = archive.Apply(ctx, root, plain)
	return err
}

// add makes what is unpacked in dir a plugin.
func (m *Manager) add(rec record, dir string) (*entry, error) {
	var raw [32]byte
	rand.Read(raw[:])
	rec.Plugin.ID = hex.EncodeToString(raw[:])
	rec.Plugin.Settings = settingsOf(&rec.Plugin.Config)
	final := filepath.Join(m.cfg.Dir, rec.Plugin.ID)
	err := save(dir, &rec)
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err == nil {
		err = os.Rename(dir, final)
	}
	if err != nil {
		m.discard(dir)
		return nil, err
	}
	e := &entry{dir: final, rec: rec}
	m.mu.Lock()
	m.byID[rec.Plugin.ID] = e
	m.mu.Unlock()
	return e, nil
}

// Upgrade replaces a plugin that is disabled by another version; settings stay. Kinds:
// NotFound, Conflict, and those of Pull.
func (m *Manager) Upgrade(ctx context.Context, ref string, t Transfer) error {
	e, err := m.hold(ref)
	if err != nil {
		return err
	}
	defer e.op.Unlock()
	if v := e.view(); v.Enabled {
		return conflictf("plugin must be disabled before upgrading: plugin %s is enabled", v.Name)
	}
	done := m.make("upgrade " + e.dir)
	defer done()
	rec, dir, err := m.bring(ctx, t)
	if err != nil {
		return err
	}
	defer m.discard(dir)
	m.tellPull(ref, t.Remote)
	e.mu.Lock()
	old := e.rec.Rootfs
	fresh := fmt.Sprintf("rootfs-%d", e.rec.Generation+1)
	e.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(e.dir, fresh)); err != nil { // of an upgrade that failed
		return err
	}
	if fresh == old {
		fresh += "b"
	}
	if err := os.Rename(filepath.Join(dir, rec.Rootfs), filepath.Join(e.dir, fresh)); err != nil {
		return err
	}
	if err := m.update(e, func(r *record) {
		r.Plugin.Config, r.Plugin.PluginReference = rec.Plugin.Config, t.Remote.String()
		r.Config, r.Manifest, r.Blobs, r.Rootfs = rec.Config, rec.Manifest, rec.Blobs, fresh
	}); err != nil {
		return errors.Join(err, os.RemoveAll(filepath.Join(e.dir, fresh)))
	}
	m.discard(filepath.Join(e.dir, old))
	return nil
}

// tellPull publishes that a plugin came from a registry.
func (m *Manager) tellPull(name string, remote reference.Named) {
	m.tell(apievents.ActionPull, &entry{rec: record{Plugin: apiplugin.Plugin{ID: reference.FamiliarString(remote), Name: name}}})
}

// Push sends a plugin to the registry that its name tells. Kind: NotFound.
func (m *Manager) Push(ctx context.Context, ref string, auth registry.AuthConfig, told Progress) error {
	e, err := m.find(ref)
	if err != nil {
		return err
	}
	e.mu.Lock()
	rec := e.rec
	e.mu.Unlock()
	name, err := reference.ParseNormalizedNamed(rec.Plugin.Name)
	if err != nil {
		return err
	}
	repo, err := m.eng.Open(ctx, name, auth, true)
	if err != nil {
		return err
	}
	defer repo.Close()
	told("", "The push refers to repository ["+reference.FamiliarName(name)+"]", 0, 0)
	for _, d := range append([]digest.Digest{rec.Config}, rec.Blobs...) {
		size, ok := m.blobs.has(d)
		if !ok {
			return fmt.Errorf("plugin %s: blob %s: %w", rec.Plugin.Name, d, errdefs.ErrNotFound)
		}
		told(short(d), "Pushing", 0, size)
		sent, err := repo.Push(ctx, ocispec.Descriptor{Digest: d, Size: size}, nil, func() (io.ReadCloser, error) { return m.blobs.open(d) })
		if err != nil {
			return fmt.Errorf("error pushing plugin: %w", err)
		}
		status := "Pushed"
		if sent.Existed {
			status = "Layer already exists"
		}
		told(short(d), status, size, size)
	}
	raw, err := os.ReadFile(m.blobs.path(rec.Manifest))
	if err != nil {
		return err
	}
	d := ocispec.Descriptor{MediaType: manifestType, Digest: rec.Manifest, Size: int64(len(raw))}
	var man manifest
	if json.Unmarshal(raw, &man) == nil && man.MediaType != "" {
		d.MediaType = man.MediaType
	}
	if err := repo.PushManifest(ctx, tagOf(name), d, raw); err != nil {
		return fmt.Errorf("error pushing plugin: %w", err)
	}
	told("", fmt.Sprintf("%s: digest: %s size: %d", tagOf(name), d.Digest, d.Size), 0, 0)
	return nil
}
