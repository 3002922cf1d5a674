package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

const (
	// mediaType is what the engine says it understands.
	mediaType = "application/vnd.docker.plugins.v1.2+json"

	maxAnswer   = 4 << 20 // bytes of an answer
	dialTimeout = 10 * time.Second
	// retryFor is for how long a plugin that does not take connections is tried again.
	retryFor = 30 * time.Second
)

// ErrUnreachable is of a call that no plugin took, or that it did not answer in time.
var ErrUnreachable = errors.New("plugin cannot be reached")

// RemoteError is what a plugin answered when it could not do what it was asked.
type RemoteError struct {
	Method  string
	Status  int // of HTTP; 200 with an error in the answer
	Message string
}

// Error is in Docker's words.
func (e *RemoteError) Error() string {
	if e.Status == http.StatusOK {
		return e.Message
	}
	return e.Method + ": " + e.Message
}

// TLS says how the connection to a plugin is secured, as the file of a plugin has it.
type TLS struct {
	CAFile, CertFile, KeyFile string
	InsecureSkipVerify        bool
}

// Client talks with one plugin. Safe for concurrent use.
type Client struct {
	http *http.Client
	base string
}

// NewClient makes a client of an address: unix:///path, tcp://host:port,
// http://host:port or https://host:port. It does not connect.
func NewClient(addr string, t *TLS) (*Client, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return nil, fmt.Errorf("plugin address %q: %w", addr, err)
	}
	network, where, host := "tcp", u.Host, u.Host
	switch u.Scheme {
	case "unix":
		network, where, host = "unix", u.Path, "plugin.moby.localhost"
	case "tcp", "http", "https":
	default:
		return nil, fmt.Errorf("plugin address %q: Unknown protocol", addr)
	}
	if where == "" {
		return nil, fmt.Errorf("plugin address %q leads nowhere", addr)
	}
	// A connection each: a plugin that was started anew meanwhile is no surprise.
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, where)
	}
	scheme := "http"
	if u.Scheme == "https" {
		scheme = "https"
		if tr.TLSClientConfig, err = t.config(); err != nil {
			return nil, fmt.Errorf("plugin at %q: %w", addr, err)
		}
	}
	return &Client{http: &http.Client{Transport: tr}, base: scheme + "://" + host + "/"}, nil
}

// config reads the files. Without any, the machine's authorities count; with
// some, but none of an authority, nothing is verified: plugin files mean it so.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return c, nil
	}
	c.InsecureSkipVerify = t.InsecureSkipVerify || t.CAFile == ""
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", t.CAFile)
		}
	}
	if t.CertFile != "" || t.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// How says how patient a call is.
type How struct {
	Timeout time.Duration // of the whole call; 0: as long as the context
	// Once says that a plugin that takes no connection is not tried again.
	Once bool
}

// Call asks a plugin: args go as JSON, nil sends nothing; the answer is read into
// ret, nil ignores it. It blocks at most as long as how says. Errors: ErrUnreachable,
// *RemoteError, or that the answer made no sense.
func (c *Client) Call(ctx context.Context, method string, args, ret any, how How) error {
	var body []byte
	if args != nil {
		var err error
		if body, err = json.Marshal(args); err != nil {
			return err
		}
	}
	if how.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, how.Timeout)
		defer cancel()
	}
	begin := time.Now()
	for pause := time.Second; ; pause *= 2 {
		err := c.try(ctx, method, body, ret)
		var dial *net.OpError
		again := errors.As(err, &dial) && dial.Op == "dial" // nobody has heard it yet
		if !again || how.Once || ctx.Err() != nil || time.Since(begin)+pause >= retryFor {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// try is one call.
func (c *Client) try(ctx context.Context, method string, body []byte, ret any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", mediaType)
	if body != nil {
		req.Header.Set("Content-Type", mediaType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", method, ErrUnreachable, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("%s: %w: %w", method, ErrUnreachable, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("%s: the plugin's answer is larger than %d bytes", method, maxAnswer)
	}
	return readAnswer(method, res.StatusCode, b, ret)
}

// readAnswer takes a plugin's answer apart.
func readAnswer(method string, status int, b []byte, ret any) error {
	var failure struct{ Err string }
	readable := json.Unmarshal(b, &failure) == nil
	switch {
	case status != http.StatusOK && readable && failure.Err != "":
		return &RemoteError{method, status, failure.Err}
	case status != http.StatusOK:
		return &RemoteError{method, status, string(b[:min(len(b), 4096)])}
	case readable && failure.Err != "":
		return &RemoteError{method, status, failure.Err}
	case ret == nil:
		return nil
	}
	if err := json.Unmarshal(b, ret); err != nil {
		return fmt.Errorf("%s: the plugin's answer: %w", method, err)
	}
	return nil
}
