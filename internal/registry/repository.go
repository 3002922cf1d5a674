package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifest bounds the bytes of a manifest or index.
const MaxManifest = 4 << 20

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	schema1        = "application/vnd.docker.distribution.manifest.v1+json"
	schema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// accepted are the kinds of manifest that are asked for.
var accepted = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerManifest, dockerList}

// Repository is a repository as one user reaches it. Safe for concurrent use.
type Repository struct {
	name  reference.Named
	path  string
	hosts []*endpoint // mirrors first
}

// Open finds a way to a repository: a mirror, TLS, or none where that is
// allowed. It blocks for the registry's first answer. push leaves mirrors out.
func (c *Client) Open(ctx context.Context, name reference.Named, login registry.AuthConfig, push bool) (*Repository, error) {
	set := c.now.Load()
	r := &Repository{name: name, path: reference.Path(name)}
	if reference.Domain(name) == hubName && !push {
		for _, m := range set.mirrors {
			if e, err := set.endpoint(ctx, *m, registry.AuthConfig{}); err == nil {
				r.hosts = append(r.hosts, e)
			}
		}
	}
	h := host(reference.Domain(name))
	e, err := set.endpoint(ctx, url.URL{Scheme: "https", Host: h}, login)
	var unreachable *url.Error
	if errors.As(err, &unreachable) && set.mayBeInsecure(h) && ctx.Err() == nil {
		e, err = set.endpoint(ctx, url.URL{Scheme: "http", Host: h}, login)
	}
	switch {
	case err == nil:
		r.hosts = append(r.hosts, e)
	case len(r.hosts) == 0:
		return nil, err
	}
	return r, nil
}

// Close lets go of connections.
func (r *Repository) Close() {
	for _, e := range r.hosts {
		e.http.CloseIdleConnections()
	}
}

// endpoint connects to a host, whose first answer it waits for.
func (s *settings) endpoint(ctx context.Context, base url.URL, login registry.AuthConfig) (*endpoint, error) {
	insecure := s.mayBeInsecure(base.Host)
	conf, err := s.tlsConfig(base.Host, insecure)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", base.Host, err)
	}
	plain := base.Scheme == "http"
	client := &http.Client{Transport: guard{plain || insecure, &http.Transport{
		Proxy: s.proxyOf, TLSClientConfig: conf, TLSHandshakeTimeout: timeout, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
		DialContext: (&net.Dialer{Timeout: timeout}).DialContext,
	}}}
	e := &endpoint{set: s, base: base, http: client, auth: &renewing{fresh: func() docker.Authorizer {
		return authorizer(&http.Client{Transport: brief{client.Transport}}, s.UserAgent, base.Host, login)
	}}}
	res, err := e.send(ctx, call{method: http.MethodGet})
	if err != nil {
		client.CloseIdleConnections()
		var status *url.Error
		if errors.As(err, &status) {
			return nil, &worded{status.Error(), errors.Join(err, kindOf(err))}
		}
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusUnauthorized {
		// What it wants to know is known from now on; whether we have that shows
		// when something is asked for.
		_ = e.auth.AddResponses(ctx, []*http.Response{res})
	}
	return e, nil
}

func kindOf(err error) error {
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	return errdefs.ErrUnknown
}

// guard lets no password go out in the clear.
type guard struct {
	plain bool // it may
	*http.Transport
}

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if !g.plain && req.URL.Scheme != "https" && (req.Header.Get("Authorization") != "" || req.Method == http.MethodPost) {
		return nil, fmt.Errorf("the registry asks to send the password to %s, which has no TLS: %w", req.URL.Host, errdefs.ErrInvalidArgument)
	}
	return g.Transport.RoundTrip(req)
}

// bearer is a token that a client has got by itself.
type bearer string

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

func (bearer) AddResponses(context.Context, []*http.Response) error { return errdefs.ErrNotImplemented }

func authorizer(client *http.Client, agent, host string, login registry.AuthConfig) docker.Authorizer {
	if login.RegistryToken != "" {
		return bearer(login.RegistryToken)
	}
	if login.Auth != "" && login.Username == "" {
		if raw, err := base64.StdEncoding.DecodeString(login.Auth); err == nil {
			login.Username, login.Password, _ = strings.Cut(string(raw), ":")
		}
	}
	return docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthHeader(http.Header{"User-Agent": {agent}}),
		docker.WithAuthCreds(func(asked string) (string, string, error) {
			switch {
			case asked != host:
				return "", "", nil
			case login.IdentityToken != "":
				return "", login.IdentityToken, nil
			}
			return login.Username, login.Password, nil
		}))
}

// scope is the right that a request needs.
func (r *Repository) scope(ctx context.Context, rights string) context.Context {
	return docker.WithScope(ctx, "repository:"+r.path+":"+rights)
}

