package engine

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"

	ask "escale.dev/escale/internal/builder/request"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
)

// buildRoutes answer for builds.
type buildRoutes struct{ *Server }

func (b buildRoutes) routes() []route {
	return []route{
		{http.MethodPost, "/build", b.build},
		{http.MethodPost, "/build/cancel", b.cancel},
		{http.MethodPost, "/build/prune", b.prune},
		{http.MethodPost, "/session", b.session},
		{http.MethodPost, "/grpc", b.grpc},
	}
}

// build runs a build. What goes wrong after the answer has begun is told in it.
func (b buildRoutes) build(w *response, r *request) error {
	o, err := buildOptions(r)
	if err != nil {
		return err
	}
	if o.Context != nil {
		defer drain(w, r)()
	}
	out := &buildStream{progress: &progressStream{w: w}, quiet: r.query.bool("q")}
	err = b.cfg.Builder.Build(r.Context(), o, out)
	if err == nil {
		out.done()
		return nil
	}
	if !out.progress.begun() && statusOf(err) == http.StatusBadRequest {
		return err
	}
	out.fail(err)
	return nil
}

// request is the router's request, whose name the builder's package has too.

func (b buildRoutes) cancel(w *response, r *request) error {
	id := r.query.get("id")
	if id == "" {
		return invalidf("build ID not specified")
	}
	b.cfg.Builder.Cancel(id)
	w.WriteHeader(http.StatusOK)
	return nil
}

func (b buildRoutes) session(w *response, r *request) error {
	return b.cfg.Builder.ServeSession(r.Context(), taker{w}, r.Request)
}

func (b buildRoutes) grpc(w *response, r *request) error {
	return b.cfg.Builder.ServeGRPC(r.Context(), taker{w}, r.Request)
}

// taker lets the builder take a connection over.
type taker struct{ *response }

// Hijack implements http.Hijacker.
func (t taker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err == nil {
		t.status = http.StatusSwitchingProtocols
	}
	return conn, buf, err
}

// buildStream tells of a build in lines of JSON.
type buildStream struct {
	progress *progressStream
	quiet    bool
	id       string
}

// Stream implements ask.Told.
func (s *buildStream) Stream(text string) {
	if !s.quiet {
		s.progress.send(progressLine{Message: jsonstream.Message{Stream: text}})
	}
}

// Aux implements ask.Told.
func (s *buildStream) Aux(id string, value any) {
	if v, ok := value.(ask.ImageID); ok {
		s.id = v.ID
	}
	data, err := json.Marshal(value)
	if err != nil {
		return
	}
	raw := json.RawMessage(data)
	s.progress.send(progressLine{Message: jsonstream.Message{ID: id, Aux: &raw}})
}

func (s *buildStream) done() {
	if s.quiet && s.id != "" {
		s.progress.send(progressLine{Message: jsonstream.Message{Stream: s.id + "\n"}})
	}
}

// fail tells the error, with the code of the step that failed.
func (s *buildStream) fail(err error) {
	var step *ask.StepError
	if !errors.As(err, &step) {
		s.progress.fail(err)
		return
	}
	s.progress.send(progressLine{Message: jsonstream.Message{Error: &jsonstream.Error{Code: step.Code, Message: step.Error()}}, Text: step.Error()})
}

// buildOptions reads the query and the headers of a build.
func buildOptions(r *request) (ask.Build, error) {
	q := r.query
	o := ask.Build{
		ID: q.get("buildid"), Session: q.get("session"), Remote: q.get("remote"), Dockerfile: q.get("dockerfile"), Tags: q.all("t"),
		Target: q.get("target"), NoCache: q.bool("nocache"), Pull: q.bool("pull"), Platform: q.get("platform"), Network: q.get("networkmode"),
		ExtraHosts: q.all("extrahosts"), CpusetCpus: q.get("cpusetcpus"), CpusetMems: q.get("cpusetmems"), CgroupParent: q.get("cgroupparent"),
	}
	switch version := q.get("version"); {
	case version != "" && version != "1" && version != "2":
		return o, invalidf("invalid version %q", version)
	case q.bool("squash"):
		return o, invalidf("squash is only supported with experimental mode")
	case q.get("isolation") != "" && q.get("isolation") != "default":
		return o, invalidf("unsupported isolation: %q", q.get("isolation"))
	case o.Remote == "client-session" && o.Session == "":
		return o, invalidf("a context in the client's session needs the session's id")
	case o.Remote == "upload-request":
		return o, invalidf("a context in a request of its own is not supported: send it with this one")
	case version == "2" && o.Remote == "":
		return o, invalidf("version 2 needs a context in the client's session")
	case o.Remote == "":
		o.Context = r.Body
	}
	for key, to := range map[string]*int64{
		"memory": &o.Memory, "memswap": &o.MemorySwap, "cpushares": &o.CPUShares, "cpuperiod": &o.CPUPeriod, "cpuquota": &o.CPUQuota, "shmsize": &o.ShmSize,
	} {
		n, err := q.int(key)
		if err != nil {
			return o, err
		}
		if n != nil {
			*to = int64(*n)
		}
	}
	for key, to := range map[string]any{"buildargs": &o.Args, "labels": &o.Labels, "cachefrom": &o.CacheFrom, "outputs": &o.Outputs, "ulimits": &[]*units.Ulimit{}} {
		text := q.get(key)
		if text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(text), to); err != nil {
			return o, invalidf("error reading %s: %s", key, err)
		}
		if u, ok := to.(*[]*units.Ulimit); ok {
			if slices.Contains(*u, nil) {
				return o, invalidf("error reading %s: null is no limit", key)
			}
			o.Ulimits = *u
		}
	}
	var err error
	o.Auth, err = registryConfig(r.Header.Get("X-Registry-Config"))
	return o, err
}

// registryConfig reads the credentials of a build: JSON in base64 for URLs.
func registryConfig(header string) (map[string]registry.AuthConfig, error) {
	if header == "" {
		return nil, nil
	}
	var auth map[string]registry.AuthConfig
	dec := json.NewDecoder(base64.NewDecoder(base64.URLEncoding, strings.NewReader(header)))
	if err := dec.Decode(&auth); err != nil {
		return nil, invalidf("invalid X-Registry-Config: %s", err)
	}
	return auth, nil
}
