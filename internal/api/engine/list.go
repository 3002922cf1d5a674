package engine

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

var listFilters = []string{
	"ancestor", "annotation", "before", "exited", "expose", "health", "id", "is-task", "isolation",
	"label", "name", "network", "publish", "since", "status", "volume",
}

func (c containerRoutes) list(w *response, r *request) error {
	q, err := c.listQuery(r)
	if err != nil {
		return err
	}
	views := c.cfg.Containers.List()
	if err := q.bound(c.cfg.Containers, views); err != nil {
		return err
	}
	l := c.listEncoder(r.Context(), r.version, views)
	l.buf = make([]byte, 0, 1024*min(len(views), 256)+16)
	l.buf = append(l.buf, '[')
	n := 0
	for i := range views {
		v := &views[i]
		if q.since != "" && v.ID == q.since {
			break
		}
		if q.before != "" {
			if v.ID == q.before {
				q.before = ""
			}
			continue
		}
		if q.limit > 0 && n == q.limit {
			break
		}
		if !q.match(v) {
			continue
		}
		var size containerSize
		if q.size {
			size.rw, size.root, err = c.cfg.Containers.Size(r.Context(), string(v.ID))
			if errdefs.IsNotFound(err) {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
		}
		if n > 0 {
			l.buf = append(l.buf, ',')
		}
		l.container(v, size)
		n++
	}
	writeBytes(w, http.StatusOK, append(l.buf, ']', '\n'))
	return nil
}

type containerSize struct{ rw, root int64 }

// listQuery is what a client wants of the list.
type listQuery struct {
	filters   filters
	all, size bool
	limit     int
	names     []*regexp.Regexp
	ids       []*regexp.Regexp
	exits     []int
	task      *bool
	publish   []network.PortRange
	expose    []network.PortRange
	ancestor  func(imageID string) bool
	// Of the containers, newest first, those after before and those ahead of since.
	before, since container.ID
}

func (c containerRoutes) listQuery(r *request) (*listQuery, error) {
	f, err := parseFilters(r.query.get("filters"), listFilters)
	if err != nil {
		return nil, err
	}
	q := &listQuery{filters: f, all: r.query.bool("all"), size: r.query.bool("size")}
	limit, err := r.query.int("limit")
	if err != nil {
		return nil, err
	}
	if limit != nil {
		q.limit = *limit
	}
	for _, s := range f["status"] {
		if err := apicontainer.ValidateContainerState(apicontainer.ContainerState(s)); err != nil {
			return nil, invalidf("invalid filter 'status=%s': %s", s, err)
		}
		q.all = true
	}
	for _, s := range f["health"] {
		if err := apicontainer.ValidateHealthStatus(apicontainer.HealthStatus(s)); err != nil {
			return nil, invalidf("invalid filter 'health=%s': %s", s, err)
		}
	}
	for _, s := range f["exited"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, invalidf("invalid filter 'exited=%s': not a number", s)
		}
		q.exits = append(q.exits, n)
	}
	if f.has("is-task") {
		want, err := f.truth("is-task", false)
		if err != nil {
			return nil, err
		}
		q.task = &want
	}
	if q.publish, err = portRanges(f, "publish"); err != nil {
		return nil, err
	}
	if q.expose, err = portRanges(f, "expose"); err != nil {
		return nil, err
	}
	q.names, q.ids = f.patterns("name"), f.patterns("id")
	if f.has("ancestor") {
		q.ancestor = c.ancestors(r.Context(), f["ancestor"])
	}
	return q, nil
}

// portRanges reads ports in the form <port|from-to>[/proto].
func portRanges(f filters, key string) ([]network.PortRange, error) {
	var all []network.PortRange
	for _, s := range f[key] {
		pr, err := network.ParsePortRange(s)
		if err != nil {
			return nil, invalidf("error while looking up for %s %s: %s", key, s, err)
		}
		all = append(all, pr)
	}
	return all, nil
}

// bound finds the containers that the filters before and since name.
func (q *listQuery) bound(from Containers, views []container.View) error {
	for key, into := range map[string]*container.ID{"before": &q.before, "since": &q.since} {
		for _, ref := range q.filters[key] {
			v, err := from.Get(ref)
			if err != nil {
				return err
			}
			// One gone since the list was taken bounds nothing.
			if slices.ContainsFunc(views, func(o container.View) bool { return o.ID == v.ID }) {
				*into = v.ID
			}
		}
	}
	return nil
}

// match reports whether a container belongs to the answer.
func (q *listQuery) match(v *container.View) bool {
	st := &v.State
	if !q.all && q.limit <= 0 && !st.Running() && st.Status != container.Restarting {
		return false
	}
	if len(q.filters) == 0 {
		return true
	}
	f := q.filters
	switch {
	case len(q.names) > 0 && !anyMatch(q.names, v.Name, "/"+v.Name),
		len(q.ids) > 0 && !anyMatch(q.ids, string(v.ID)),
		!f.labels("label", v.Config.Labels),
		!f.labels("annotation", v.HostConfig.Annotations),
		!f.exact("status", shownStatus(st)),
		!f.exact("health", healthWord(st)),
		q.exits != nil && !(slices.Contains(q.exits, st.ExitCode) && !st.Running() && !st.StartedAt.IsZero()),
		q.task != nil && *q.task != (v.Config.Labels[cluster.LabelTask] != ""),
		q.ancestor != nil && !q.ancestor(v.ImageID),
		f.has("volume") && !q.hasVolume(v),
		f.has("network") && !q.onNetwork(v),
		q.publish != nil && !publishes(v, q.publish),
		q.expose != nil && !exposes(v, q.expose):
		return false
	}
	return true
}