// each asks the hosts in turn, until one answers.
func (r *Repository) each(ctx context.Context, c call) (*http.Response, error) {
	var last error
	for i, e := range r.hosts {
		try := c
		try.once = c.once || i < len(r.hosts)-1
		res, err := e.do(ctx, try)
		if err == nil {
			return res, nil
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// Resolve tells what a tag or digest stands for. Kinds: NotFound,
// Unauthorized, PermissionDenied, Unavailable, in Docker's words.
func (r *Repository) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	c := call{method: http.MethodHead, path: r.path + "/manifests/" + ref, header: http.Header{"Accept": accepted}}
	res, err := r.each(r.scope(ctx, "pull"), c)
	if err == nil {
		defer res.Body.Close()
		d := ocispec.Descriptor{MediaType: mediaType(res), Digest: digest.Digest(res.Header.Get("Docker-Content-Digest")), Size: res.ContentLength}
		if d.Digest.Validate() == nil && d.Size >= 0 {
			return d, nil
		}
	}
	var refused *Refusal
	if err != nil && !errors.As(err, &refused) {
		return ocispec.Descriptor{}, err
	}
	// Why it was refused stands only in the answer to a GET.
	d, _, err := r.Manifest(ctx, ref)
	return d, err
}

func mediaType(res *http.Response) string {
	t, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// Manifest fetches a manifest or index by tag or digest, and verifies it. Kinds:
// as Resolve; DataLoss for one that is not what its digest says.
func (r *Repository) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	var none ocispec.Descriptor
	res, err := r.each(r.scope(ctx, "pull"), call{method: http.MethodGet, path: r.path + "/manifests/" + ref, header: http.Header{"Accept": accepted}})
	if err != nil {
		return none, nil, explain(r.named(ref), err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, MaxManifest+1))
	if err != nil {
		return none, nil, fmt.Errorf("manifest %s: %w", ref, err)
	}
	if len(data) > MaxManifest {
		return none, nil, fmt.Errorf("manifest %s: larger than %d bytes: %w", ref, MaxManifest, errdefs.ErrInvalidArgument)
	}
	d := ocispec.Descriptor{MediaType: mediaType(res), Digest: digest.FromBytes(data), Size: int64(len(data))}
	want := digest.Digest(ref)
	if !strings.Contains(ref, ":") {
		want = digest.Digest(res.Header.Get("Docker-Content-Digest"))
	}
	if want != "" {
		if err := want.Validate(); err != nil {
			return none, nil, fmt.Errorf("manifest %s: digest %q: %w", ref, want, err)
		}
		if got := want.Algorithm().FromBytes(data); got != want {
			return none, nil, fmt.Errorf("manifest verification failed for digest %s: got %s: %w", want, got, errdefs.ErrDataLoss)
		}
		d.Digest = want
	}
	return d, data, nil
}

// named is the full name of a tag or digest, for what is said of it.
func (r *Repository) named(ref string) reference.Named {
	if d, err := digest.Parse(ref); err == nil {
		if n, err := reference.WithDigest(reference.TrimNamed(r.name), d); err == nil {
			return n
		}
	} else if n, err := reference.WithTag(reference.TrimNamed(r.name), ref); err == nil {
		return n
	}
	return r.name
}

// Blob opens a blob at an offset. Reading it is bounded by silence only; that it
// is what its digest says is for the reader to see to. One attempt.
func (r *Repository) Blob(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	c := call{method: http.MethodGet, path: r.path + "/blobs/" + d.String(), header: http.Header{"Accept-Encoding": {"identity"}}, once: true}
	if offset > 0 {
		c.header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	res, err := r.each(r.scope(ctx, "pull"), c)
	if err != nil {
		return nil, err
	}
	if offset > 0 && res.StatusCode != http.StatusPartialContent {
		// It knows no ranges: what is known already is passed over.
		if _, err := io.CopyN(io.Discard, res.Body, offset); err != nil {
			res.Body.Close()
			return nil, err
		}
	}
	return res.Body, nil
}

// Passing tells whether another attempt may go better after err.
func (r *Repository) Passing(err error) bool { return passing(err) }

// maxTags bounds the tags of a repository.
const maxTags = 100_000

// Tags lists the tags of the repository.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	var out []string
	next := r.path + "/tags/list"
	for next != "" {
		res, err := r.each(r.scope(ctx, "pull"), call{method: http.MethodGet, path: next})
		if err != nil {
			return nil, explain(r.name, err)
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		err = json.NewDecoder(io.LimitReader(res.Body, MaxManifest)).Decode(&page)
		res.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("tags of %s: %w", r.name, err)
		}
		if out = append(out, page.Tags...); len(out) > maxTags {
			return nil, fmt.Errorf("tags of %s: more than %d: %w", r.name, maxTags, errdefs.ErrInvalidArgument)
		}
		last := next
		if next = nextPage(res); next == last || len(page.Tags) == 0 {
			break
		}
	}
	return out, nil
}

// nextPage reads the link to the next page (RFC 8288); "" if there is none. It
// stays on the same host.
func nextPage(res *http.Response) string {
	link := res.Header.Get("Link")
	from, rest, ok := strings.Cut(link, ">")
	if !ok || !strings.HasPrefix(from, "<") || !strings.Contains(rest, `rel="next"`) {
		return ""
	}
	u, err := res.Request.URL.Parse(from[1:])
	if err != nil || u.Host != res.Request.URL.Host {
		return ""
	}
	return u.RequestURI()
}
