package builder

import (
	"context"
	"maps"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	bkexec "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
)

// fallback runs the frontend that a "# syntax=" line names, and the built-in one
// where that cannot be had.
type fallback struct{ gateway, builtin frontend.Frontend }

// Solve implements frontend.Frontend.
func (f fallback) Solve(ctx context.Context, bridge frontend.FrontendLLBBridge, exec bkexec.Executor, opts map[string]string, inputs map[string]*pb.Definition, session string, sessions *session.Manager) (*frontend.Result, error) {
	named, err := reference.ParseNormalizedNamed(opts["source"])
	if err == nil {
		op := &pb.SourceOp{Identifier: "docker-image://" + reference.TagNameOnly(named).String()}
		_, err = bridge.ResolveSourceMetadata(ctx, op, sourceresolver.Opt{LogName: "looking for the frontend " + opts["source"], ImageOpt: &sourceresolver.ResolveImageOpt{ResolveMode: "local"}})
	}
	if err == nil || ctx.Err() != nil {
		return f.gateway.Solve(ctx, bridge, exec, opts, inputs, session, sessions)
	}
	opts = maps.Clone(opts)
	if _, ok := opts["cmdline"]; !ok {
		opts["cmdline"] = opts["source"] // tells the frontend that the line was seen to
	}
	delete(opts, "source")
	return f.builtin.Solve(ctx, bridge, exec, opts, inputs, session, sessions)
}