func (q *listQuery) hasVolume(v *container.View) bool {
	for i := range v.Mounts {
		m := &v.Mounts[i]
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if q.filters.exact("volume", name, m.Destination) {
			return true
		}
	}
	return false
}

// onNetwork matches names, and ids by their beginning.
func (q *listQuery) onNetwork(v *container.View) bool {
	found := false
	eachNetwork(v, func(name string, _ *network.EndpointSettings, ep *endpoint) {
		found = found || q.filters.exact("network", name) || (ep != nil && ep.NetworkID != "" && q.filters.prefix("network", ep.NetworkID))
	})
	return found
}

func inRanges(ranges []network.PortRange, num uint16, proto network.IPProtocol) bool {
	for _, r := range ranges {
		if num >= r.Start() && num <= r.End() && proto == r.Proto() {
			return true
		}
	}
	return false
}

func publishes(v *container.View, ranges []network.PortRange) bool {
	for i := range v.Endpoints {
		for port, bindings := range v.Endpoints[i].Ports {
			for _, b := range bindings {
				if n, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil && inRanges(ranges, uint16(n), port.Proto()) {
					return true
				}
			}
		}
	}
	return false
}

func exposes(v *container.View, ranges []network.PortRange) bool {
	for port := range v.Config.ExposedPorts {
		if inRanges(ranges, port.Num(), port.Proto()) {
			return true
		}
	}
	for i := range v.Endpoints {
		for port := range v.Endpoints[i].Ports {
			if inRanges(ranges, port.Num(), port.Proto()) {
				return true
			}
		}
	}
	return false
}

// imageCache looks images up once per request. Those that are not there are the
// zero Image.
func (s *Server) imageCache(ctx context.Context) func(ref string) image.Image {
	seen := map[string]image.Image{}
	return func(ref string) image.Image {
		img, ok := seen[ref]
		if !ok {
			img, _ = s.cfg.Images.Get(ctx, ref) // one that cannot be read is shown as none
			seen[ref] = img
		}
		return img
	}
}

// ancestors tells whether an image is one of refs or was built upon one of them.
func (s *Server) ancestors(ctx context.Context, refs []string) func(imageID string) bool {
	get := s.imageCache(ctx)
	known := map[string]bool{}
	return func(imageID string) bool {
		yes, ok := known[imageID]
		if ok {
			return yes
		}
		for _, ref := range refs {
			parent := get(ref)
			if parent.ID == "" {
				continue
			}
			if parent.ID == imageID || above(get(imageID), parent) {
				yes = true
				break
			}
		}
		known[imageID] = yes
		return yes
	}
}

// above reports whether img has the layers of parent and more of its own.
func above(img, parent image.Image) bool {
	a, b := img.Config.RootFS.DiffIDs, parent.Config.RootFS.DiffIDs
	return len(b) > 0 && len(a) > len(b) && slices.Equal(a[:len(b)], b)
}

// shownStatus is a container's state in Docker's words: a start under way shows
// as what was before.
func shownStatus(st *container.State) string {
	if st.Status == container.Starting {
		if st.StartedAt.IsZero() {
			return string(container.Created)
		}
		return string(container.Exited)
	}
	return string(st.Status)
}

func healthWord(st *container.State) string {
	if st.Health == nil || st.Health.Status == "" {
		return string(apicontainer.NoHealthcheck)
	}
	return st.Health.Status
}

// statusText is the sentence of docker ps.
func statusText(st *container.State, now time.Time) string {
	switch st.Status {
	case container.Running:
		up := "Up " + humanDuration(now.Sub(st.StartedAt))
		switch h := healthWord(st); h {
		case string(apicontainer.NoHealthcheck):
			return up
		case string(apicontainer.Starting):
			return up + " (health: starting)"
		default:
			return up + " (" + h + ")"
		}
	case container.Paused:
		return "Up " + humanDuration(now.Sub(st.StartedAt)) + " (Paused)"
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, humanDuration(now.Sub(st.FinishedAt)))
	case container.Removing:
		return "Removal In Progress"
	case container.Dead:
		return "Dead"
	}
	switch {
	case st.StartedAt.IsZero():
		return "Created"
	case st.FinishedAt.IsZero():
		return ""
	}
	return "Exited (" + strconv.Itoa(st.ExitCode) + ") " + humanDuration(now.Sub(st.FinishedAt)) + " ago"
}

// commandLine joins a command for people to read: arguments with spaces are quoted.
func commandLine(path string, args []string) string {
	if len(args) == 0 {
		return path
	}
	var b strings.Builder
	b.WriteString(path)
	for _, a := range args {
		b.WriteByte(' ')
		if strings.Contains(a, " ") {
			b.WriteString("'" + a + "'")
		} else {
			b.WriteString(a)
		}
	}
	return b.String()
}
