package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
)

// How long another node has.
const (
	dialWait   = 3 * time.Second  // to be connected with
	shakeWait  = 5 * time.Second  // for the handshake
	answerWait = 10 * time.Second // to begin an answer that it need not work for
	keepIdle   = 90 * time.Second // that a connection is kept without being used
)

// Dialer calls other nodes. It keeps connections that are in use or were just now. Its
// methods may be called from several goroutines.
type Dialer struct {
	keeper *ca.Keeper
	addrOf func(node string) (addr string, ok bool)
	head   time.Duration // until an answer begins that has to wait for its turn
	stall  time.Duration // of silence in the middle of a blob, that is given up

	mu    sync.Mutex
	id    *ca.Identity // that the transport shows
	http  *http.Transport
	hints map[string]string // addresses that managers have told of other nodes
}

// maxHints bounds what is remembered of what managers tell.
const maxHints = 4096

// NewDialer makes a Dialer; nothing is opened. addrOf tells where a node listens, host:port.
func NewDialer(keeper *ca.Keeper, addrOf func(node string) (addr string, ok bool)) *Dialer {
	return &Dialer{keeper: keeper, addrOf: addrOf, head: queueWait + 5*time.Second, stall: 15 * time.Second, hints: map[string]string{}}
}

// Close lets go of connections that nobody uses; others end when they are done with.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.http != nil {
		d.http.CloseIdleConnections()
	}
	d.http, d.id = nil, nil
}

// transport is the one for the certificate that the node has now: with the last one's
// connections nothing new is begun.
func (d *Dialer) transport() *http.Transport {
	id := d.keeper.Identity()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.http != nil && d.id == id {
		return d.http
	}
	if d.http != nil {
		d.http.CloseIdleConnections()
	}
	only := new(http.Protocols)
	only.SetHTTP2(true)
	d.id, d.http = id, &http.Transport{
		DialTLSContext: d.dial, ForceAttemptHTTP2: true, Protocols: only, DisableCompression: true, IdleConnTimeout: keepIdle,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingEvery, PingTimeout: pingWait},
	}
	return d.http
}

// dial connects with the node that a URL names.
func (d *Dialer) dial(ctx context.Context, _, host string) (net.Conn, error) {
	node, _, err := net.SplitHostPort(host)
	if err != nil {
		return nil, err
	}
	addr, ok := d.where(node)
	if !ok {
		return nil, fmt.Errorf("its address is not known: %w", errdefs.ErrUnavailable)
	}
	raw, err := (&net.Dialer{Timeout: dialWait}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, d.keeper.ClientOfNode(node))
	ctx, cancel := context.WithTimeout(ctx, shakeWait)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return c, nil
}

func (d *Dialer) where(node string) (string, bool) {
	if addr, ok := d.addrOf(node); ok {
		return addr, true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	addr, ok := d.hints[node]
	return addr, ok
}

// hint notes where a node is said to be. That it is there shows its certificate.
func (d *Dialer) hint(p Place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.hints) >= maxHints {
		clear(d.hints)
	}
	d.hints[p.Node] = p.Addr
}

// do asks a node. The answer is a good one: others are errors, of the kind that the node
// says, or Unavailable.
func (d *Dialer) do(ctx context.Context, method, node, path string, q url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "https", Host: node, Path: path, RawQuery: q.Encode()}
	if !nodeName(node) {
		return nil, fmt.Errorf("node %q: it is no node's id: %w", node, errdefs.ErrInvalidArgument)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	res, err := d.transport().RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("node %s is not available: %w: %w", node, err, errdefs.ErrUnavailable)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	words, _ := io.ReadAll(io.LimitReader(res.Body, maxWords)) // what can be read of them will do
	return nil, fmt.Errorf("node %s: %s: %w", node, words, kindOf(res.StatusCode))
}

