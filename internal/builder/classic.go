package builder

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"escale.dev/escale/internal/builder/request"
	"github.com/distribution/reference"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrs "github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"
)

// classic tells of a build as the classic builder did: a step at a time, though
// several may run. What others say meanwhile is kept until it is their turn.
type classic struct {
	told  request.Told
	steps []*told // in the order in which they were heard of
	by    map[digest.Digest]*told
}

// told is what is known of a step.
type told struct {
	header  string // "Step 2/3 : RUN true\n"
	text    []string
	started bool
	cached  bool
	done    bool
	shown   bool // the header was shown
	closed  bool // and all else too
}

// stepName is how BuildKit's Dockerfile frontend names instructions:
// "[build 2/3] RUN true".
var stepName = regexp.MustCompile(`^\[(?:(.*) )?(\d+)/(\d+)\] (.*)$`)

func header(name string) string {
	m := stepName.FindStringSubmatch(name)
	if m != nil && strings.HasPrefix(m[4], "FROM ") {
		m[4] = "FROM " + familiar(strings.TrimPrefix(m[4], "FROM "))
	}
	switch {
	case m == nil:
		return ""
	case m[1] == "":
		return fmt.Sprintf("Step %s/%s : %s\n", m[2], m[3], m[4])
	}
	return fmt.Sprintf("Step %s/%s (%s) : %s\n", m[2], m[3], m[1], m[4])
}

// familiar is an image's name as people write it.
func familiar(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		return reference.FamiliarString(named)
	}
	return name
}

// show takes in news.
func (c *classic) show(r *control.StatusResponse) error {
	if c.by == nil {
		c.by = map[digest.Digest]*told{}
	}
	status := client.NewSolveStatus(r)
	for _, v := range status.Vertexes {
		h := header(v.Name)
		if h == "" {
			continue
		}
		s := c.by[v.Digest]
		if s == nil {
			s = &told{header: h}
			c.by[v.Digest] = s
			c.steps = append(c.steps, s)
		}
		s.started = s.started || v.Started != nil
		s.cached = s.cached || v.Cached
		s.done = s.done || v.Completed != nil
	}
	for _, l := range status.Logs {
		if s := c.by[l.Vertex]; s != nil {
			s.text = append(s.text, colored(l))
		}
	}
	c.advance(false)
	return nil
}

// stderrStream is the number of standard error in BuildKit's logs.
const stderrStream = 2

// colored is what a step said; what it said on standard error is red, as the
// classic builder sends it whatever the client is.
func colored(l *client.VertexLog) string {
	if l.Stream == stderrStream {
		return "\x1b[91m" + string(l.Data) + "\x1b[0m"
	}
	return string(l.Data)
}

// advance shows what can be shown: of the first step that goes on all there is,
// before it those that are done. all: there will be no more.
func (c *classic) advance(all bool) {
	for {
		s := c.current()
		if s == nil {
			return
		}
		if !s.shown {
			s.shown = true
			c.told.Stream(s.header)
			if s.cached && !strings.Contains(s.header, " : FROM ") {
				c.told.Stream(" ---> Using cache\n")
			}
		}
		for _, text := range s.text {
			c.told.Stream(text)
		}
		s.text = nil
		if !s.done && !all {
			return
		}
		s.closed = true
	}
}

// current is the step to show: one whose header was shown, else the first that
// is done, else the first that runs.
func (c *classic) current() *told {
	for _, want := range []func(*told) bool{
		func(s *told) bool { return s.shown },
		func(s *told) bool { return s.done },
		func(s *told) bool { return s.started },
	} {
		for _, s := range c.steps {
			if !s.closed && want(s) {
				return s
			}
		}
	}
	return nil
}

// finish shows what was held back.
func (c *classic) finish() { c.advance(true) }

// built tells the result.
func (c *classic) built(id string, tags []string) {
	c.told.Stream("Successfully built " + strings.TrimPrefix(id, "sha256:")[:12] + "\n")
	for _, t := range tags {
		if named, err := reference.ParseNormalizedNamed(t); err == nil {
			c.told.Stream("Successfully tagged " + reference.FamiliarString(reference.TagNameOnly(named)) + "\n")
		}
	}
}

// processWords are BuildKit's about a step that failed.
var processWords = regexp.MustCompile(`process "((?:[^"\\]|\\.)*)" did not complete successfully`)

// excerpt is what an error is about: lines of the Dockerfile, with the guilty
// ones marked.
func excerpt(err error) string {
	var b strings.Builder
	for _, s := range solvererrs.Sources(err) {
		_ = s.Print(&b)
	}
	return b.String()
}

// buildError gives a failed build's error the form that clients know.
func buildError(err error) error {
	where := ""
	for _, s := range solvererrs.Sources(err) {
		if s.Info != nil && len(s.Ranges) > 0 {
			where = fmt.Sprintf("%s:%d: ", s.Info.Filename, s.Ranges[0].Start.Line)
			break
		}
	}
	var exit *gatewayapi.ExitError
	if m := processWords.FindStringSubmatch(err.Error()); m != nil && errors.As(err, &exit) {
		return &request.StepError{Command: strings.ReplaceAll(m[1], `\"`, `"`), Code: int(exit.ExitCode), Detail: where + err.Error()}
	}
	return err
}
