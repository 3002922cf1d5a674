package builder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"escale.dev/escale/internal/builder/request"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"google.golang.org/protobuf/proto"
)

// errCanceled is why a build ended that a client canceled by its id.
var errCanceled = errors.New("build canceled")

// sessionContext is the Remote of a build whose context is in the client's session.
const sessionContext = "client-session"

// Build builds, and tells how it goes on. It blocks until the image is there.
// told.Stream gets the classic builder's text; with a session and no context in
// the request it gets BuildKit's own messages instead. An error before anything
// was told is of kind InvalidArgument, NotFound or Unavailable; a step that ended
// with a code is a *request.StepError.
func (b *Builder) Build(ctx context.Context, o request.Build, told request.Told) error {
	if o.Context != nil {
		defer o.Context.Close()
	}
	o.ExtraHosts = b.cfg.reach(o.ExtraHosts)
	solve, err := solveRequest(&o)
	if err != nil {
		return err
	}
	k, err := b.start()
	if err != nil {
		return err
	}
	if err := b.begin(ctx); err != nil {
		return err
	}
	defer b.end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.ctx, func() { cancel(errdefs.ErrUnavailable.WithMessage("the engine is shutting down")) })()
	if o.ID != "" {
		if err := b.remember(o.ID, cancel); err != nil {
			return err
		}
		defer b.forget(o.ID)
	}
	if o.Remote != sessionContext {
		if err := k.ownSession(ctx, &o, solve); err != nil {
			return err
		}
	}
	err = k.run(ctx, solve, o, told)
	if cause := context.Cause(ctx); err != nil && cause != nil && ctx.Err() != nil {
		return cause
	}
	return err
}

func (b *Builder) remember(id string, cancel context.CancelCauseFunc) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.builds[id] != nil {
		return fmt.Errorf("build %s is under way: %w", id, errdefs.ErrAlreadyExists)
	}
	b.builds[id] = cancel
	return nil
}

func (b *Builder) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.builds, id)
}

// Cancel ends the build with this id; that there is none is fine.
func (b *Builder) Cancel(id string) {
	b.mu.Lock()
	cancel := b.builds[id]
	b.mu.Unlock()
	if cancel != nil {
		cancel(errCanceled)
	}
}

// ownSession serves a context that came in the request, and the credentials, as
// a client's session would.
func (k *kit) ownSession(ctx context.Context, o *request.Build, solve *control.SolveRequest) error {
	s, err := session.NewSession(ctx, "")
	if err != nil {
		return err
	}
	s.Allow(credentials{auth: o.Auth})
	if o.Context != nil {
		up := uploadprovider.New()
		solve.FrontendAttrs["context"] = up.Add(newPlainContext(o.Context))
		s.Allow(up)
	}
	solve.Session = s.ID()
	go func() {
		// It ends with ctx.
		_ = s.Run(ctx, func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _ = k.sessions.HandleConn(ctx, ours, meta) }()
			return theirs, nil
		})
	}()
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return nil
}

// run solves and tells.
func (k *kit) run(ctx context.Context, solve *control.SolveRequest, o request.Build, told request.Told) error {
	text := &classic{told: told}
	show := text.show
	if o.Remote == sessionContext {
		show = func(r *control.StatusResponse) error {
			data, err := proto.Marshal(r)
			if err == nil {
				told.Aux("moby.buildkit.trace", data)
			}
			return err
		}
	}
	watched := make(chan error, 1)
	go func() {
		watched <- k.control.Status(&control.StatusRequest{Ref: solve.Ref}, &sink[control.StatusResponse]{ctx: ctx, send: show})
	}()
	resp, err := k.control.Solve(ctx, solve)
	if err != nil {
		if ctx.Err() == nil {
			<-watched // what the failed step said comes first
			text.finish()
			if lines := excerpt(err); lines != "" && o.Remote != sessionContext {
				told.Stream(lines)
			}
		}
		return buildError(err)
	}
	<-watched // an error of it is an error of telling: the image is there all the same
	text.finish()
	id := resp.ExporterResponse["containerimage.config.digest"]
	if id == "" {
		return nil
	}
	if o.Remote == sessionContext {
		told.Aux("moby.image.id", request.ImageID{ID: id})
		return nil
	}
	told.Aux("", request.ImageID{ID: id})
	text.built(id, o.Tags)
	return nil
}

