package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxSearch bounds the bytes of a search's answer.
const maxSearch = 8 << 20

// Search asks Docker Hub, or the registry that term begins with, for
// repositories by a word. Kind: InvalidArgument.
func (c *Client) Search(ctx context.Context, term string, limit int, login registry.AuthConfig) ([]registry.SearchResult, error) {
	if strings.Contains(term, "://") {
		return nil, fmt.Errorf("invalid repository name: repository name (%s) should not have a scheme: %w", term, errdefs.ErrInvalidArgument)
	}
	index, word := hubIndex, term
	if first, rest, ok := strings.Cut(term, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		index, word = first, rest
	}
	if index == hubName {
		index = hubIndex
	}
	if index == hubIndex {
		word = strings.TrimPrefix(word, "library/")
	}
	set := c.now.Load()
	e, err := set.endpoint(ctx, url.URL{Scheme: "https", Host: index}, login)
	var unreachable *url.Error
	if errors.As(err, &unreachable) && set.mayBeInsecure(index) && ctx.Err() == nil {
		e, err = set.endpoint(ctx, url.URL{Scheme: "http", Host: index}, login)
	}
	if err != nil {
		return nil, err
	}
	defer e.http.CloseIdleConnections()
	header := http.Header{"X-Docker-Token": {"true"}}
	if login.Username != "" {
		req := http.Request{Header: header}
		req.SetBasicAuth(login.Username, login.Password)
	}
	q := url.Values{"q": {word}, "n": {strconv.Itoa(limit)}}
	res, err := e.do(ctx, call{method: http.MethodGet, path: "/v1/search?" + q.Encode(), header: header})
	var refused *Refusal
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("unexpected status code %d: %w", refused.Status, errdefs.ErrUnknown)
	}
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var found registry.SearchResults
	if err := json.NewDecoder(io.LimitReader(res.Body, maxSearch)).Decode(&found); err != nil {
		return nil, fmt.Errorf("error decoding registry search results: %w", err)
	}
	return found.Results, nil
}

// Distribution tells what the repository has under a tag or digest: its
// descriptor and the platforms it is for. Kinds: as Resolve.
func (r *Repository) Distribution(ctx context.Context, ref string) (registry.DistributionInspect, error) {
	var out registry.DistributionInspect
	d, data, err := r.Manifest(ctx, ref)
	if err != nil {
		return out, err
	}
	var doc struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Config    *ocispec.Descriptor  `json:"config"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return out, fmt.Errorf("manifest %s: %s: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if doc.MediaType != "" {
		d.MediaType = doc.MediaType
	}
	out.Descriptor = d
	switch {
	case doc.SchemaVersion == 1:
		return out, fmt.Errorf("manifest %s: schema version 1 is not supported any more: %w", d.Digest, errdefs.ErrInvalidArgument)
	case doc.Manifests != nil:
		for _, m := range doc.Manifests {
			if m.Platform != nil {
				out.Platforms = append(out.Platforms, *m.Platform)
			}
		}
	case doc.Config != nil:
		res, err := r.each(r.scope(ctx, "pull"), call{method: http.MethodGet, path: r.path + "/blobs/" + doc.Config.Digest.String()})
		if err != nil {
			return out, explain(r.name, err)
		}
		defer res.Body.Close()
		config, err := io.ReadAll(io.LimitReader(res.Body, MaxManifest+1))
		if err != nil {
			return out, err
		}
		if doc.Config.Digest.Validate() != nil || doc.Config.Digest.Algorithm().FromBytes(config) != doc.Config.Digest {
			return out, fmt.Errorf("image config verification failed for digest %s: %w", doc.Config.Digest, errdefs.ErrDataLoss)
		}
		var p ocispec.Platform
		if err := json.Unmarshal(config, &p); err != nil {
			return out, fmt.Errorf("config %s: %s: %w", doc.Config.Digest, err, errdefs.ErrInvalidArgument)
		}
		if p.OS != "" || p.Architecture != "" {
			out.Platforms = append(out.Platforms, p)
		}
	}
	return out, nil
}

// TagOrDigest is what a name asks a registry for; latest without either.
func TagOrDigest(ref reference.Named) string {
	if d, ok := ref.(reference.Digested); ok {
		return d.Digest().String()
	}
	if t, ok := ref.(reference.Tagged); ok {
		return t.Tag()
	}
	return "latest"
}
