package swarm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
)

// Logs reads logs of the containers of tasks.
type Logs interface {
	// Open opens the log of a container of a node; who asks closes it. NotFound;
	// Unavailable when the node cannot be reached.
	Open(ctx context.Context, node, container string, o logs.ReadOptions) (logs.Reader, error)
}

// Lines are those of several logs. One goroutine uses Next; Close wakes it.
type Lines interface {
	Next() (logs.Line, error) // io.EOF at the end
	Close() error
}

// The names of attributes that tell which task has written a line.
const (
	attrNode    = "com.docker.swarm.node.id"
	attrService = "com.docker.swarm.service.id"
	attrTask    = cluster.LabelTask
)

// ServiceLogs reads the logs of all tasks of a service; terminal: their lines have no
// streams. A follower sees those of tasks to come, too, until the service has gone.
func (s *Swarm) ServiceLogs(ctx context.Context, ref string, o logs.ReadOptions) (lines Lines, terminal bool, err error) {
	service, err := find[*cluster.Service](s.Store.View(), "service", ref)
	if err != nil {
		return nil, false, err
	}
	lines, err = s.read(ctx, o, func(v store.View) (list []*cluster.Task, more bool) {
		_, gone := store.Find[*cluster.Service](v, service.ID)
		return store.List[*cluster.Task](v, store.Owner(service.ID)), gone == nil
	})
	return lines, service.Spec.Task.Container.Tty, err
}

// TaskLogs reads the log of a task.
func (s *Swarm) TaskLogs(ctx context.Context, ref string, o logs.ReadOptions) (lines Lines, terminal bool, err error) {
	t, err := findTask(s.Store.View(), ref)
	if err != nil {
		return nil, false, err
	}
	lines, err = s.read(ctx, o, func(v store.View) ([]*cluster.Task, bool) {
		now, err := store.Find[*cluster.Task](v, t.ID)
		if err != nil {
			return nil, false
		}
		return []*cluster.Task{now}, !now.Status.State.Ended()
	})
	return lines, t.Spec.Container.Tty, err
}

// read reads the logs of tasks, which which gives, as long as it says that there may be
// more.
func (s *Swarm) read(ctx context.Context, o logs.ReadOptions, which func(store.View) ([]*cluster.Task, bool)) (Lines, error) {
	ctx, cancel := context.WithCancel(ctx)
	m := &many{s: s, ctx: ctx, cancel: cancel, o: o, lines: make(chan logs.Line)}
	if o.Follow {
		go m.follow(which)
		return m, nil
	}
	tasks, _ := which(s.Store.View())
	out := &sorted{cancel: cancel}
	for _, t := range tasks {
		if out.lacks.of(t.Node) {
			continue
		}
		r, err := m.open(t)
		if errdefs.IsNotFound(err) {
			continue // none was made, or it has gone
		}
		if errdefs.IsUnavailable(err) {
			out.lacks.add(t.Node, notThere)
			continue
		}
		if err != nil {
			return nil, errors.Join(err, out.Close())
		}
		out.logs = append(out.logs, &head{r: r, of: t})
	}
	return out, nil
}

// lacks are nodes whose logs could not be read, or not to their end, and why.
type lacks struct {
	nodes []string
	why   []string
}

func (l *lacks) of(node string) bool { return slices.Contains(l.nodes, node) }

func (l *lacks) add(node, why string) {
	if !l.of(node) {
		l.nodes, l.why = append(l.nodes, node), append(l.why, fmt.Sprintf("node %s %s", node, why))
	}
}

// Why a log is not all there is of it, in Docker's words.
const (
	notThere = "is not available"
	cutOff   = "disconnected unexpectedly"
)

// end is the end of what could be read: io.EOF when nothing is missing, else Docker's words.
func (l *lacks) end() error {
	if len(l.why) == 0 {
		return io.EOF
	}
	return say(errdefs.ErrUnavailable, "warning: incomplete log stream. some logs could not be retrieved for the following reasons: %s", strings.Join(l.why, ", "))
}

// many follows several logs at once.
type many struct {
	s      *Swarm
	ctx    context.Context
	cancel context.CancelFunc
	o      logs.ReadOptions
	lines  chan logs.Line

	mu    sync.Mutex
	err   error // why there is no more
	lacks lacks
}

// open opens the log of a task. NotFound when it has none.
func (m *many) open(t *cluster.Task) (logs.Reader, error) {
	if t.Status.Container == nil || t.Node == "" {
		return nil, errdefs.ErrNotFound
	}
	return m.s.Logs.Open(m.ctx, t.Node, t.Status.Container.ID, m.o)
}

