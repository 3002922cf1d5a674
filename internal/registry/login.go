package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

// Login checks credentials with the registry they are for. It blocks for the
// registry's answers, some seconds at most for each. token, when the registry
// gives one, serves instead of the password from then on. Kinds: Unauthorized,
// InvalidArgument.
func (c *Client) Login(ctx context.Context, a registry.AuthConfig) (token string, err error) {
	h := host(a.ServerAddress)
	if u, err := url.Parse("https://" + h + "/v2/"); err != nil || u.Host != h || h == "" {
		return "", fmt.Errorf("registry %q: not a host: %w", a.ServerAddress, errdefs.ErrInvalidArgument)
	}
	set := c.now.Load()
	insecure := set.mayBeInsecure(h)
	conf, err := set.tlsConfig(h, insecure)
	if err != nil {
		return "", fmt.Errorf("registry %s: %w", h, err)
	}
	tr := &http.Transport{
		Proxy: set.proxyOf, TLSClientConfig: conf, TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout,
		DialContext: (&net.Dialer{Timeout: timeout}).DialContext, ForceAttemptHTTP2: true,
	}
	defer tr.CloseIdleConnections()
	l := login{
		http: &http.Client{Transport: brief{tr}, Timeout: 2 * timeout}, header: http.Header{"User-Agent": {set.UserAgent}}, auth: a, host: h, plain: insecure,
	}
	l.http.CheckRedirect = l.keepTLS
	token, err = l.try(ctx, "https://"+h+"/v2/")
	var unreachable *url.Error
	if insecure && errors.As(err, &unreachable) && ctx.Err() == nil {
		// It may answer without TLS.
		token, plainErr := l.try(ctx, "http://"+h+"/v2/")
		if errors.Is(err, http.ErrSchemeMismatch) || !errors.As(plainErr, &unreachable) {
			return token, plainErr
		}
	}
	return token, err
}

// maxBrief bounds, in bytes, answers of which little is expected: to a login, and tokens.
const maxBrief = 1 << 20

// brief is a transport for such answers: longer ones break off with an error, so that they
// are not read into memory.
type brief struct{ http.RoundTripper }

func (b brief) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		res.Body = &briefBody{res.Body, req.URL.Host, maxBrief}
	}
	return res, err
}

type briefBody struct {
	io.ReadCloser
	host string
	left int
}

func (b *briefBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("%s answers with more than %d bytes", b.host, maxBrief)
	}
	return n, err
}

// login is one attempt to log in.
type login struct {
	http   *http.Client
	header http.Header
	auth   registry.AuthConfig
	host   string
	plain  bool // passwords may go without TLS
}

// try asks the registry what it wants, gives it that, and asks again.
func (l *login) try(ctx context.Context, endpoint string) (token string, err error) {
	res, err := l.get(ctx, endpoint, "")
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusUnauthorized {
		return "", outcome(endpoint, res)
	}
	header := ""
	for _, c := range auth.ParseAuthHeader(res.Header) {
		switch {
		case c.Scheme == auth.BearerAuth && l.auth.RegistryToken != "":
			header = "Bearer " + l.auth.RegistryToken
		case c.Scheme == auth.BearerAuth:
			access, refresh, err := l.fetch(ctx, c)
			if err != nil {
				return "", fmt.Errorf("Get %q: %w", endpoint, err) //nolint:staticcheck // as Docker says it
			}
			header, token = "Bearer "+access, refresh
		case c.Scheme == auth.BasicAuth && l.auth.Username != "":
			req := http.Request{Header: http.Header{}}
			req.SetBasicAuth(l.auth.Username, l.auth.Password)
			header = req.Header.Get("Authorization")
		default:
			continue
		}
		break
	}
	if header == "" {
		return "", unauthorized("Get %q: unauthorized: no basic auth credentials", endpoint)
	}
	if res, err = l.get(ctx, endpoint, header); err != nil {
		return "", err
	}
	return token, outcome(endpoint, res)
}

// outcome tells what an answer means for the login.
func outcome(endpoint string, res *http.Response) error {
	switch res.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return unauthorized("login attempt to %s failed with status: %s", endpoint, res.Status)
	}
	return fmt.Errorf("login attempt to %s failed with status: %s", endpoint, res.Status)
}

func unauthorized(format string, args ...any) error {
	return errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf(format, args...))
}

// get asks the registry; the answer's body is read and closed.
func (l *login) get(ctx context.Context, endpoint, authorization string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, err
	}
	req.Header = l.header.Clone()
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := l.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // for the connection's sake
	return res, nil
}

// fetch gets a token from whom the registry trusts.
func (l *login) fetch(ctx context.Context, c auth.Challenge) (access, refresh string, err error) {
	to, err := auth.GenerateTokenOptions(ctx, l.host, l.auth.Username, l.auth.Password, c)
	if err != nil {
		return "", "", err
	}
	if u, err := url.Parse(to.Realm); err != nil || u.Scheme != "https" && !(l.plain && u.Scheme == "http") {
		return "", "", fmt.Errorf("the registry asks to send the password to %s, which has no TLS: %w", to.Realm, errdefs.ErrInvalidArgument)
	}
	if l.auth.IdentityToken != "" {
		to.Username, to.Secret = "", l.auth.IdentityToken
		r, err := auth.FetchTokenWithOAuth(ctx, l.http, l.header, clientID, to)
		if err != nil {
			return "", "", denied(err)
		}
		return r.AccessToken, l.auth.IdentityToken, nil
	}
	to.FetchRefreshToken = true
	r, err := auth.FetchToken(ctx, l.http, l.header, to)
	if err != nil {
		return "", "", denied(err)
	}
	if r.Token == "" {
		r.Token = r.AccessToken
	}
	return r.Token, r.RefreshToken, nil
}

// denied words the refusal of who gives tokens.
func denied(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden) {
		return unauthorized("unauthorized: incorrect username or password")
	}
	return err
}

// keepTLS does not follow a redirection to where a password would go in the clear.
func (l *login) keepTLS(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if req.URL.Scheme != "https" && !l.plain {
		return fmt.Errorf("redirected to %s, which has no TLS: %w", req.URL.Host, errdefs.ErrInvalidArgument)
	}
	return nil
}
