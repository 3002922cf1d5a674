package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
)

// Server is a registry. It opens its directory at the first request.
type Server struct {
	cfg    Config
	log    *slog.Logger
	users  *passwords // nil: everybody
	now    func() time.Time
	leases *leases
	repos  repoLocks

	opening sync.Mutex
	store   *store
	app     http.Handler
	mirrors []*mirror
	closing []func() error

	collecting sync.Mutex // one at a time
}

// New checks a configuration. It reads the password file, and nothing else.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: c, log: c.Logger, now: time.Now, leases: newLeases(max(c.Grace, DefaultGrace), time.Now)}
	if len(c.Mirrors) > 0 {
		boundSilence()
	}
	for _, url := range c.Mirrors {
		s.mirrors = append(s.mirrors, &mirror{url: url, s: s})
	}
	if c.Htpasswd != "" {
		var err error
		if s.users, err = openPasswords(c.Htpasswd); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// open makes what a first request needs. An error is not for ever: the next
// request tries again.
func (s *Server) open(ctx context.Context) error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.app != nil {
		return nil
	}
	st, err := openStore(ctx, s.cfg.Root, s.cfg.S3)
	if err != nil {
		return err
	}
	secret, err := st.secret()
	if err != nil {
		st.lock.Close()
		return err
	}
	registerDisk()
	app, err := newApp(ctx, libraryConfig(st.driver, secret))
	if err != nil {
		st.lock.Close()
		return err
	}
	s.store, s.app = st, app
	s.closing = append(s.closing, app.Shutdown, st.lock.Close)
	return nil
}

func (s *Server) opened() bool {
	s.opening.Lock()
	defer s.opening.Unlock()
	return s.app != nil
}

// libraryConfig is what the library is told: no cache of what is there, since
// the collection goes past it, and no purge of uploads, since that is ours.
func libraryConfig(d storage, secret string) *configuration.Configuration {
	c := &configuration.Configuration{Storage: configuration.Storage{
		diskName:      {"disk": d},
		"delete":      {"enabled": true},
		"redirect":    {"disable": true},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.Validation.Manifests.URLs.Allow = []string{"^https?://"} // layers that others distribute
	c.HTTP.Secret = secret
	c.HTTP.RelativeURLs = true
	c.Catalog.MaxEntries = 1000
	return c
}

// newApp is the library's, which panics where others give an error.
func newApp(ctx context.Context, c *configuration.Configuration) (app *handlers.App, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("registry: %v", p)
		}
	}()
	// detached: what one request has opened serves the others too.
	return handlers.NewApp(context.WithoutCancel(ctx), c), nil
}

// Serve answers on l until ctx ends, and collects garbage by the clock if the
// configuration says so. Requests under way have five seconds to end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	log := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	hs := &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: log,
		// detached: requests under way when ctx ends are still to be answered.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) }}
	var wg sync.WaitGroup
	wg.Go(func() { s.collectByClock(ctx) })
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(l) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		// detached: the end of ctx is what begins it.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if hs.Shutdown(end) != nil {
			hs.Close()
		}
	}
	if ctx.Err() != nil {
		err = nil
		wg.Wait()
	}
	return errors.Join(err, s.close())
}

func (s *Server) close() error {
	s.opening.Lock()
	defer s.opening.Unlock()
	var errs []error
	for _, c := range s.closing {
		errs = append(errs, c())
	}
	s.closing = nil
	return errors.Join(errs...)
}

// ServeHTTP answers the distribution API, and our own below /v2/_escale/.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := s.now()
	rec := record(w, false)
	s.answer(rec, r)
	s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "from", r.RemoteAddr, "took", s.now().Sub(began))
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" {
		s.health(w, r)
		return
	}
	if !s.admit(w, r) {
		return
	}
	if err := s.open(r.Context()); err != nil {
		s.fail(w, r, err)
		return
	}
	if r.URL.Path == gcPath {
		s.serveCollect(w, r)
		return
	}
	at, ok := parseRoute(r.URL.Path)
	if !ok {
		refuse(w, http.StatusBadRequest, codeName, "invalid repository name")
		return
	}
	switch at.kind {
	case referrers:
		s.serveReferrers(w, r, at)
	case manifests:
		s.serveManifest(w, r, at)
	case blobs:
		s.serveBlob(w, r, at)
	case uploads:
		s.serveUpload(w, r, at)
	case tags:
		s.elsewhere(w, r, at)
	default:
		s.answerOther(w, r)
	}
}

// answerOther answers the base and the catalog. Nothing else reaches the library:
// what it would do there no lease would know of.
func (s *Server) answerOther(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/v2", "/v2/", "/v2/_catalog":
		s.app.ServeHTTP(w, r)
	default:
		refuse(w, http.StatusNotFound, codeUnsupported, "no such page: "+r.URL.Path)
	}
}

// health answers whether the registry can work: its directory is there and takes
// what is written.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	err := s.open(r.Context())
	if err == nil {
		const probe = "/health-probe"
		if err = s.store.driver.PutContent(r.Context(), probe, []byte("ok")); err == nil {
			err = s.store.remove(r.Context(), probe)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		s.log.Error("health", "error", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, `{"status":"down"}`)
		return
	}
	fmt.Fprintln(w, `{"status":"up"}`)
}
