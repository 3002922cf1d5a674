package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client/ociindex"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/util/gitutil"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
)

// remote tells whether a context is a URL, which the engine fetches itself.
func remote(s string) bool {
	for _, scheme := range []string{"http://", "https://", "git://", "ssh://", "github.com/", "git@"} {
		if strings.HasPrefix(s, scheme) {
			return true
		}
	}
	return gitutil.IsGitTransport(s)
}

// context decides what the build's context is, and where its Dockerfile. It
// blocks for a Dockerfile that must be fetched.
func (b *build) context(ctx context.Context) error {
	p := b.plan
	if u := p.Dockerfile; strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://") {
		if err := b.fetchDockerfile(ctx); err != nil {
			return fmt.Errorf("the Dockerfile %s: %w", u, err)
		}
	}
	switch {
	case p.Context == "-":
		return b.fromStdin()
	case remote(p.Context):
		return b.fromURL()
	}
	info, err := os.Stat(p.Context)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("unable to prepare context: path %q not found", p.Context)
	case err != nil:
		return fmt.Errorf("unable to prepare context: %w", err)
	case !info.IsDir():
		return fmt.Errorf("unable to prepare context: path %q is not a directory", p.Context)
	}
	if err := b.mount("context", p.Context); err != nil {
		return err
	}
	b.solve.SharedKey = sharedKey(p.Context)
	switch p.Dockerfile {
	case "-":
		return b.dockerfileFrom(b.readStdin())
	case "":
		return b.dockerfileAt(filepath.Join(p.Context, "Dockerfile"))
	}
	return b.dockerfileAt(p.Dockerfile)
}

// mount lets the engine read a directory of ours.
func (b *build) mount(name, dir string) error {
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		return fmt.Errorf("unable to prepare context: %w", err)
	}
	if b.solve.LocalMounts == nil {
		b.solve.LocalMounts = map[string]fsutil.FS{}
	}
	b.solve.LocalMounts[name] = tree
	return nil
}

// sharedKey names a directory of this user on this machine, so that the engine
// asks only for what has changed in it since the last build.
func sharedKey(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	host, _ := os.Hostname() // without it the name is a little less distinct
	sum := sha256.Sum256(fmt.Appendf(nil, "%s:%d:%s", host, os.Getuid(), dir))
	return hex.EncodeToString(sum[:16])
}

// dockerfileAt takes the Dockerfile from where it is. The engine reads
// <Dockerfile>.dockerignore beside it.
func (b *build) dockerfileAt(path string) error {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("unable to prepare context: unable to evaluate symlinks in Dockerfile path: %w", err)
	}
	b.solve.FrontendAttrs["filename"] = filepath.Base(path)
	return b.mount("dockerfile", dir)
}

// maxDockerfile is the size of a Dockerfile, in bytes, that is fetched.
const maxDockerfile = 4 << 20

// fetchDockerfile puts the Dockerfile that a URL names into a file of ours.
func (b *build) fetchDockerfile(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.plan.Dockerfile, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers %s", res.Status)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxDockerfile+1))
	if err != nil {
		return err
	}
	if len(text) > maxDockerfile {
		return fmt.Errorf("it is larger than %d MiB", maxDockerfile>>20)
	}
	dir, err := b.tempDir()
	if err != nil {
		return err
	}
	b.fetched, b.plan.Dockerfile = true, filepath.Join(dir, "Dockerfile")
	return os.WriteFile(b.plan.Dockerfile, text, 0o600)
}

// dockerfileFrom takes the Dockerfile's text.
func (b *build) dockerfileFrom(text []byte, err error) error {
	if err != nil {
		return fmt.Errorf("failed to read dockerfile from stdin: %w", err)
	}
	dir, err := b.tempDir()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600); err != nil {
		return err
	}
	return b.dockerfileAt(filepath.Join(dir, "Dockerfile"))
}

func (b *build) tempDir() (string, error) {
	dir, err := os.MkdirTemp("", "escale-build-")
	if err == nil {
		b.undo = append(b.undo, func() { _ = os.RemoveAll(dir) })
	}
	return dir, err
}

func (b *build) readStdin() ([]byte, error) {
	b.stdin = true
	return io.ReadAll(b.streams.In)
}

