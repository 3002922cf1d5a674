// Package peer is what nodes say to each other: HTTP/2 over mutual TLS on port 7946. Any
// node of the cluster may fetch images of any other; managers alone may read logs of tasks
// and reach their containers. The Server is a node's; the Dialer calls those of others, and
// believes only the node that it wanted to call. What comes is checked by its digest, or
// bounded and parsed: another node may have fallen into wrong hands.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

// Port is the TCP port of every node on which others call it.
const Port = 7946

// Images are those that a node has for others.
type Images interface {
	// Find tells of an image. NotFound, InvalidArgument.
	Find(ctx context.Context, w image.Wanted) (image.Held, error)
	// Part opens a blob of an image. NotFound.
	Part(ctx context.Context, id, d digest.Digest) (content.ReaderAt, error)
}

// Logs opens logs of the containers of tasks, and of no others. NotFound.
type Logs interface {
	Open(ctx context.Context, container string, o logs.ReadOptions) (logs.Reader, error)
}

// Config is what a Server needs. Keeper, Check, Images, Tasks, Logs and Log must be set.
type Config struct {
	Keeper *ca.Keeper
	// Check refuses a node that is none of the cluster's any more, or has another role now.
	// It does not block.
	Check  func(ca.Peer) error
	Images Images
	Logs   Logs
	// Volumes are those that can be moved; nil: none can.
	Volumes Volumes
	// Tasks is the engine's API for the containers of tasks, as managers are given it. Its
	// requests come over connections that it may take over.
	Tasks http.Handler
	// Holders tells which nodes have an image; nil: this one does not know them.
	Holders func(ctx context.Context, w image.Wanted) (Found, error)
	Log     *slog.Logger
}

// What is taken and given at most.
const (
	maxHeader  = 64 << 10         // bytes
	maxStreams = 512              // at once, of a connection
	maxUploads = 32               // blobs at once, of a node; others wait
	headWait   = 10 * time.Second // for the handshake, and for the head of a request
	idleWait   = 2 * time.Minute
	queueWait  = 10 * time.Second // for a turn to be sent a blob
	sendWait   = 30 * time.Second // for a node to take a piece of it
	pingEvery  = 15 * time.Second // of silence, after which a node is asked whether it lives
	pingWait   = 10 * time.Second
	stillEvery = 10 * time.Second // in which who is connected is looked at again
)

// Server answers other nodes.
type Server struct {
	cfg     Config
	uploads *semaphore.Weighted
	engine  *handed
}

// New makes a Server; nothing happens before Serve.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, uploads: semaphore.NewWeighted(maxUploads), engine: newHanded()}
}

// Serve answers on a listener of plain TCP until ctx ends, and blocks. It closes the
// listener, and what is under way.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	only := new(http.Protocols)
	only.SetHTTP2(true)
	front := &http.Server{
		Handler: s.Handler(), TLSConfig: s.cfg.Keeper.ServerOfNodes(s.cfg.Check), Protocols: only,
		ReadHeaderTimeout: headWait, IdleTimeout: idleWait, MaxHeaderBytes: maxHeader,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: pingEvery, PingTimeout: pingWait},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	// The engine's API speaks HTTP/1.1 within streams of the other: only there can a
	// connection be taken over.
	back := &http.Server{
		Handler: s.cfg.Tasks, ReadHeaderTimeout: headWait, MaxHeaderBytes: maxHeader, ErrorLog: front.ErrorLog, BaseContext: front.BaseContext,
	}
	back.SetKeepAlivesEnabled(false)
	in := s.engine.listener(ctx)
	parts.Go(func() { _ = back.Serve(in) }) // it ends with the listener
	defer back.Close()
	defer context.AfterFunc(ctx, func() { front.Close() })()
	err := front.ServeTLS(l, "", "")
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Paths. What changes so that a node of another version would misunderstand it gets a
// path of its own.
const (
	pathImage   = "/peer/1/image"
	pathPart    = "/peer/1/part"
	pathHolders = "/peer/1/holders"
	pathLogs    = "/peer/1/logs"
	pathTasks   = "/peer/1/tasks"
	pathVolumes = "/peer/1/volumes"
	pathVolume  = "/peer/1/volume"
)

