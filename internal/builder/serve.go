package builder

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"escale.dev/escale/internal/builder/request"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/moby/api/types/registry"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// newServer makes the gRPC server of BuildKit's API.
func newServer() *grpc.Server {
	return grpc.NewServer(
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
}

// ServeSession takes a connection over as a client's session: its contexts,
// secrets and outputs. It blocks until the client leaves or ctx ends. Kind:
// InvalidArgument, before the connection was taken over.
func (b *Builder) ServeSession(ctx context.Context, w request.Hijacker, r *http.Request) error {
	if err := upgrade(r); err != nil {
		return err
	}
	k, err := b.start()
	if err != nil {
		return err
	}
	ctx, done := b.within(ctx)
	defer done()
	return k.sessions.HandleHTTPRequest(ctx, w, r)
}

// ServeGRPC takes a connection over for BuildKit's gRPC API. It blocks until the
// client leaves or ctx ends. Kind: InvalidArgument, before the connection was
// taken over.
func (b *Builder) ServeGRPC(ctx context.Context, w request.Hijacker, r *http.Request) error {
	if err := upgrade(r); err != nil {
		return err
	}
	k, err := b.start()
	if err != nil {
		return err
	}
	// What a client builds over it is not seen one by one.
	if err := b.begin(ctx); err != nil {
		return err
	}
	defer b.end()
	ctx, done := b.within(ctx)
	defer done()
	conn, buf, err := w.Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")); err != nil {
		return nil // the client has gone
	}
	early, _ := buf.Reader.Peek(buf.Reader.Buffered())
	quiet := &http.Server{ErrorLog: slog.NewLogLogger(b.log.Handler(), slog.LevelDebug)}
	//lint:ignore SA1019 net/http does not serve HTTP/2 without TLS on a connection that was taken over
	server := &http2.Server{}
	//lint:ignore SA1019 as above
	server.ServeConn(&begun{Conn: conn, early: append([]byte(nil), early...)}, &http2.ServeConnOpts{Context: ctx, BaseConfig: quiet, Handler: k.server})
	return nil
}

// within ends a context with the builder too.
func (b *Builder) within(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(b.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// upgrade refuses requests that do not turn their connection into HTTP/2.
func upgrade(r *http.Request) error {
	switch proto := r.Header.Get("Upgrade"); {
	case proto == "":
		return errdefs.ErrInvalidArgument.WithMessage("no upgrade proto in request")
	case !strings.EqualFold(proto, "h2c"):
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("protocol %s not supported", proto))
	}
	return nil
}

// begun is a connection of which something was read already.
type begun struct {
	net.Conn
	early []byte
}

func (c *begun) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// credentials answers BuildKit's questions for credentials with those that came
// with a request.
type credentials struct {
	auth.UnimplementedAuthServer
	auth map[string]registry.AuthConfig
}

// Register implements session.Attachable.
func (c credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

// Credentials implements auth.AuthServer.
func (c credentials) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	hosts := []string{r.Host, "https://" + r.Host, "http://" + r.Host}
	if r.Host == "registry-1.docker.io" {
		hosts = append(hosts, "https://index.docker.io/v1/", "docker.io")
	}
	for _, h := range hosts {
		a, ok := c.auth[h]
		switch {
		case !ok:
		case a.IdentityToken != "":
			return &auth.CredentialsResponse{Secret: a.IdentityToken}, nil
		default:
			return &auth.CredentialsResponse{Username: a.Username, Secret: a.Password}, nil
		}
	}
	return &auth.CredentialsResponse{}, nil
}

// sink is the engine's end of a stream of BuildKit's answers, with no gRPC
// between.
type sink[T any] struct {
	ctx  context.Context
	send func(*T) error
}

func (s *sink[T]) Send(m *T) error { return s.send(m) }

// SendMsg implements grpc.ServerStream.
func (s *sink[T]) SendMsg(m any) error {
	if one, ok := m.(*T); ok {
		return s.send(one)
	}
	return fmt.Errorf("a message of type %T: %w", m, errdefs.ErrInternal)
}

func (s *sink[T]) Context() context.Context     { return s.ctx }
func (s *sink[T]) SetHeader(metadata.MD) error  { return nil }
func (s *sink[T]) SendHeader(metadata.MD) error { return nil }
func (s *sink[T]) SetTrailer(metadata.MD)       {}
func (s *sink[T]) RecvMsg(any) error            { return errdefs.ErrNotImplemented }