// fromStdin takes a packed context, or a Dockerfile, from the input.
func (b *build) fromStdin() error {
	if b.plan.Dockerfile == "-" {
		return errors.New("invalid argument: can't use stdin for both build context and dockerfile")
	}
	b.stdin = true
	in := bufio.NewReader(b.streams.In)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("failed to peek context header from STDIN: %w", err)
	}
	if archive(head) {
		up := uploadprovider.New()
		b.solve.FrontendAttrs["context"] = up.Add(io.NopCloser(in))
		b.solve.Session = append(b.solve.Session, up)
		return b.dockerfileBeside()
	}
	if b.plan.Dockerfile != "" {
		return errors.New("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
	}
	if len(head) == 0 {
		return errors.New("failed to read dockerfile from stdin: it is empty")
	}
	empty, err := b.tempDir()
	if err == nil {
		err = b.mount("context", empty)
	}
	if err != nil {
		return err
	}
	return b.dockerfileFrom(io.ReadAll(in))
}

// archive tells whether what begins so is an archive, packed or not.
func archive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}

// fromURL leaves the context to the engine.
func (b *build) fromURL() error {
	b.solve.FrontendAttrs["context"] = b.plan.Context
	switch b.plan.Dockerfile {
	case "-":
		b.solve.FrontendAttrs["dockerfilekey"] = "dockerfile"
		return b.dockerfileFrom(b.readStdin())
	}
	return b.dockerfileBeside()
}

// dockerfileBeside takes the Dockerfile for a context that the engine reads: one
// that was fetched, else one that is in the context.
func (b *build) dockerfileBeside() error {
	switch {
	case b.fetched:
		b.solve.FrontendAttrs["dockerfilekey"] = "dockerfile"
		return b.dockerfileAt(b.plan.Dockerfile)
	case b.plan.Dockerfile != "":
		b.solve.FrontendAttrs["filename"] = b.plan.Dockerfile
	}
	return nil
}

// contexts are those with names, by --build-context.
func (b *build) contexts() error {
	for _, s := range b.plan.Contexts {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || value == "" {
			return fmt.Errorf("invalid context value: %s, expected key=value", s)
		}
		attr := "context:" + name
		if u, err := url.Parse(value); remote(value) || err == nil && (u.Scheme == "docker-image" || u.Scheme == "target") {
			b.solve.FrontendAttrs[attr] = value
			continue
		}
		if path, ok := strings.CutPrefix(value, "oci-layout://"); ok {
			if err := b.layout(name, path); err != nil {
				return err
			}
			continue
		}
		info, err := os.Stat(value)
		if err != nil || !info.IsDir() {
			return fmt.Errorf("failed to get build context %s: %q is no directory", name, value)
		}
		if err := b.mount(name, value); err != nil {
			return err
		}
		b.solve.FrontendAttrs[attr] = "local:" + name
	}
	return nil
}

// layout serves an image of an OCI layout: PATH[:TAG|@DIGEST].
func (b *build) layout(name, path string) error {
	path, pinned, _ := strings.Cut(path, "@")
	tag := "latest"
	if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
		path, tag = path[:i], path[i+1:]
	}
	if pinned == "" {
		desc, err := ociindex.NewStoreIndex(path).Get(tag)
		if err == nil && desc == nil {
			err = fmt.Errorf("there is no %q in it", tag)
		}
		if err != nil {
			return fmt.Errorf("oci-layout %s: %w", path, err)
		}
		pinned = desc.Digest.String()
	}
	if err := digest.Digest(pinned).Validate(); err != nil {
		return fmt.Errorf("oci-layout %s: %w", path, err)
	}
	store, err := contentlocal.NewStore(path)
	if err != nil {
		return fmt.Errorf("oci-layout %s: %w", path, err)
	}
	id := fmt.Sprintf("layout%d", len(b.solve.OCIStores))
	if b.solve.OCIStores == nil {
		b.solve.OCIStores = map[string]content.Store{}
	}
	b.solve.OCIStores[id] = store
	b.solve.FrontendAttrs["context:"+name] = "oci-layout://" + id + "@" + pinned
	return nil
}