// Handler answers requests that came over TLS.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+pathImage, s.admit(false, s.image))
	mux.Handle("GET "+pathPart, s.admit(false, s.part))
	mux.Handle("GET "+pathHolders, s.admit(false, s.holders))
	mux.Handle("GET "+pathLogs, s.admit(true, s.logs))
	mux.Handle("POST "+pathTasks, s.admit(true, s.tasks))
	if s.cfg.Volumes != nil {
		mux.Handle("GET "+pathVolumes, s.admit(true, s.volumes))
		mux.Handle("POST "+pathVolume, s.admit(true, s.volumeStep))
		mux.Handle("GET "+pathVolume, s.admit(false, s.volumeContent))
	}
	return mux
}

// admit lets nodes of the cluster in, or managers only, and cuts them off when they are
// not that any more. What goes on for long heeds the request's context.
func (s *Server) admit(managers bool, answer func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.may(managers, r); err != nil {
			refuse(w, err)
			return
		}
		ctx, cut := context.WithCancelCause(r.Context())
		defer cut(nil)
		go s.watch(ctx, cut, managers, r)
		if err := answer(w, r.WithContext(ctx)); err != nil {
			refuse(w, err)
		}
	})
}

// may tells whether the caller may ask. Unauthenticated or PermissionDenied.
func (s *Server) may(managers bool, r *http.Request) error {
	if r.TLS == nil || r.ProtoMajor != 2 {
		return fmt.Errorf("nodes speak HTTP/2 over TLS: %w", errdefs.ErrUnauthenticated)
	}
	p, err := s.cfg.Keeper.PeerOf(*r.TLS)
	if err != nil {
		return err
	}
	if time.Now().After(p.Expires) {
		return fmt.Errorf("node %s: its certificate has expired: %w", p.Node, errdefs.ErrUnauthenticated)
	}
	if err := s.cfg.Check(p); err != nil {
		return err
	}
	if managers && p.Role != ca.Manager {
		return fmt.Errorf("node %s is no manager: %w", p.Node, errdefs.ErrPermissionDenied)
	}
	return nil
}

// watch cuts a caller off who may not ask any more. It blocks until ctx ends.
func (s *Server) watch(ctx context.Context, cut context.CancelCauseFunc, managers bool, r *http.Request) {
	t := time.NewTicker(stillEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.may(managers, r); err != nil {
				cut(err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// statuses are those of kinds of errors, both ways.
var statuses = []struct {
	status int
	err    error
	is     func(error) bool
}{
	{http.StatusBadRequest, errdefs.ErrInvalidArgument, errdefs.IsInvalidArgument},
	{http.StatusUnauthorized, errdefs.ErrUnauthenticated, errdefs.IsUnauthorized},
	{http.StatusForbidden, errdefs.ErrPermissionDenied, errdefs.IsPermissionDenied},
	{http.StatusNotFound, errdefs.ErrNotFound, errdefs.IsNotFound},
	{http.StatusConflict, errdefs.ErrConflict, errdefs.IsConflict},
	{http.StatusPreconditionFailed, errdefs.ErrAlreadyExists, errdefs.IsAlreadyExists},
	{http.StatusNotImplemented, errdefs.ErrNotImplemented, errdefs.IsNotImplemented},
	{http.StatusServiceUnavailable, errdefs.ErrUnavailable, errdefs.IsUnavailable},
	{http.StatusInternalServerError, errdefs.ErrInternal, func(error) bool { return true }},
}

// maxWords bounds an error that a node tells, in bytes.
const maxWords = 4 << 10

// refuse answers with an error.
func refuse(w http.ResponseWriter, err error) {
	for _, k := range statuses {
		if k.is(err) {
			h := w.Header()
			h.Set("Content-Type", "text/plain; charset=utf-8")
			h.Del("Content-Length")
			w.WriteHeader(k.status)
			words := err.Error()
			_, _ = w.Write([]byte(words[:min(len(words), maxWords)])) // who has gone misses it
			return
		}
	}
}
