package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	composefile "escale.dev/escale/internal/compose"
)

// colors are those of prefixes, in turn.
var colors = []string{"36", "33", "32", "35", "34", "36;1", "33;1", "32;1", "35;1", "34;1"}

// printer writes the lines of several containers, each behind the name of its own.
type printer struct {
	out, err      io.Writer
	color, prefix bool

	mu    sync.Mutex
	names []string
	width int
}

// register makes room for a name, so that lines that follow stand under each other.
func (p *printer) register(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.names {
		if n == name {
			return
		}
	}
	p.names = append(p.names, name)
	p.width = max(p.width, len(name))
}

func (p *printer) paint(name, text string) string {
	if !p.color {
		return text
	}
	for i, n := range p.names {
		if n == name {
			return "\x1b[" + colors[i%len(colors)] + "m" + text + "\x1b[0m"
		}
	}
	return text
}

// line writes one line.
func (p *printer) line(w io.Writer, name string, text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	head := ""
	if p.prefix {
		head = p.paint(name, fmt.Sprintf("%-*s | ", p.width+1, name))
	}
	fmt.Fprintf(w, "%s%s\n", head, text)
}

// status writes what happened to a container.
func (p *printer) status(name, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%s\n", p.paint(name, name+" "+text))
}

// lines cuts what is written into lines.
type lines struct {
	p    *printer
	w    io.Writer
	name string
	rest []byte
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		l.p.line(l.w, l.name, bytes.TrimSuffix(l.rest[:i], []byte("\r")))
		l.rest = l.rest[i+1:]
	}
}

// end writes a last line that has no end.
func (l *lines) end() {
	if len(l.rest) > 0 {
		l.p.line(l.w, l.name, l.rest)
		l.rest = nil
	}
}

// shortName is a container's name without the project's before it.
func shortName(c *container.Summary) string {
	return strings.TrimPrefix(nameOf(c), c.Labels[composefile.LabelProject]+"-")
}

// replaced tells whether another container takes the place of this one: its name is another's by then.
func replaced(c *container.Summary) bool {
	return strings.HasPrefix(nameOf(c), c.ID[:min(12, len(c.ID))]+"_")
}

// show prints a container's log, to its end or, followed, to the container's.
func (p *printer) show(ctx context.Context, c *client.Client, x *container.Summary, o moby.ContainerLogsOptions) error {
	res, err := c.ContainerInspect(ctx, x.ID, moby.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	r, err := c.ContainerLogs(ctx, x.ID, o)
	if err != nil {
		return err
	}
	defer r.Close()
	err = p.demux(r, shortName(x), res.Container.Config != nil && res.Container.Config.Tty)
	if ctx.Err() != nil || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// demux writes the lines of a stream; raw: of a terminal.
func (p *printer) demux(r io.Reader, name string, raw bool) error {
	out, errs := &lines{p: p, w: p.out, name: name}, &lines{p: p, w: p.err, name: name}
	var err error
	if raw {
		_, err = io.Copy(out, r)
	} else {
		_, err = stdcopy.StdCopy(out, errs, r)
	}
	out.end()
	errs.end()
	return err
}

type logOptions struct {
	follow, times, noColor, noPrefix bool
	index                            int
	since, until, tail               string
}

func logsCommand(s *session) *cobra.Command {
	var o logOptions
	cmd := command("logs [OPTIONS] [SERVICE...]", "Show what services have written", func(ctx context.Context, args []string) error {
		return lists{s}.logs(ctx, o, args)
	})
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "Go on with what is being written")
	indexFlag(f, &o.index)
	f.StringVar(&o.since, "since", "", "Since a time (2013-01-02T13:23:37Z) or an age (42m)")
	f.StringVar(&o.until, "until", "", "Before a time or an age")
	f.BoolVar(&o.noColor, "no-color", false, "No colors")
	f.BoolVar(&o.noPrefix, "no-log-prefix", false, "No names before lines")
	f.BoolVarP(&o.times, "timestamps", "t", false, "The time before each line")
	f.StringVarP(&o.tail, "tail", "n", "all", "Only so many lines from each container's end")
	return cmd
}

func (s lists) logs(ctx context.Context, o logOptions, services []string) error {
	_, name, err := s.named(ctx, services...)
	if err != nil {
		return err
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	p := &printer{out: s.out, err: s.err, color: !o.noColor && s.colored(s.out), prefix: !o.noPrefix}
	opts := moby.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Since: o.since, Until: o.until, Tail: o.tail, Timestamps: o.times}
	list, err := s.containers(ctx, name, pick{services: services, stopped: true, index: o.index})
	if err != nil {
		return err
	}
	if o.follow {
		w := &watcher{s: s.session, c: c, p: p, project: name, meant: func(x *container.Summary) bool {
			return includes(services, serviceOf(x)) && (o.index == 0 || number(x) == o.index)
		}, logs: opts}
		return w.run(ctx, list)
	}
	for i := range list {
		p.register(shortName(&list[i]))
	}
	var failed error
	for i := range list {
		err := p.show(ctx, c, &list[i], opts)
		if err != nil && !errdefs.IsNotFound(err) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// includes tells whether a name is among those that are meant: none is all.
func includes(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return len(names) == 0
}
