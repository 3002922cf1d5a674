package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"escale.dev/escale/internal/image"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxMounts is how many repositories are asked whether they have a blob.
const maxMounts = 4

// Push sends a blob, unless the repository has it or can take it over from one
// of the repositories from. One attempt at sending; what is asked before has
// several.
func (r *Repository) Push(ctx context.Context, d ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (image.Sent, error) {
	sent, err := r.push(ctx, d, from[:min(len(from), maxMounts)], open)
	return sent, pushError(err)
}

func (r *Repository) push(ctx context.Context, d ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (image.Sent, error) {
	ctx = r.scope(ctx, "pull,push")
	e := r.hosts[len(r.hosts)-1]
	res, err := e.do(ctx, call{method: http.MethodHead, path: r.path + "/blobs/" + d.Digest.String()})
	if err == nil {
		return image.Sent{Existed: true}, res.Body.Close()
	}
	var refused *Refusal
	if !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
		return image.Sent{}, err
	}
	uploads := r.path + "/blobs/uploads/"
	for _, other := range from {
		q := url.Values{"mount": {d.Digest.String()}, "from": {other}}
		res, err := e.do(docker.ContextWithAppendPullRepositoryScope(ctx, other), call{method: http.MethodPost, path: uploads + "?" + q.Encode()})
		if err != nil {
			if ctx.Err() != nil {
				return image.Sent{}, err
			}
			continue // it may be another user's, or not there: the blob is sent
		}
		res.Body.Close()
		if res.StatusCode == http.StatusCreated {
			return image.Sent{Mounted: other}, nil
		}
		e.giveUp(ctx, res) // the upload that it began instead
	}
	res, err = e.do(ctx, call{method: http.MethodPost, path: uploads})
	if err != nil {
		return image.Sent{}, err
	}
	res.Body.Close()
	to, err := location(res, d.Digest)
	if err != nil {
		return image.Sent{}, err
	}
	put, err := e.do(ctx, call{method: http.MethodPut, path: to, body: open, size: d.Size, once: true, slow: true,
		header: http.Header{"Content-Type": {"application/octet-stream"}}})
	if err != nil {
		e.giveUp(ctx, res)
		return image.Sent{}, err
	}
	return image.Sent{}, put.Body.Close()
}

// location is where the registry wants a blob.
func location(res *http.Response, d digest.Digest) (string, error) {
	u, err := res.Request.URL.Parse(res.Header.Get("Location"))
	if err != nil || res.Header.Get("Location") == "" {
		return "", fmt.Errorf("registry %s: location %q for an upload: %w", res.Request.URL.Host, res.Header.Get("Location"), errdefs.ErrUnknown)
	}
	if d != "" {
		q := u.Query()
		q.Set("digest", d.String())
		u.RawQuery = q.Encode()
	}
	return u.String(), nil
}

// giveUp tells the registry that nothing comes for an upload that it began. A
// registry that does not listen throws it away in its own time.
func (e *endpoint) giveUp(ctx context.Context, res *http.Response) {
	at, err := location(res, "")
	if err != nil {
		return
	}
	// Detached: it is told also when the client is gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if res, err := e.do(ctx, call{method: http.MethodDelete, path: at, once: true}); err == nil {
		res.Body.Close()
	}
}

// PushManifest sends a manifest and lets ref, a tag or its digest, stand for it.
func (r *Repository) PushManifest(ctx context.Context, ref string, d ocispec.Descriptor, data []byte) error {
	e := r.hosts[len(r.hosts)-1]
	res, err := e.do(r.scope(ctx, "pull,push"), call{method: http.MethodPut, path: r.path + "/manifests/" + ref, body: bytesBody(data),
		size: int64(len(data)), slow: true, header: http.Header{"Content-Type": {d.MediaType}}})
	if err != nil {
		return pushError(err)
	}
	defer res.Body.Close()
	if got := digest.Digest(res.Header.Get("Docker-Content-Digest")); got != "" && got != d.Digest {
		return fmt.Errorf("manifest %s: the registry says it is %s: %w", d.Digest, got, errdefs.ErrDataLoss)
	}
	return nil
}

// pushError words what went wrong with a push as Docker does.
func pushError(err error) error {
	var missing *noLogin
	if errors.As(err, &missing) {
		return &worded{noCredentials, errdefs.ErrUnknown}
	}
	return err
}
