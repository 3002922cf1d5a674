package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"escale.dev/escale/internal/container"
	"golang.org/x/sync/singleflight"
)

// Bounds on what a client may cost before its request is understood.
const (
	maxHeaderBytes    = 256 << 10 // X-Registry-Config may carry the logins of many registries
	readHeaderTimeout = 15 * time.Second
	closeGrace        = 3 * time.Second // for requests under way when the server closes
)

// Config is what a Server needs. Containers, Archives, Watching, Updates, Images,
// Volumes, VolumeCopies, Plugins, Networks, Registries, Builder, System, SafeMode, Apps, Swarm, Backups, Moves, Events and Logger must be set.
type Config struct {
	Containers   Containers
	Archives     Archives
	Watching     Watching
	Updates      Updates
	Images       Images
	Volumes      Volumes
	VolumeCopies VolumeCopies
	Plugins      Plugins
	Networks     Networks
	Registries   Registries
	Builder      Builder
	System       System
	SafeMode     SafeMode
	Apps         Apps
	Swarm        Swarm
	Backups      Backups
	Moves        Moves
	Keeper       Keeper    // nil: nobody keeps containers
	Elsewhere    Elsewhere // nil: containers are here or nowhere
	Events       Events
	Logger       *slog.Logger

	Version       string // of the engine, for the Server header
	ContainerDir  string // <ContainerDir>/<id>/ has a container's hostname, hosts and resolv.conf
	StorageDriver string // shown as Driver of containers and images; "" is "overlayfs"
	Debug         bool   // serve /debug: profiles and counters of the engine
	// Sandbox tells the identity and the namespace handle of a running
	// container's network stack; nil: they are shown empty.
	Sandbox func(id container.ID) (sandboxID, path string)
	// Activity is told when a request begins and when it ends; it does not block. nil: nobody is told.
	Activity func()
}

// Server answers the Docker Engine API. It is made by New and serves any number
// of listeners.
type Server struct {
	cfg    Config
	log    *slog.Logger
	routes []route
	tasks  []route // that managers may use from other nodes
	far    *far

	mu       sync.Mutex
	closed   bool
	cancels  map[*http.Server]context.CancelFunc
	hijacked map[aborter]struct{}
	streams  sync.WaitGroup // handlers of hijacked connections
}

// aborter is a connection taken over from HTTP, which Close ends.
type aborter interface{ abort() }

// New makes a Server; nothing is opened or started.
func New(cfg Config) *Server {
	if cfg.StorageDriver == "" {
		cfg.StorageDriver = "overlayfs"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Activity == nil {
		cfg.Activity = func() {}
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger.With("component", "api"),
		cancels: map[*http.Server]context.CancelFunc{}, hijacked: map[aborter]struct{}{},
	}
	s.far = newFar(s)
	own := s.table()
	s.tasks, s.routes = s.guarded(own), s.reaching(own)
	return s
}

// table joins the routes of all groups.
func (s *Server) table() []route {
	sys := systemRoutes{s}
	con := containerRoutes{s}
	var all []route
	all = append(all, sys.routes()...)
	all = append(all, con.routes()...)
	all = append(all, watchRoutes{s}.routes()...)
	all = append(all, updateRoutes{s}.routes()...)
	all = append(all, archiveRoutes{s}.routes()...)
	all = append(all, execRoutes{s}.routes()...)
	all = append(all, imageRoutes{s}.routes()...)
	all = append(all, transferRoutes{imageRoutes{s}}.routes()...)
	all = append(all, buildRoutes{s}.routes()...)
	all = append(all, debugRoutes{s}.routes()...)
	all = append(all, volumeRoutes{s, new(sync.Mutex)}.routes()...)
	all = append(all, networkRoutes{s}.routes()...)
	all = append(all, dfRoutes{s, new(singleflight.Group)}.routes()...)
	all = append(all, safeRoutes{s}.routes()...)
	all = append(all, copyRoutes{archiveRoutes{s}}.routes()...)
	all = append(all, pluginRoutes{s}.routes()...)
	all = append(all, appRoutes{s}.routes()...)
	all = append(all, moveRoutes{s}.routes()...)
	all = append(all, swarmRoutes{s}.routes()...)
	all = append(all, clusterRoutes{archiveRoutes{s}}.routes()...)
	all = append(all, nodeRoutes{s}.routes()...)
	all = append(all, serviceRoutes{s}.routes()...)
	all = append(all, secretRoutes{s}.routes()...)
	return all
}

// Handler is the API as an http.Handler. Hijacked connections of a handler that
// Serve does not run end with Close.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, s.routes) })
}

// Serve answers the connections of l until ctx ends or Close is called; then it
// lets requests finish for a moment, ends streams, and returns nil. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: readHeaderTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	s.cancels[srv] = cancel
	s.mu.Unlock()

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		// detached: ctx has ended, what is under way gets a moment more
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
		defer done()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(l)
	cancel()
	<-stopped
	s.mu.Lock()
	delete(s.cancels, srv)
	s.mu.Unlock()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends every Serve and every attached client. It blocks until hijacked
// connections are done. Idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, cancel := range s.cancels {
		cancel()
	}
	for st := range s.hijacked {
		st.abort()
	}
	s.mu.Unlock()
	s.streams.Wait()
	return nil
}
