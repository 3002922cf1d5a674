package engine

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
	apicontainer "github.com/moby/moby/api/types/container"
)

// Elsewhere are the containers of tasks, wherever in the cluster they are.
type Elsewhere interface {
	// Find finds the container of a task by the name or id of the task, or of the
	// container, or the beginning of an id. NotFound, InvalidArgument when it is not the only one.
	Find(ref string) (Placed, error)
	// Dial connects with the API that a node's engine has for managers; see Tasks. The
	// connection can close its half with CloseWrite.
	Dial(ctx context.Context, node string) (net.Conn, error)
}

// Placed is the container of a task.
type Placed struct {
	Container string // id
	Node      string // id; "": it is here
	Task      string // id
}

// reached are the routes that reach containers of tasks on other nodes.
var reached = []struct{ method, pattern string }{
	{http.MethodGet, "/containers/{name...}/json"},
	{http.MethodGet, "/containers/{name...}/logs"},
	{http.MethodGet, "/containers/{name...}/top"},
	{http.MethodGet, "/containers/{name...}/stats"},
	{http.MethodHead, "/containers/{name...}/archive"},
	{http.MethodGet, "/containers/{name...}/archive"},
	{http.MethodPut, "/containers/{name...}/archive"},
	{http.MethodPost, "/containers/{name...}/exec"},
	{http.MethodPost, "/containers/{name...}/start"},
	{http.MethodPost, "/containers/{name...}/stop"},
	{http.MethodPost, "/containers/{name...}/restart"},
	{http.MethodPost, "/containers/{name...}/kill"},
	{http.MethodPost, "/containers/{name...}/pause"},
	{http.MethodPost, "/containers/{name...}/unpause"},
	{http.MethodPost, "/containers/{name...}/wait"},
	{http.MethodPost, "/exec/{id...}/start"},
	{http.MethodPost, "/exec/{id...}/resize"},
	{http.MethodGet, "/exec/{id...}/json"},
}

func (rt *route) reaches() bool {
	return slices.ContainsFunc(reached, func(o struct{ method, pattern string }) bool { return o.method == rt.method && o.pattern == rt.pattern })
}

// ofExec tells whether a route is about an exec rather than a container.
func (rt *route) ofExec() bool { return strings.HasPrefix(rt.pattern, "/exec/") }

// path is the route's path for another name.
func (rt *route) path(name string) string {
	open, end := strings.IndexByte(rt.pattern, '{'), strings.IndexByte(rt.pattern, '}')
	return rt.pattern[:open] + name + rt.pattern[end+1:]
}

// Tasks is the part of the API by which a manager reaches the containers of tasks here, and
// no others. Who may call it is for others to see to. As with Handler, hijacked connections
// end with Close.
func (s *Server) Tasks() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, s.tasks) })
}

// guarded are the routes of Tasks.
func (s *Server) guarded(all []route) (out []route) {
	for _, rt := range all {
		if !rt.reaches() {
			continue
		}
		here, exec := rt.handle, rt.ofExec()
		rt.handle = func(w *response, r *request) error {
			ref := r.name
			if exec {
				x, err := s.cfg.Containers.ExecGet(r.name)
				if err != nil {
					return err
				}
				ref = string(x.Container)
			}
			v, err := s.cfg.Containers.Get(ref)
			if err == nil && v.Owner == nil {
				err = errdefs.ErrNotFound.WithMessage("No such container: " + ref)
			}
			if err != nil {
				return err
			}
			return here(w, r)
		}
		out = append(out, rt)
	}
	return out
}

// reaching are all routes, of which some look elsewhere for what is not here.
func (s *Server) reaching(all []route) []route {
	out := slices.Clone(all)
	for i := range out {
		rt := out[i]
		switch {
		case !rt.reaches():
		case rt.ofExec():
			out[i].handle = func(w *response, r *request) error {
				if node, ok := s.far.nodeOf(r.name); ok {
					return s.far.exec(w, r, &rt, node)
				}
				return rt.handle(w, r)
			}
		default:
			out[i].handle = func(w *response, r *request) error { return s.far.reach(w, r, &rt) }
		}
	}
	return out
}

// maxExecs is how many execs on other nodes are remembered; those from before are forgotten.
const maxExecs = 4096

// far reaches containers on other nodes.
type far struct {
	s    *Server
	http *http.Transport

	mu    sync.Mutex
	nodes map[string]string // by exec
	order []string          // of execs, oldest first
}

func newFar(s *Server) *far {
	f := &far{s: s, nodes: map[string]string{}}
	f.http = &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeaderBytes,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			node, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return s.cfg.Elsewhere.Dial(ctx, node)
		},
	}
	return f
}

func (f *far) nodeOf(exec string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	node, ok := f.nodes[exec]
	return node, ok
}

// note remembers where an exec is.
func (f *far) note(exec, node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.order) >= maxExecs {
		delete(f.nodes, f.order[0])
		f.order = f.order[1:]
	}
	f.nodes[exec] = node
	f.order = append(f.order, exec)
}

