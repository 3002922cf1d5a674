package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cli/verb"
)

// logsOptions are those of logs.
type logsOptions struct {
	moby.ServiceLogsOptions
	raw, noResolve, noTrunc, noTaskIDs, details bool
}

func logsCommand(a *verb.App) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:               "logs [OPTIONS] SERVICE|TASK",
		Short:             "Show what the tasks of a service, or one task, have written",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), a, c, args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.noResolve, "no-resolve", false, "Print IDs of services and nodes instead of their names")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten IDs of tasks")
	f.BoolVar(&o.raw, "raw", false, "Do not say which task has written a line")
	f.BoolVar(&o.noTaskIDs, "no-task-ids", false, "Leave out IDs of tasks")
	f.BoolVarP(&o.Follow, "follow", "f", false, "Go on with what is being written")
	f.StringVar(&o.Since, "since", "", `Show logs since a time (2013-01-02T13:23:37Z) or an age (42m)`)
	f.StringVarP(&o.Tail, "tail", "n", "all", "Show only this many lines from the end")
	f.BoolVarP(&o.Timestamps, "timestamps", "t", false, "Show the time of each line")
	f.BoolVar(&o.details, "details", false, "Show the extra attributes of each line")
	return cmd
}

func (o *logsOptions) run(ctx context.Context, a *verb.App, c *client.Client, name string) error {
	terminal, width := false, 1
	o.ShowStdout, o.ShowStderr, o.Details = true, true, o.details || !o.raw
	logs := func() (io.ReadCloser, error) { return c.ServiceLogs(ctx, name, o.ServiceLogsOptions) }
	res, err := c.ServiceInspect(ctx, name, moby.ServiceInspectOptions{})
	switch {
	case err == nil:
		s := res.Service.Spec
		terminal = s.TaskTemplate.ContainerSpec != nil && s.TaskTemplate.ContainerSpec.TTY
		if r := s.Mode.Replicated; r != nil && r.Replicas != nil {
			width = len(strconv.FormatUint(*r.Replicas, 10))
		}
	case errdefs.IsNotFound(err):
		t, err := c.TaskInspect(ctx, name, moby.TaskInspectOptions{})
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("no such task or service: %s", name)
		}
		if err != nil {
			return err
		}
		terminal = t.Task.Spec.ContainerSpec != nil && t.Task.Spec.ContainerSpec.TTY
		width = len(strconv.Itoa(t.Task.Slot))
		logs = func() (io.ReadCloser, error) {
			return c.TaskLogs(ctx, name, moby.TaskLogsOptions(o.ServiceLogsOptions))
		}
	default:
		return err
	}
	if terminal && !o.raw {
		return errors.New("tty service logs only supported with --raw")
	}
	r, err := logs()
	if err != nil {
		return err
	}
	defer r.Close()
	s := &tty.Stream{Out: a.Out, Err: a.Err, Reader: r, TTY: terminal}
	if !o.raw {
		w := writers{ctx: ctx, o: o, c: c, width: width, names: task.NewNames(c, o.noResolve), seen: map[source]string{}}
		s.Out, s.Err = &lines{w.name, o.Timestamps, o.details, a.Out}, &lines{w.name, o.Timestamps, o.details, a.Err}
	}
	return s.Output()
}

// source is who has written a line.
type source struct{ node, service, task string }

// writers find out what those who write are called.
type writers struct {
	ctx   context.Context
	o     *logsOptions
	c     *client.Client
	width int // of the numbers of tasks
	names *task.Names
	seen  map[source]string
}

func (w *writers) name(s source) (string, error) {
	if name, ok := w.seen[s]; ok {
		return name, nil
	}
	res, err := w.c.TaskInspect(w.ctx, s.task, moby.TaskInspectOptions{})
	if err != nil {
		return "", err
	}
	t := &res.Task
	name := fmt.Sprintf("%s.%d", w.names.Service(w.ctx, s.service), t.Slot)
	switch {
	case w.o.noTaskIDs:
	case w.o.noTrunc:
		name += "." + t.ID
	default:
		name += "." + task.ShortID(t.ID)
	}
	name += "@" + w.names.Node(w.ctx, s.node) + strings.Repeat(" ", max(0, w.width-len(strconv.Itoa(t.Slot))))
	w.seen[s] = name
	return name, nil
}

// lines writes lines with their writers in front. Each line that the engine sends comes
// in a frame, and so in one Write.
type lines struct {
	name           func(source) (string, error)
	times, details bool // lines come with their times; the other details are printed
	to             io.Writer
}

// Write takes [TIME ]DETAILS LINE.
func (l *lines) Write(b []byte) (int, error) {
	n := 2
	if l.times {
		n++
	}
	parts := bytes.SplitN(b, []byte(" "), n)
	if len(parts) != n {
		return 0, fmt.Errorf("invalid context in log message: %s", b)
	}
	details, err := parseDetails(string(parts[n-2]))
	if err != nil {
		return 0, err
	}
	var s source
	for _, f := range []struct {
		key, word string
		to        *string
	}{
		{"com.docker.swarm.node.id", "node", &s.node}, {"com.docker.swarm.service.id", "service", &s.service}, {"com.docker.swarm.task.id", "task", &s.task},
	} {
		v, ok := details[f.key]
		if !ok {
			return 0, fmt.Errorf("missing %s id in details: %v", f.word, details)
		}
		*f.to = v
		delete(details, f.key)
	}
	name, err := l.name(s)
	if err != nil {
		return 0, err
	}
	var out bytes.Buffer
	if l.times {
		out.Write(parts[0])
		out.WriteByte(' ')
	}
	out.WriteString(name + "    | ")
	if l.details {
		var list []string
		for _, k := range slices.Sorted(maps.Keys(details)) {
			list = append(list, k+"="+details[k])
		}
		out.WriteString(strings.Join(list, ",") + " ")
	}
	out.Write(parts[n-1])
	if _, err := out.WriteTo(l.to); err != nil {
		return 0, err
	}
	return len(b), nil
}

// parseDetails reads KEY=VALUE,… with the escapes of URLs.
func parseDetails(s string) (map[string]string, error) {
	m := map[string]string{}
	for _, pair := range strings.Split(s, ",") {
		if pair == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		key, err := url.QueryUnescape(k)
		if err != nil {
			return nil, err
		}
		value, err := url.QueryUnescape(v)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errors.New("invalid details format")
		}
		m[key] = value
	}
	return m, nil
}
