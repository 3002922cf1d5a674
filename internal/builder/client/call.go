package client

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/subrequests"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/frontend/subrequests/outline"
	"github.com/moby/buildkit/frontend/subrequests/targets"
	"github.com/moby/buildkit/util/progress/progressui"
)

// requests are the words of --call.
var requests = map[string]string{
	"check": lint.RequestLint, "lint": lint.RequestLint, "outline": outline.RequestSubrequestsOutline,
	"targets": targets.RequestTargets, "subrequests.describe": subrequests.RequestSubrequestsDescribe,
}

// call asks the frontend about the Dockerfile, and builds nothing:
// NAME[,format=json].
func (b *build) call(ctx context.Context, c *client.Client, display progressui.Display) error {
	name, rest, _ := strings.Cut(b.plan.Call, ",")
	asJSON := false
	if rest != "" {
		f, err := fields(rest)
		if err != nil {
			return err
		}
		for key, value := range f {
			switch {
			case key == "format" && (value == "json" || value == "text"):
				asJSON = value == "json"
			case key == "ignorestatus":
			default:
				return fmt.Errorf("invalid call option %s=%s", key, value)
			}
		}
	}
	request, ok := requests[strings.TrimPrefix(name, "frontend.")]
	if !ok {
		return fmt.Errorf("call %q is not known: want build, check, outline or targets", name)
	}
	var result map[string][]byte
	ask := func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		opts := maps.Clone(b.solve.FrontendAttrs)
		maps.Copy(opts, g.BuildOpts().Opts)
		opts["requestid"], opts["frontend.caps"] = request, "moby.buildkit.frontend.subrequests"
		r, err := g.Solve(ctx, gateway.SolveRequest{Frontend: b.solve.Frontend, FrontendOpt: opts})
		if err != nil {
			return nil, err
		}
		result = r.Metadata
		return gateway.NewResult(), nil
	}
	_, _, err := show(ctx, display, func(news chan *client.SolveStatus) (*client.SolveResponse, error) {
		return c.Build(ctx, b.solve, "buildx", ask, news)
	})
	if err != nil {
		return err
	}
	return b.tell(request, result, asJSON)
}

// tell prints what the frontend has answered.
func (b *build) tell(request string, result map[string][]byte, asJSON bool) error {
	w, data := b.streams.Out, result["result.json"]
	if len(data) == 0 {
		return errNoAnswer
	}
	var found lint.LintResults
	if request == lint.RequestLint {
		if err := json.Unmarshal(data, &found); err != nil {
			return err
		}
	}
	switch {
	case asJSON:
		fmt.Fprintf(w, "%s\n", strings.TrimSpace(string(data)))
	case request == lint.RequestLint:
		return b.tellFindings(found)
	case request == outline.RequestSubrequestsOutline:
		return outline.PrintOutline(data, w)
	case request == targets.RequestTargets:
		return targets.PrintTargets(data, w)
	default:
		return subrequests.PrintDescribe(data, w)
	}
	return status(result, found)
}

// tellFindings prints warnings with their lines, and their number.
func (b *build) tellFindings(found lint.LintResults) error {
	w, n := b.streams.Out, len(found.Warnings)
	text := "Check complete, no warnings found."
	switch {
	case n == 1:
		text = "Check complete, 1 warning has been found!"
	case n > 1:
		text = fmt.Sprintf("Check complete, %d warnings have been found!", n)
	}
	if n > 0 || found.Error == nil {
		fmt.Fprintln(w, text)
	}
	if err := found.PrintTo(w, nil); err != nil {
		return err
	}
	if found.Error != nil {
		if n > 0 {
			fmt.Fprintln(w)
		}
		found.PrintErrorTo(w, nil)
	}
	return status(nil, found)
}

// status is an error when something was found.
func status(result map[string][]byte, found lint.LintResults) error {
	if n, err := strconv.Atoi(string(result["result.statuscode"])); err == nil && n != 0 {
		return findings(n)
	}
	if n := len(found.Warnings); n > 0 || found.Error != nil {
		return findings(max(n, 1))
	}
	return nil
}