// reach serves a request for a container that may be elsewhere. What is here comes first.
// To be inspected a task's container is not found by the task's id: that means the task.
func (f *far) reach(w *response, r *request, rt *route) error {
	if f.s.cfg.Elsewhere == nil {
		return rt.handle(w, r)
	}
	if _, err := f.s.cfg.Containers.Get(r.name); !errdefs.IsNotFound(err) {
		return rt.handle(w, r)
	}
	p, missed := f.s.cfg.Elsewhere.Find(r.name)
	switch {
	case errdefs.IsNotFound(missed), strings.HasPrefix(p.Task, r.name) && strings.HasSuffix(rt.pattern, "/json"):
		return rt.handle(w, r)
	case missed != nil:
		return missed
	case p.Node == "":
		r.name = p.Container
		return rt.handle(w, r)
	}
	var made func(*http.Response) error
	if strings.HasSuffix(rt.pattern, "/exec") {
		made = func(res *http.Response) error { return f.learn(res, p.Node) }
	}
	return f.forward(w, r, p.Node, rt.path(p.Container), nil, made)
}

// learn remembers the exec that was made.
func (f *far) learn(res *http.Response, node string) error {
	if res.StatusCode != http.StatusCreated {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	res.Body.Close()
	var made apicontainer.ExecCreateResponse
	if err == nil {
		err = json.Unmarshal(b, &made)
	}
	if err != nil || made.ID == "" {
		return fmt.Errorf("node %s: its answer cannot be read: %w", node, errdefs.ErrInternal)
	}
	f.note(made.ID, node)
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	res.Header.Set("Content-Length", strconv.Itoa(len(b)))
	return nil
}

// target is where a request goes on a node.
func target(r *request, node, path string) *url.URL {
	return &url.URL{Scheme: "http", Host: node, Path: "/v" + r.version.String() + path, RawQuery: r.URL.RawQuery}
}

// forward has another node answer; body, if there is one, is sent in the place of the
// client's, which was read. seen, if there is one, sees the answer before the client.
func (f *far) forward(w *response, r *request, node, path string, body []byte, seen func(*http.Response) error) (failed error) {
	to := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = target(r, node, path), node
			if body != nil {
				p.Out.Body, p.Out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			}
			p.Out.Header.Del("Origin") // it was looked at here
		},
		Transport: f.http, FlushInterval: -1, ErrorLog: slog.NewLogLogger(f.s.log.Handler(), slog.LevelDebug),
		ModifyResponse: func(res *http.Response) error {
			for name := range w.Header() { // the client talks to this engine
				res.Header.Del(name)
			}
			if seen != nil {
				return seen(res)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	to.ServeHTTP(w, r.Request)
	return failed
}

// exec serves a request for an exec on another node.
func (f *far) exec(w *response, r *request, rt *route, node string) error {
	path := rt.path(r.name)
	if !strings.HasSuffix(rt.pattern, "/start") {
		return f.forward(w, r, node, path, nil, nil)
	}
	var body apicontainer.ExecStartRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	if body.Detach {
		return f.forward(w, r, node, path, b, nil)
	}
	return f.s.hijack(w, r, streamRoute{stdin: true, tell: true, run: func(ctx context.Context, open func(bool) (io.ReadWriteCloser, error)) error {
		conn, in, err := f.start(ctx, r, node, path, b)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		st, err := open(body.Tty)
		if err != nil {
			return err
		}
		return join(st, conn, in)
	}})
}

// start has a node begin an exec, and gives the connection with it, and what came over it.
func (f *far) start(ctx context.Context, r *request, node, path string, body []byte) (net.Conn, io.Reader, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target(r, node, path).String(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	conn, err := f.s.cfg.Elsewhere.Dial(ctx, node)
	if err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	in := bufio.NewReader(conn)
	err = req.Write(conn)
	var res *http.Response
	if err == nil {
		res, err = http.ReadResponse(in, req)
	}
	if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
		err = refusal(res)
	}
	if err != nil {
		conn.Close()
		return nil, nil, cmp.Or(context.Cause(ctx), err)
	}
	return conn, in, nil
}

// refusal is the error that another engine answers with, with its status.
func refusal(res *http.Response) error {
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, maxBodySkip)) // what can be read of it will do
	var told common.ErrorResponse
	if json.Unmarshal(b, &told) != nil || told.Message == "" {
		told.Message = "the node's engine has answered " + res.Status
	}
	for _, k := range []struct {
		status int
		kind   error
	}{
		{http.StatusBadRequest, errdefs.ErrInvalidArgument}, {http.StatusNotFound, errdefs.ErrNotFound}, {http.StatusConflict, errdefs.ErrConflict},
		{http.StatusForbidden, errdefs.ErrPermissionDenied}, {http.StatusNotImplemented, errdefs.ErrNotImplemented}, {http.StatusServiceUnavailable, errdefs.ErrUnavailable},
	} {
		if k.status == res.StatusCode {
			return &kindError{kind: k.kind, msg: told.Message}
		}
	}
	return &kindError{kind: errdefs.ErrInternal, msg: told.Message}
}

// join passes on what a client and an exec say to each other, until the exec ends.
func join(st io.ReadWriteCloser, conn net.Conn, in io.Reader) error {
	var input sync.WaitGroup
	input.Go(func() {
		if _, err := io.Copy(conn, st); err != nil {
			return // the exec has ended, or its client has gone
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the exec may have ended
		}
	})
	_, err := io.Copy(st, in)
	conn.Close() // so that input under way ends
	if closed := st.Close(); err == nil {
		err = closed
	}
	input.Wait()
	return err
}