// kindOf is what a node means by a status.
func kindOf(status int) error {
	for _, k := range statuses {
		if k.status == status {
			return k.err
		}
	}
	return errdefs.ErrUnknown
}

// nodeName tells whether a string can be a node's id, and so the host of a URL.
func nodeName(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

func (d *Dialer) get(ctx context.Context, node, path string, q url.Values) (*http.Response, error) {
	// The head has to come soon; what follows may take its time.
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(d.head, func() {
		cancel(fmt.Errorf("node %s does not answer: %w", node, errdefs.ErrUnavailable))
	})
	res, err := d.do(ctx, http.MethodGet, node, path, q, nil)
	timer.Stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	res.Body = &closing{res.Body, func() { cancel(nil) }}
	return res, nil
}

// closing is a body with which a context ends.
type closing struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (c *closing) Close() error {
	err := c.ReadCloser.Close()
	c.end()
	return err
}

// getJSON asks a node for a small answer. It blocks for as long as that may take.
func (d *Dialer) getJSON(ctx context.Context, wait time.Duration, node, path string, q url.Values, into any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("node %s does not answer: %w", node, errdefs.ErrUnavailable))
	defer cancel()
	res, err := d.do(ctx, http.MethodGet, node, path, q, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("node %s: %w: %w", node, err, errdefs.ErrUnavailable)
	case len(b) > maxAnswer:
		return fmt.Errorf("node %s: an answer of more than %d bytes: %w", node, maxAnswer, errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("node %s: %w: %w", node, err, errdefs.ErrDataLoss)
	}
	return nil
}

// maxAnswer bounds a small answer, in bytes.
const maxAnswer = 256 << 10

// hasWait is how long a node has to say whether it has an image.
const hasWait = 3 * time.Second

// queryOfImage is what image is wanted, in the form in which it travels.
func queryOfImage(w image.Wanted) url.Values {
	q := url.Values{}
	for name, v := range map[string]string{"id": w.ID.String(), "digest": w.Digest.String(), "name": w.Name, "platform": w.Platform} {
		if v != "" {
			q.Set(name, v)
		}
	}
	return q
}

// Has asks a node for an image. NotFound when it has none, Unavailable, DataLoss for an
// answer that cannot be.
func (d *Dialer) Has(ctx context.Context, node string, w image.Wanted) (image.Held, error) {
	var h image.Held
	if err := d.getJSON(ctx, hasWait, node, pathImage, queryOfImage(w), &h); err != nil {
		return h, err
	}
	return h, checkHeld(node, w, h)
}

// checkHeld refuses what is not what was asked for.
func checkHeld(node string, w image.Wanted, h image.Held) error {
	bad := h.ID.Validate() != nil || h.Manifest.Digest.Validate() != nil || h.Top.Digest.Validate() != nil
	if bad || w.ID != "" && h.ID != w.ID || w.Digest != "" && h.Top.Digest != w.Digest {
		return fmt.Errorf("node %s: image %.80q of manifest %.80q is not the one that was asked for: %w", node, h.ID, h.Manifest.Digest, errdefs.ErrDataLoss)
	}
	return nil
}

// Holders asks a manager which nodes have an image; what it says is hints at most.
func (d *Dialer) Holders(ctx context.Context, manager string, w image.Wanted) (Found, error) {
	var f Found
	if err := d.getJSON(ctx, searchWait, manager, pathHolders, queryOfImage(w), &f); err != nil {
		return f, err
	}
	if err := checkHeld(manager, w, f.Held); err != nil {
		return f, err
	}
	list := f.Places[:0]
	for _, p := range f.Places {
		if nodeName(p.Node) && p.ID.Validate() == nil && len(list) < MaxPlaces {
			list = append(list, p)
			d.hint(p)
		}
	}
	if f.Places = list; len(list) == 0 {
		return f, fmt.Errorf("node %s: it names nobody who has the image: %w", manager, errdefs.ErrDataLoss)
	}
	return f, nil
}