// follow reads the logs of tasks that are, and those that come.
func (m *many) follow(which func(store.View) ([]*cluster.Task, bool)) {
	var reading sync.WaitGroup
	err := m.each(which, func(t *cluster.Task) { reading.Go(func() { m.copy(t) }) })
	if err != nil {
		m.note(nil, "", err)
		m.cancel()
	}
	reading.Wait()
	close(m.lines)
}

// each calls begin for each task once it has a container, until no more are to come.
func (m *many) each(which func(store.View) ([]*cluster.Task, bool), begin func(*cluster.Task)) error {
	seen := map[string]bool{}
	for {
		v := m.s.Store.View()
		w, err := m.s.Store.Watch(v.Revision(), cluster.KindTask, cluster.KindService)
		if errdefs.IsOutOfRange(err) {
			continue
		}
		if err != nil {
			return err
		}
		tasks, more := which(v)
		for _, t := range tasks {
			if !seen[t.ID] && t.Status.Container != nil {
				seen[t.ID] = true
				begin(t)
			}
		}
		if !more {
			return nil
		}
		if _, err := w.Next(m.ctx); err != nil && !errdefs.IsOutOfRange(err) {
			return err
		}
	}
}

// copy hands on the log of a task to its end.
func (m *many) copy(t *cluster.Task) {
	r, err := m.open(t)
	if err != nil {
		m.note(t, notThere, err)
		return
	}
	closing := sync.OnceFunc(func() { r.Close() })
	defer closing()
	defer context.AfterFunc(m.ctx, closing)()
	for {
		l, err := r.Next()
		if err != nil {
			m.note(t, cutOff, err)
			return
		}
		select {
		case m.lines <- mark(l, t):
		case <-m.ctx.Done():
			return
		}
	}
}

// mark gives a line that is kept, and says whose it is.
func mark(l logs.Line, t *cluster.Task) logs.Line {
	attrs := map[string]string{attrNode: t.Node, attrService: t.Owner, attrTask: t.ID}
	for k, v := range l.Attrs {
		attrs[k] = v
	}
	l.Attrs, l.Data = attrs, append([]byte(nil), l.Data...)
	return l
}

// note keeps why reading has ended: of one task, or of all of them. Nodes that cannot be
// reached are told of once the others' logs have ended.
func (m *many) note(t *cluster.Task, why string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case errdefs.IsNotFound(err) || errors.Is(err, io.EOF) || m.ctx.Err() != nil:
	case t != nil && errdefs.IsUnavailable(err):
		m.lacks.add(t.Node, why)
	default:
		m.err = cmp.Or(m.err, err)
	}
}

// Next implements Lines.
func (m *many) Next() (logs.Line, error) {
	select {
	case l, ok := <-m.lines:
		if ok {
			return l, nil
		}
	case <-m.ctx.Done():
		return logs.Line{}, m.ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return logs.Line{}, cmp.Or(m.err, m.lacks.end())
}

// Close implements Lines.
func (m *many) Close() error {
	m.cancel()
	return nil
}

// sorted reads several logs that are not followed, in order of time.
type sorted struct {
	cancel context.CancelFunc
	logs   []*head
	lacks  lacks
}

// head is a log and its next line.
type head struct {
	r    logs.Reader
	of   *cluster.Task
	line *logs.Line
	err  error
}

// Next implements Lines.
func (s *sorted) Next() (logs.Line, error) {
	var first *head
	for _, h := range s.logs {
		if h.line == nil && h.err == nil {
			l, err := h.r.Next()
			if h.err = err; err == nil {
				l = mark(l, h.of)
				h.line = &l
			}
		}
		if errdefs.IsUnavailable(h.err) {
			s.lacks.add(h.of.Node, cutOff)
		} else if h.err != nil && !errors.Is(h.err, io.EOF) {
			return logs.Line{}, h.err
		}
		if h.line != nil && (first == nil || h.line.Time.Before(first.line.Time)) {
			first = h
		}
	}
	if first == nil {
		return logs.Line{}, s.lacks.end()
	}
	l := *first.line
	first.line = nil
	return l, nil
}

// Close implements Lines.
func (s *sorted) Close() error {
	s.cancel()
	var errs []error
	for _, h := range s.logs {
		errs = append(errs, h.r.Close())
	}
	return errors.Join(errs...)
}
