package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

const (
	maxPause     = 30 * time.Second // between two attempts
	maxChallenge = 3                // answers 401 to one request
)

// errStalled is why a registry that is silent is hung up on.
var errStalled = errors.New("nothing came from the registry")

// endpoint is a host that serves a repository.
type endpoint struct {
	set  *settings
	base url.URL // without /v2/
	http *http.Client
	auth *renewing
}

// renewing is an authorizer that can begin anew: a registry may refuse a token
// that should still live, and not say that this is why.
type renewing struct {
	fresh func() docker.Authorizer
	mu    sync.Mutex
	now   docker.Authorizer
}

func (r *renewing) get() docker.Authorizer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		r.now = r.fresh()
	}
	return r.now
}

// Authorize adds what is known to a request.
func (r *renewing) Authorize(ctx context.Context, req *http.Request) error {
	return r.get().Authorize(ctx, req)
}

// AddResponses learns from refusals of one request; of the second one that what
// was known is worth nothing.
func (r *renewing) AddResponses(ctx context.Context, seen []*http.Response) error {
	if len(seen) == 2 {
		r.mu.Lock()
		r.now = nil
		r.mu.Unlock()
		seen = seen[1:]
	}
	return r.get().AddResponses(ctx, seen)
}

// call is one request to an endpoint.
type call struct {
	method string
	path   string // below /v2/; or an absolute URL
	header http.Header
	// body opens what is sent, anew for each attempt; nil: nothing.
	body func() (io.ReadCloser, error)
	size int64 // of the body
	once bool  // the caller sees to further attempts
	slow bool  // the registry may be silent for longer
}

