package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
)

// maxPage bounds, in bytes, what is told of the page with which a server refuses a download.
const maxPage = 1 << 10

// Download is a file that a web server sends. Read blocks for what comes; that the server
// is silent for longer than Config.Stall, or ends before it has sent all, is an error of
// kind Unavailable. One goroutine reads.
type Download struct {
	Size int64 // in bytes; negative: the server does not say

	from string
	body io.ReadCloser
	ctx  context.Context
	dog  *watchdog
	end  func()
}

// Download asks the server of a URL, of http or https, for a file, through the proxy that
// leads there. It blocks until the server begins to answer, Config.Stall at most for each
// of the hosts it sends one to; ctx ends the download, too. Close it. The words of a
// refusal are Docker's. Kinds: InvalidArgument, Unauthorized, PermissionDenied and
// NotFound as the server says, NotFound of a host that has no address, else Unavailable.
func (c *Client) Download(ctx context.Context, from url.URL) (*Download, error) {
	set := c.now.Load()
	tr := &http.Transport{
		Proxy: set.proxyOf, DialContext: (&net.Dialer{Timeout: timeout}).DialContext, TLSHandshakeTimeout: timeout,
		ResponseHeaderTimeout: set.Stall, ForceAttemptHTTP2: true, DisableCompression: true, // what is packed stays so
	}
	ctx, cancel := context.WithCancelCause(ctx)
	d := &Download{
		from: from.Redacted(), ctx: ctx, dog: &watchdog{limit: set.Stall, bite: func() { cancel(errStalled) }},
		end: func() { cancel(nil); tr.CloseIdleConnections() },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		d.end()
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	req.Header.Set("User-Agent", set.UserAgent)
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		d.end()
		var unknown *net.DNSError
		if errors.As(err, &unknown) && unknown.IsNotFound {
			return nil, &worded{err.Error(), errdefs.ErrNotFound}
		}
		return nil, &worded{err.Error(), errors.Join(err, errdefs.ErrUnavailable)}
	}
	d.Size, d.body = res.ContentLength, res.Body
	if res.StatusCode != http.StatusOK {
		defer d.Close()
		return nil, d.refusal(res)
	}
	return d, nil
}

// refusal tells what a server says instead of sending the file.
func (d *Download) refusal(res *http.Response) error {
	page := make([]byte, maxPage)
	n, _ := io.ReadFull(d, page) // what came of it is told
	var kind error = errdefs.ErrUnavailable
	switch res.StatusCode {
	case http.StatusBadRequest:
		kind = errdefs.ErrInvalidArgument
	case http.StatusUnauthorized:
		kind = errdefs.ErrUnauthenticated
	case http.StatusForbidden:
		kind = errdefs.ErrPermissionDenied
	case http.StatusNotFound:
		kind = errdefs.ErrNotFound
	}
	return &worded{fmt.Sprintf("failed to GET %s with status %s: %s", d.from, res.Status, bytes.ToValidUTF8(bytes.TrimSpace(page[:n]), nil)), kind}
}

// Read implements io.Reader.
func (d *Download) Read(p []byte) (int, error) {
	d.dog.start()
	n, err := d.body.Read(p)
	d.dog.stop()
	switch {
	case err == nil, errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return n, err
	case errors.Is(context.Cause(d.ctx), errStalled):
		return n, &worded{fmt.Sprintf("%s: nothing came for %s", d.from, d.dog.limit), errors.Join(errStalled, errdefs.ErrUnavailable)}
	case d.ctx.Err() != nil:
		return n, d.ctx.Err()
	}
	return n, &worded{fmt.Sprintf("%s: the download broke off: %s", d.from, err), errors.Join(err, errdefs.ErrUnavailable)}
}

// Close hangs up. Idempotent.
func (d *Download) Close() error {
	err := d.body.Close()
	d.end()
	return err
}
