package engine

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"escale.dev/escale/internal/sys/errtext"
)

// handler answers one route. An error it returns becomes the answer unless one
// has begun.
type handler func(w *response, r *request) error

// route says which requests a handler answers. A pattern may hold one variable:
// {name} is one path element, {name...} may hold slashes, or nothing.
type route struct {
	method  string
	pattern string
	handle  handler
}

// match tells whether path fits the pattern, and what its variable is.
func (rt *route) match(path string) (string, bool) {
	open := strings.IndexByte(rt.pattern, '{')
	if open < 0 {
		return "", path == rt.pattern
	}
	end := strings.IndexByte(rt.pattern, '}')
	prefix, suffix := rt.pattern[:open], rt.pattern[end+1:]
	if len(path) < len(prefix)+len(suffix) || !strings.HasPrefix(path, prefix) || !strings.HasSuffix(path, suffix) {
		return "", false
	}
	v := path[len(prefix) : len(path)-len(suffix)]
	if !strings.HasSuffix(rt.pattern[open:end], "...") && (v == "" || strings.IndexByte(v, '/') >= 0) {
		return "", false
	}
	return v, true
}

// request is a request with what the router found out about it.
type request struct {
	*http.Request
	version version // of the API the client speaks
	name    string  // the pattern's variable
	query   params
}

// response knows whether an answer has begun.
type response struct {
	http.ResponseWriter
	status int // 0: not begun
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// flush sends what is written so far.
func (w *response) flush() error {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// serve is the whole of the API, or of what some may use of it: headers, version, route,
// handler, log line.
func (s *Server) serve(rw http.ResponseWriter, hr *http.Request, routes []route) {
	begin := time.Now()
	s.cfg.Activity()
	defer s.cfg.Activity()
	w := &response{ResponseWriter: rw}
	r := &request{Request: hr}
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.log.Error("panic in handler", "method", hr.Method, "path", hr.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if w.status == 0 {
				writeMessage(w, http.StatusInternalServerError, "internal error: the request was not completed, see the engine's log")
			} else if w.status != http.StatusSwitchingProtocols {
				panic(http.ErrAbortHandler) // a cut-off answer must not look whole
			}
		}
		s.log.Debug("request", "method", hr.Method, "path", hr.URL.Path, "status", w.status, "took", time.Since(begin))
	}()
	if err := s.dispatch(w, r, routes); err != nil {
		s.answerError(w, r, err)
	}
}

// answerError turns a handler's error into the answer, if that can still be.
func (s *Server) answerError(w *response, r *request, err error) {
	if w.status != 0 {
		s.log.Debug("request ended early", "path", r.URL.Path, "error", err)
		return
	}
	if gone := r.Context().Err(); gone != nil && errors.Is(err, gone) {
		s.log.Debug("client left", "path", r.URL.Path)
		return
	}
	status := statusOf(err)
	if status >= http.StatusInternalServerError && status != http.StatusNotImplemented {
		s.log.Error("request refused", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	if status == http.StatusNotModified {
		w.WriteHeader(status) // such an answer has no body
		return
	}
	writeMessage(w, status, errtext.Of(err))
}

// dispatch finds the version and the route.
func (s *Server) dispatch(w *response, r *request, routes []route) error {
	ping := s.cfg.System.Ping()
	h := w.Header()
	h["Api-Version"] = []string{newest.String()}
	h["Docker-Experimental"] = []string{boolWord(ping.Experimental)}
	h["Ostype"] = []string{ping.OSType}
	h["Server"] = []string{"Escale/" + s.cfg.Version + " (" + ping.OSType + ")"}

	if err := checkOrigin(r.Request); err != nil {
		return err
	}
	path := r.URL.Path
	if clean := cleanPath(path); clean != path && r.Method != http.MethodConnect {
		w.Header()["Location"] = []string{(&url.URL{Path: clean, RawQuery: r.URL.RawQuery}).String()}
		w.WriteHeader(http.StatusMovedPermanently)
		return nil
	}
	if r.Method == http.MethodOptions { // whatever the path
		w.WriteHeader(http.StatusOK)
		return nil
	}
	word, rest, versioned := cutVersion(path)
	r.version = newest
	if versioned {
		path = rest
	}
	for i := range routes {
		rt := &routes[i]
		if rt.method != r.Method {
			continue
		}
		name, ok := rt.match(path)
		if !ok {
			continue
		}
		if versioned {
			v, err := negotiate(word)
			if err != nil && tooOld(word) {
				// So old a client shows the body as it is.
				http.Error(w, err.Error(), statusOf(err))
				return nil
			}
			if err != nil {
				return err
			}
			r.version = v
		}
		query, err := parseParams(r.URL.RawQuery)
		if err != nil {
			return err
		}
		r.name, r.query = name, query
		return rt.handle(w, r)
	}
	writeMessage(w, http.StatusNotFound, "page not found")
	return nil
}

// cleanPath is the path without "//", "/./" and "/../"; a slash at its end stays.
func cleanPath(p string) string {
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

func boolWord(b bool) string {
	if b {
		return "true"
	}
	return "false"
}