// do asks, with further attempts after what may pass: 429, 5xx, a connection
// that broke, silence. The answer has a status below 400 and is the caller's to
// close; others are Refusals.
func (e *endpoint) do(ctx context.Context, c call) (*http.Response, error) {
	pause := e.set.Pause
	for n := 1; ; n++ {
		res, err := e.challenge(ctx, c)
		if err == nil && res.StatusCode < 400 {
			return res, nil
		}
		wait := time.Duration(0)
		if err == nil {
			wait = retryAfter(res)
			r := refusal(res)
			err = r
			if c.method == http.MethodHead && r.Status < 500 {
				return nil, err
			}
		}
		if c.once || n >= e.set.Attempts || !passing(err) || ctx.Err() != nil {
			return nil, err
		}
		if err := sleep(ctx, max(wait, pause/2+rand.N(pause/2+1))); err != nil {
			return nil, err
		}
		pause = min(2*pause, maxPause)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// retryAfter is how long the registry asks to wait, within reason.
func retryAfter(res *http.Response) time.Duration {
	h := res.Header.Get("Retry-After")
	d := time.Duration(0)
	if n, err := strconv.Atoi(h); err == nil {
		d = time.Duration(min(n, 3600)) * time.Second
	} else if at, err := http.ParseTime(h); err == nil {
		d = time.Until(at)
	}
	return min(max(d, 0), 2*maxPause)
}

// passing tells whether another attempt may go better.
func passing(err error) bool {
	var r *Refusal
	if errors.As(err, &r) {
		switch r.Status {
		case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return dial.Timeout()
	}
	var network net.Error
	return errors.Is(err, errStalled) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.As(err, &network) && network.Timeout()
}

// challenge asks, and answers what the registry asks in return.
func (e *endpoint) challenge(ctx context.Context, c call) (*http.Response, error) {
	var seen []*http.Response
	for {
		res, err := e.send(ctx, c)
		if err != nil || res.StatusCode != http.StatusUnauthorized || len(seen) == maxChallenge {
			return res, err
		}
		seen = append(seen, res)
		if err := e.auth.AddResponses(ctx, seen); err != nil {
			if errdefs.IsNotImplemented(err) {
				return res, nil
			}
			r := refusal(res)
			if strings.Contains(err.Error(), noCredentials) {
				return nil, &noLogin{c.method, res.Request.URL.String()}
			}
			return nil, r
		}
		res.Body.Close()
	}
}

// noCredentials is what Docker says of a login that is missing.
const noCredentials = "no basic auth credentials"

// noLogin tells that there is nothing to answer a challenge with.
type noLogin struct{ method, url string }

func (n *noLogin) Error() string {
	return fmt.Sprintf("%s %q: %s", title(n.method), n.url, noCredentials)
}

// Unwrap gives a kind that is not Unauthorized: by that clients ask for a login, which Docker's engine leaves to
// them for logins alone.
func (n *noLogin) Unwrap() error { return errdefs.ErrUnknown }

// bytesBody is a body of bytes.
func bytesBody(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// title writes a method as net/http does in its errors.
func title(method string) string { return method[:1] + strings.ToLower(method[1:]) }

// send asks once.
func (e *endpoint) send(ctx context.Context, c call) (*http.Response, error) {
	to, err := e.base.Parse(e.base.Path + "/v2/" + c.path)
	if c.path != "" && (c.path[0] == '/' || hasScheme(c.path)) {
		to, err = e.base.Parse(c.path)
	}
	if err != nil {
		return nil, err
	}
	limit := e.set.Stall
	if c.slow {
		limit *= 10
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{limit: limit, bite: func() { cancel(errStalled) }}
	req, err := http.NewRequestWithContext(ctx, c.method, to.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if c.body != nil {
		body, err := c.body()
		if err != nil {
			cancel(nil)
			return nil, err
		}
		req.Body, req.ContentLength = &fed{body, w}, c.size
		if c.size == 0 {
			body.Close()
			req.Body = http.NoBody
		}
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", e.set.UserAgent)
	if to.Host == e.base.Host && to.Scheme == e.base.Scheme {
		if err := e.auth.Authorize(ctx, req); err != nil {
			cancel(nil)
			return nil, e.authError(c.method, req, err)
		}
	}
	w.start()
	res, err := e.http.Do(req)
	w.stop()
	if err != nil {
		err = stalled(ctx, err, e.base.Host, limit)
		cancel(nil)
		return nil, err
	}
	res.Body = &watchedBody{res.Body, ctx, w, e.base.Host, func() { cancel(nil) }}
	return res, nil
}

func hasScheme(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Host != ""
}

// authError words the refusal of who gives tokens.
func (e *endpoint) authError(method string, req *http.Request, err error) error {
	if kind := denied(err); errdefs.IsUnauthorized(kind) {
		return &worded{fmt.Sprintf("%s %q: %s", title(method), req.URL, kind), errdefs.ErrUnknown}
	}
	return err
}

// stalled tells silence from what else ended a request.
func stalled(ctx context.Context, err error, host string, limit time.Duration) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return &worded{fmt.Sprintf("registry %s: %s for %s", host, errStalled, limit), errors.Join(errStalled, errdefs.ErrUnavailable)}
	}
	return err
}

// watchdog bites after a time of silence, while it is started.
type watchdog struct {
	limit time.Duration
	bite  func()
	mu    sync.Mutex
	timer *time.Timer
}

func (w *watchdog) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.limit, w.bite)
		return
	}
	w.timer.Reset(w.limit)
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

// fed is what is sent: while the registry takes of it, it is not silent.
type fed struct {
	io.ReadCloser
	w *watchdog
}

func (f *fed) Read(p []byte) (int, error) {
	f.w.stop() // reading may take as long as it likes
	n, err := f.ReadCloser.Read(p)
	f.w.start()
	return n, err
}

// watchedBody is an answer's body: waiting for it has a limit.
type watchedBody struct {
	io.ReadCloser
	ctx   context.Context
	w     *watchdog
	host  string
	close func()
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.w.start()
	n, err := b.ReadCloser.Read(p)
	b.w.stop()
	if err != nil && err != io.EOF {
		err = stalled(b.ctx, err, b.host, b.w.limit)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.close()
	return err
}
