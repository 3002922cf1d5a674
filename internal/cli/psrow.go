package cli

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/internal/cli/table"
)

// psRow is a container in a list. Its methods are the fields of a template.
type psRow struct {
	c         *container.Summary
	trunc     bool
	sizeAsked bool // a template has asked for Size, which the engine computes on demand
}

// Headers gives the title of each column.
func (r *psRow) Headers() map[string]string {
	return map[string]string{
		"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT",
		"RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE",
		"Labels": "LABELS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM",
	}
}

// MarshalJSON gives every field by its name.
func (r *psRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the container's ID, short unless --no-trunc.
func (r *psRow) ID() string { return shortID(r.c.ID, r.trunc) }

// Names lists the container's names; unless --no-trunc only its own, without
// those that links gave it.
func (r *psRow) Names() string {
	names := make([]string, len(r.c.Names))
	for i, n := range r.c.Names {
		names[i] = strings.TrimPrefix(n, "/")
	}
	if r.trunc {
		if i := slices.IndexFunc(names, func(n string) bool { return !strings.Contains(n, "/") }); i >= 0 {
			return names[i]
		}
	}
	return strings.Join(names, ",")
}

// Image is the reference the container was made from.
func (r *psRow) Image() string {
	if r.c.Image == "" {
		return "<no image>"
	}
	if !r.trunc {
		return r.c.Image
	}
	if short := shortID(r.c.ImageID, true); short == shortID(r.c.Image, true) {
		return short
	}
	ref, err := reference.ParseNormalizedNamed(r.c.Image)
	if err != nil {
		return r.c.Image
	}
	// A digest behind the name is too long for a column.
	name := reference.FamiliarString(reference.TrimNamed(ref))
	if t, ok := ref.(reference.Tagged); ok {
		return name + ":" + t.Tag()
	}
	return name
}

// Command is the quoted command line, cut at 20 columns unless --no-trunc.
func (r *psRow) Command() string {
	c := r.c.Command
	if r.trunc {
		c = table.Ellipsis(c, 20)
	}
	return strconv.Quote(c)
}

// CreatedAt is the time the container was made.
func (r *psRow) CreatedAt() string { return time.Unix(r.c.Created, 0).String() }

// RunningFor is how long ago that was.
func (r *psRow) RunningFor() string { return ago(r.c.Created) }

// Platform is the platform of the image, nil when the engine does not tell.
func (r *psRow) Platform() any {
	if d := r.c.ImageManifestDescriptor; d != nil && d.Platform != nil {
		return platformString(*d.Platform)
	}
	return nil
}

// Ports lists what is exposed and published.
func (r *psRow) Ports() string { return PortList(r.c.Ports) }

// State is one word: running, exited…
func (r *psRow) State() string { return string(r.c.State) }

// Status is the state with its age, exit code and health.
func (r *psRow) Status() string { return r.c.Status }

// Size is what the container has written and, with the image, all it sees.
func (r *psRow) Size() string {
	r.sizeAsked = true
	s := units.HumanSizeWithPrecision(float64(r.c.SizeRw), 3)
	if r.c.SizeRootFs > 0 {
		s += fmt.Sprintf(" (virtual %s)", units.HumanSizeWithPrecision(float64(r.c.SizeRootFs), 3))
	}
	return s
}

// Labels lists all labels.
func (r *psRow) Labels() string { return labelList(r.c.Labels) }

// Label is the value of one label.
func (r *psRow) Label(name string) string { return r.c.Labels[name] }

// Mounts lists the volumes' names and host paths.
func (r *psRow) Mounts() string {
	names := make([]string, len(r.c.Mounts))
	for i, m := range r.c.Mounts {
		names[i] = cmp.Or(m.Name, m.Source)
		if r.trunc {
			names[i] = table.Ellipsis(names[i], 15)
		}
	}
	return strings.Join(names, ",")
}

// LocalVolumes counts the volumes of the local driver.
func (r *psRow) LocalVolumes() string {
	n := 0
	for _, m := range r.c.Mounts {
		if m.Driver == "local" {
			n++
		}
	}
	return strconv.Itoa(n)
}

// Networks lists the networks by name.
func (r *psRow) Networks() string {
	if r.c.NetworkSettings == nil {
		return ""
	}
	var names []string
	for n := range r.c.NetworkSettings.Networks {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

func labelList(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// shortID cuts an ID to 12 digits, without the name of its algorithm.
func shortID(id string, trunc bool) string {
	if !trunc {
		return id
	}
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(12, len(id))]
}

func ago(unix int64) string {
	return units.HumanDuration(time.Since(time.Unix(unix, 0))) + " ago"
}

// PortList is how lists of containers show ports: it joins neighbouring ports with the same host address into ranges.
// Ports published on another number stand at the end, one by one.
func PortList(ports []container.PortSummary) string {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(x, y container.PortSummary) int {
		return cmp.Or(cmp.Compare(x.PrivatePort, y.PrivatePort), cmp.Compare(hostIP(x), hostIP(y)),
			cmp.Compare(x.PublicPort, y.PublicPort), cmp.Compare(x.Type, y.Type))
	})
	type span struct {
		ip, proto   string
		first, last uint16
	}
	var done, mapped []string
	show := func(s *span) string {
		r := strconv.Itoa(int(s.first))
		if s.first != s.last {
			r += "-" + strconv.Itoa(int(s.last))
		}
		if s.ip != "" {
			r = net.JoinHostPort(s.ip, r) + "->" + r
		}
		return r + "/" + s.proto
	}
	var open []*span
	for _, p := range ports {
		ip := hostIP(p)
		if ip != "" && p.PublicPort != p.PrivatePort {
			mapped = append(mapped, fmt.Sprintf("%s->%d/%s", net.JoinHostPort(ip, strconv.Itoa(int(p.PublicPort))), p.PrivatePort, p.Type))
			continue
		}
		i := slices.IndexFunc(open, func(s *span) bool { return s.ip == ip && s.proto == p.Type })
		switch {
		case i < 0:
			open = append(open, &span{ip, p.Type, p.PrivatePort, p.PrivatePort})
		case p.PrivatePort == open[i].last+1:
			open[i].last = p.PrivatePort
		default:
			done = append(done, show(open[i]))
			open[i].first, open[i].last = p.PrivatePort, p.PrivatePort
		}
	}
	for _, s := range open {
		done = append(done, show(s))
	}
	return strings.Join(append(done, mapped...), ", ")
}

func hostIP(p container.PortSummary) string {
	if !p.IP.IsValid() {
		return ""
	}
	return p.IP.String()
}
