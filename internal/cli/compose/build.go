package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/types"

	buildclient "escale.dev/escale/internal/builder/client"
	composefile "escale.dev/escale/internal/compose"
)

// build builds the images of services that are to be built, side by side, but what
// others are built from before them.
func (s supply) build(ctx context.Context, p *types.Project, names []string, o building) error {
	names, err := buildOrder(p, names)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		fmt.Fprintln(s.err, "No services to build")
		return nil
	}
	if s.flags.dry {
		for _, name := range names {
			sv := p.Services[name]
			fmt.Fprintf(s.err, " DRY-RUN MODE -  build service %s as %s\n", name, composefile.Image(p, &sv))
		}
		return nil
	}
	plans := map[string][]byte{}
	for _, name := range names { // they use the environment, which is everybody's
		sv := p.Services[name]
		b, done, err := s.plan(p, &sv, o)
		if err != nil {
			return fmt.Errorf("service %q: build: %w", name, err)
		}
		defer done()
		switch {
		case o.quiet:
			b.Progress = "quiet"
		case len(names) > 1 && (b.Progress == "auto" || b.Progress == "tty"):
			b.Progress = "plain" // they have one terminal
		}
		if plans[name], err = json.Marshal(b); err != nil {
			return err
		}
	}
	width, one := 0, new(sync.Mutex)
	for _, name := range names {
		width = max(width, len(name))
	}
	return inOrder(ctx, names, func(name string) []string { return buildsOn(p, name) }, s.limit(), func(ctx context.Context, name string) error {
		streams := buildclient.Streams{In: s.in, Out: s.out, Err: s.err}
		if len(names) > 1 {
			out, err := &marked{to: s.out, one: one}, &marked{to: s.err, one: one}
			if s.flags.progress != "json" { // whose lines are somebody's to read
				err.before = fmt.Sprintf("%-*s | ", width, name)
			}
			defer out.end()
			defer err.end()
			streams = buildclient.Streams{In: strings.NewReader(""), Out: out, Err: err}
		}
		sv := p.Services[name]
		return s.buildOne(ctx, composefile.Image(p, &sv), name, plans[name], o, streams)
	})
}

// buildsOn are the services whose images the build of one takes as contexts.
func buildsOn(p *types.Project, name string) (out []string) {
	sv := p.Services[name]
	if sv.Build == nil {
		return nil
	}
	for _, value := range sv.Build.AdditionalContexts {
		if other, ok := strings.CutPrefix(value, types.ServicePrefix); ok {
			out = append(out, other)
		}
	}
	slices.Sort(out)
	return out
}

// buildOrder puts services after those that their builds take as a context
// (service:NAME), and adds those.
func buildOrder(p *types.Project, names []string) ([]string, error) {
	var out []string
	state := map[string]int{}
	var visit func(name string) error
	visit = func(name string) error {
		sv, ok := p.Services[name]
		switch {
		case !ok || sv.Build == nil || state[name] == 2:
			return nil
		case state[name] == 1:
			return fmt.Errorf("service %q: its build needs itself", name)
		}
		state[name] = 1
		for _, other := range buildsOn(p, name) {
			if err := visit(other); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, name)
		return nil
	}
	slices.Sort(names)
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// inOrder does something for each of some names, so many at once, and for one once it is
// done for those that it needs; these stand before it. After a failure, which it gives,
// nothing more is begun, and what is under way is called off.
func inOrder(ctx context.Context, names []string, needs func(string) []string, limit int, do func(context.Context, string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done, slots := map[string]chan struct{}{}, make(chan struct{}, limit)
	var all sync.WaitGroup
	for _, name := range names {
		done[name] = make(chan struct{})
	}
	for _, name := range names {
		all.Go(func() {
			defer close(done[name])
			for _, other := range needs(name) {
				if done[other] != nil {
					<-done[other]
				}
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := do(ctx, name); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// buildOne does a build.
func (s supply) buildOne(ctx context.Context, image, name string, text []byte, o building, streams buildclient.Streams) error {
	if o.quiet {
		streams.Out = &bytes.Buffer{} // the id
	}
	if code := buildclient.Run(ctx, bytes.NewReader(text), streams); code != 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &exit{17, fmt.Errorf("service %q: the image %s was not built", name, image)}
	}
	fmt.Fprintf(streams.Err, " %s  Built\n", image)
	return nil
}

// marked writes whole lines, with something before each, where others do, too.
type marked struct {
	to     io.Writer
	one    *sync.Mutex // of all who write there
	before string
	rest   []byte
}

// Write implements io.Writer.
func (l *marked) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if err := l.line(l.rest[:i+1]); err != nil {
			return 0, err
		}
		l.rest = l.rest[i+1:]
	}
}

func (l *marked) line(text []byte) error {
	if len(bytes.TrimSpace(text)) == 0 && l.before != "" {
		return nil // between steps, which are told apart by their numbers
	}
	l.one.Lock()
	defer l.one.Unlock()
	_, err := l.to.Write(append([]byte(l.before), text...))
	return err
}

// end writes what has no end of line.
func (l *marked) end() {
	if len(l.rest) > 0 {
		_ = l.line(append(l.rest, '\n')) // who reads is gone, or knows more
		l.rest = nil
	}
}
