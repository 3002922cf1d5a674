package harness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// API talks to an engine: statuses and bodies as they come. It may be used by
// several goroutines.
type API struct {
	network, addr string
	http          *http.Client
	tr            *http.Transport
}

// StatusError is an answer of 400 or more.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%d: %s", e.Status, e.Message) }

// Status is the HTTP status within err, 0 when err is not an answer.
func Status(err error) int {
	var se *StatusError
	if errors.As(err, &se) {
		return se.Status
	}
	return 0
}

// NewAPI makes a client of host: "unix:///path" or "tcp://address:port".
func NewAPI(host string) *API {
	network, addr, ok := strings.Cut(host, "://")
	if !ok {
		network, addr = "unix", host
	}
	a := &API{network: network, addr: addr}
	a.tr = &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return a.Dial(ctx) },
		MaxIdleConnsPerHost: 16, DisableCompression: true,
	}
	// An answer is shown as it is, also one that sends elsewhere.
	a.http = &http.Client{Transport: a.tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return a
}

// Dial opens a bare connection.
func (a *API) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, a.network, a.addr)
}

// Close drops idle connections.
func (a *API) Close() { a.tr.CloseIdleConnections() }

// Open sends a request and returns the answer whatever its status; the caller
// closes its body. body: nil, an io.Reader, or a value sent as JSON.
func (a *API) Open(ctx context.Context, method, path string, body any) (*http.Response, error) {
	return a.Ask(ctx, method, path, nil, body)
}

// Ask is Open with headers, which win over what the body would set.
func (a *API) Ask(ctx context.Context, method, path string, header http.Header, body any) (*http.Response, error) {
	var r io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case io.Reader:
		r, kind = b, "application/x-tar"
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		r, kind = bytes.NewReader(raw), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, r)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	for k, v := range header {
		req.Header[k] = v
		if len(v) == 1 && v[0] == "-" {
			delete(req.Header, k)
		}
	}
	return a.http.Do(req)
}

// Raw sends a request and returns status and body, at most 64 MB of it.
func (a *API) Raw(ctx context.Context, method, path string, body any) (int, []byte, error) {
	res, err := a.Open(ctx, method, path, body)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	return res.StatusCode, b, err
}

// Do sends a request and decodes the JSON answer into out unless out is nil.
// An answer of 400 or more is a *StatusError with Docker's message.
func (a *API) Do(ctx context.Context, method, path string, body, out any) error {
	st, b, err := a.Raw(ctx, method, path, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if st >= 400 {
		return fmt.Errorf("%s %s: %w", method, path, statusError(st, b))
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: %w in %.200q", method, path, err, b)
	}
	return nil
}

func statusError(st int, b []byte) error {
	var m struct{ Message string }
	if json.Unmarshal(b, &m) != nil || m.Message == "" {
		m.Message = string(b)
	}
	return &StatusError{Status: st, Message: m.Message}
}

// Stream is an upgraded connection.
type Stream struct {
	net.Conn
	r *bufio.Reader
}

func (s *Stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// CloseWrite tells the end of standard input.
func (s *Stream) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Hijack sends a request that upgrades its connection (attach, exec start).
func (a *API) Hijack(ctx context.Context, path string, body any) (*Stream, error) {
	c, err := a.Dial(ctx)
	if err != nil {
		return nil, err
	}
	raw := []byte("{}")
	if body != nil {
		if raw, err = json.Marshal(body); err != nil {
			c.Close()
			return nil, err
		}
	}
	req, err := http.NewRequest("POST", "http://docker"+path, bytes.NewReader(raw))
	if err != nil {
		c.Close()
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	if d, ok := ctx.Deadline(); ok {
		c.SetDeadline(d)
	}
	if err := req.Write(c); err != nil {
		c.Close()
		return nil, err
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		c.Close()
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols && res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		c.Close()
		return nil, fmt.Errorf("POST %s: %w", path, statusError(res.StatusCode, b))
	}
	return &Stream{Conn: c, r: r}, nil
}

// Demux splits multiplexed frames until r ends. A frame that is cut short is
// io.ErrUnexpectedEOF.
func Demux(r io.Reader, stdout, stderr io.Writer) error {
	var h [8]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		w := stdout
		switch h[0] {
		case 0, 1:
		case 2:
			w = stderr
		default:
			return fmt.Errorf("frame of stream %d", h[0])
		}
		if _, err := io.CopyN(w, r, int64(binary.BigEndian.Uint32(h[4:]))); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// Logs reads a container's whole log (without following).
func (a *API) Logs(ctx context.Context, id string) (stdout, stderr []byte, err error) {
	res, err := a.Open(ctx, "GET", "/containers/"+id+"/logs?stdout=1&stderr=1&tail=all", nil)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		return nil, nil, statusError(res.StatusCode, b)
	}
	var o, e bytes.Buffer
	err = Demux(res.Body, &o, &e)
	return o.Bytes(), e.Bytes(), err
}

// Container is what tests look at of an inspect.
type Container struct {
	ID           string `json:"Id"`
	Name         string
	RestartCount int
	LogPath      string
	State        struct {
		Status     string
		Running    bool
		Pid        int
		ExitCode   int
		OOMKilled  bool
		Error      string
		StartedAt  time.Time
		FinishedAt time.Time
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
		Ports    map[string][]struct{ HostIP, HostPort string }
	}
}

// Inspect reads a container.
func (a *API) Inspect(ctx context.Context, id string) (Container, error) {
	var c Container
	err := a.Do(ctx, "GET", "/containers/"+id+"/json", nil, &c)
	return c, err
}

// Import makes an image of a tar stream and gives it the name repo:tag.
func (a *API) Import(ctx context.Context, repo, tag string, tar io.Reader) error {
	st, b, err := a.Raw(ctx, "POST", "/images/create?fromSrc=-&repo="+repo+"&tag="+tag, tar)
	if err != nil {
		return err
	}
	if st != 200 {
		return statusError(st, b)
	}
	if i := bytes.Index(b, []byte(`"errorDetail"`)); i >= 0 {
		return fmt.Errorf("import: %s", b[i:])
	}
	return nil
}