// solveRequest puts what a client asks into BuildKit's words, and refuses what
// cannot be.
func solveRequest(o *request.Build) (*control.SolveRequest, error) {
	attrs := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	number := func(key string, n int64) {
		if n != 0 {
			attrs[key] = strconv.FormatInt(n, 10)
		}
	}
	set("filename", o.Dockerfile)
	set("target", o.Target)
	set("cache-from", strings.Join(o.CacheFrom, ","))
	set("cgroup-parent", o.CgroupParent)
	set("cpusetcpus", o.CpusetCpus)
	set("cpusetmems", o.CpusetMems)
	number("memory", o.Memory)
	number("memswap", o.MemorySwap)
	number("cpushares", o.CPUShares)
	number("cpuperiod", o.CPUPeriod)
	number("cpuquota", o.CPUQuota)
	number("shm-size", o.ShmSize)
	for k, v := range o.Args {
		if v != nil {
			attrs["build-arg:"+k] = *v
		}
	}
	for k, v := range o.Labels {
		attrs["label:"+k] = v
	}
	if o.NoCache {
		attrs["no-cache"] = ""
	}
	if o.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if o.Platform != "" {
		p, err := platforms.Parse(o.Platform)
		if err != nil {
			return nil, invalid("%s", err)
		}
		attrs["platform"] = platforms.Format(p)
	}
	if o.Remote != "" && o.Remote != sessionContext {
		attrs["context"] = o.Remote
	}
	var ulimits []string
	for _, u := range o.Ulimits {
		ulimits = append(ulimits, u.String())
	}
	set("ulimit", strings.Join(ulimits, ","))
	solve := &control.SolveRequest{Ref: o.ID, Session: o.Session, Frontend: "dockerfile.v0", FrontendAttrs: attrs, Internal: o.Remote != sessionContext}
	if solve.Ref == "" {
		solve.Ref = identity.NewID()
	}
	if err := networks(o, solve); err != nil {
		return nil, err
	}
	return solve, output(o, solve)
}

// hostGateway is the address that stands for this machine.
const hostGateway = "host-gateway"

// reach puts the address in where host-gateway stands for it.
func (c *Config) reach(hosts []string) []string {
	out := make([]string, 0, len(hosts))
	for _, h := range hosts {
		if name, ok := strings.CutSuffix(h, ":"+hostGateway); ok && c.gateway() != "" {
			h = name + ":" + c.gateway()
		}
		out = append(out, h)
	}
	return out
}

func (c *Config) gateway() string {
	if c.Gateway == nil {
		return ""
	}
	return c.Gateway()
}

// networks sets what steps see of networks.
func networks(o *request.Build, solve *control.SolveRequest) error {
	hosts := make([]string, 0, len(o.ExtraHosts))
	for _, h := range o.ExtraHosts {
		name, addr, ok := strings.Cut(h, ":")
		if addr = strings.Trim(addr, "[]"); !ok || net.ParseIP(addr) == nil {
			return invalid("invalid host mapping: %s", h)
		}
		hosts = append(hosts, name+"="+addr)
	}
	if len(hosts) > 0 {
		solve.FrontendAttrs["add-hosts"] = strings.Join(hosts, ",")
	}
	switch o.Network {
	case "", "default", "bridge":
	case "none":
		solve.FrontendAttrs["force-network-mode"] = "none"
	case "host":
		solve.FrontendAttrs["force-network-mode"] = "host"
		solve.Entitlements = append(solve.Entitlements, "network.host")
	default:
		return invalid("network mode %q not supported by buildkit", o.Network)
	}
	return nil
}

// output says where the result goes: an image, unless something else is asked.
func output(o *request.Build, solve *control.SolveRequest) error {
	names := make([]string, 0, len(o.Tags))
	for _, t := range o.Tags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return invalid("%s", err)
		}
		if _, ok := named.(reference.Canonical); ok {
			return invalid("build tag cannot contain a digest")
		}
		names = append(names, reference.TagNameOnly(named).String())
	}
	for _, out := range o.Outputs {
		if out.Type == client.ExporterImage || out.Type == exporterMoby || out.Type == "" {
			out.Type = exporterMoby
		}
		solve.Exporters = append(solve.Exporters, &control.Exporter{Type: out.Type, Attrs: out.Attrs})
	}
	if len(o.Outputs) == 0 {
		solve.Exporters = []*control.Exporter{{Type: exporterMoby, Attrs: map[string]string{}}}
	}
	for _, e := range solve.Exporters {
		if e.Type == exporterMoby && len(names) > 0 {
			if e.Attrs == nil {
				e.Attrs = map[string]string{}
			}
			e.Attrs["name"] = strings.Join(names, ",")
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}
