// Package client talks to an Escale engine, or to any other engine that
// speaks the Docker Engine API.
//
// A [Client] is the moby project's client, all of its methods included, plus
// what that one cannot do: ssh hosts, and requests to endpoints it does not
// know ([Client.Do]). Escale's own endpoints get their methods here.
//
// All methods that take a context block until the engine has answered or the
// context is done. A Client may be used by several goroutines.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs/pkg/errhttp"
	moby "github.com/moby/moby/client"
)

// The sockets that [DefaultHost] chooses from.
const (
	EscaleSocket = "/run/escale/escale.sock"
	DockerSocket = "/var/run/docker.sock"
)

// Options say which engine to talk to and how. The zero value is the default
// engine of this machine.
type Options struct {
	// Host is unix:///path, tcp://host:port or ssh://[user@]host[:port][/path
	// of the remote socket]. Empty means [DefaultHost].
	Host string
	// TLS, when set, is used for tcp hosts.
	TLS *tls.Config
	// APIVersion fixes the version ("1.47") and turns negotiation off.
	APIVersion string
	// Headers are sent with every request.
	Headers map[string]string
	// UserAgent is sent with every request. Empty means "Escale-Client".
	UserAgent string
}

// DefaultHost is Escale's own socket when it exists, else Docker's.
func DefaultHost() string {
	if _, err := os.Stat(EscaleSocket); err == nil {
		return "unix://" + EscaleSocket
	}
	return "unix://" + DockerSocket
}

// Client is a connection to one engine. Make it with [New].
type Client struct {
	*moby.Client
	host    string
	scheme  string
	base    string // host of the URL
	headers map[string]string
	agent   string
	http    *http.Client
}

// New prepares a client; it does not connect. Errors are of the host's form.
func New(o Options) (*Client, error) {
	if o.Host == "" {
		o.Host = DefaultHost()
	}
	if o.UserAgent == "" {
		o.UserAgent = "Escale-Client"
	}
	u, err := moby.ParseHostURL(o.Host)
	if err != nil {
		return nil, err
	}
	c := &Client{host: o.Host, scheme: "http", base: u.Host, headers: o.Headers, agent: o.UserAgent}
	opts := []moby.Opt{moby.WithUserAgent(o.UserAgent)}
	if o.Headers != nil {
		opts = append(opts, moby.WithHTTPHeaders(o.Headers))
	}
	if o.APIVersion != "" {
		opts = append(opts, moby.WithAPIVersion(o.APIVersion))
	}
	tr := &http.Transport{MaxIdleConns: 6, IdleConnTimeout: 30 * time.Second}
	switch u.Scheme {
	case "unix":
		c.base = moby.DummyHost
		opts = append(opts, moby.WithHost(o.Host))
		dialer := &net.Dialer{Timeout: 10 * time.Second}
		tr.DisableCompression = true
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Host)
		}
	case "ssh":
		dial, err := sshDialer(o.Host)
		if err != nil {
			return nil, err
		}
		c.base = moby.DummyHost
		tr.DialContext = dial
		// The unix form keeps proxies and TLS out of the way; its own dialer
		// is replaced at once.
		opts = append(opts, moby.WithHost("unix://"+DockerSocket), moby.WithDialContext(dial))
	case "tcp", "http", "https":
		tr.Proxy = http.ProxyFromEnvironment
		if o.TLS != nil {
			c.scheme = "https"
			tr.TLSClientConfig = o.TLS
			opts = append(opts, moby.WithHTTPClient(&http.Client{
				Transport:     &http.Transport{TLSClientConfig: o.TLS},
				CheckRedirect: moby.CheckRedirect,
			}))
		}
		opts = append(opts, moby.WithHost(o.Host))
	default:
		return nil, fmt.Errorf("host %q: unknown scheme %q (want unix, tcp or ssh)", o.Host, u.Scheme)
	}
	if c.Client, err = moby.New(opts...); err != nil {
		return nil, err
	}
	c.base += u.Path
	c.http = &http.Client{Transport: tr, CheckRedirect: moby.CheckRedirect}
	return c, nil
}

// Host is the address as it was given, or the default that was chosen.
func (c *Client) Host() string { return c.host }

// Close drops idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return c.Client.Close()
}

// Do sends a request to an endpoint of the engine, under the negotiated API
// version, and returns the answer, whose body the caller closes. body is sent
// as JSON unless it is nil. An answer of 400 and above becomes an error of the
// matching errdefs kind with the engine's words.
func (c *Client) Do(ctx context.Context, method, endpoint string, query url.Values, body any) (*http.Response, error) {
	if body == nil {
		return c.send(ctx, method, endpoint, query, nil, "")
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("body of %s %s: %w", method, endpoint, err)
	}
	return c.send(ctx, method, endpoint, query, bytes.NewReader(b), "application/json")
}

// send is Do with a body of any type; nil is none.
func (c *Client) send(ctx context.Context, method, endpoint string, query url.Values, body io.Reader, mediaType string) (*http.Response, error) {
	return c.sendWith(ctx, method, endpoint, query, body, mediaType, nil)
}

// sendWith is send with more headers.
func (c *Client) sendWith(ctx context.Context, method, endpoint string, query url.Values, body io.Reader, mediaType string, more http.Header) (*http.Response, error) {
	if _, err := c.Ping(ctx, moby.PingOptions{NegotiateAPIVersion: true}); err != nil && moby.IsErrConnectionFailed(err) {
		return nil, err
	}
	host, prefix, _ := strings.Cut(c.base, "/")
	u := url.URL{
		Scheme:   c.scheme,
		Host:     host,
		Path:     path.Join("/", prefix, "v"+c.ClientVersion(), endpoint),
		RawQuery: query.Encode(),
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	for k, v := range c.headers {
		req.Header.Set(k, v)
	}
	for k, v := range more {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	req.Header.Set("User-Agent", c.agent)
	if body != nil {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, answerError(resp)
}

// statusError carries the engine's words and, for errdefs, the kind.
type statusError struct {
	message string
	kind    error
}

func (e *statusError) Error() string   { return e.message }
func (e *statusError) Is(t error) bool { return e.kind != nil && errors.Is(e.kind, t) }

func answerError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var m struct {
		Message string `json:"message"`
	}
	text := strings.TrimSpace(string(b))
	if json.Unmarshal(b, &m) == nil && m.Message != "" {
		text = strings.TrimSpace(m.Message)
	}
	if text == "" {
		text = "request returned " + resp.Status + "; check if the server supports the requested API version"
	}
	return &statusError{message: "Error response from daemon: " + text, kind: errhttp.ToNative(resp.StatusCode)}
}
