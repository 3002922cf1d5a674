// Package task lists the tasks of services: as service ps, node ps and stack ps do.
package task

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/pflag"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

// Options are those of a list of tasks.
type Options struct {
	verb.List
	NoTrunc, NoResolve bool
}

// AddFlags defines the options.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	o.List.AddFlags(f, "Print only IDs of tasks")
	f.BoolVar(&o.NoTrunc, "no-trunc", false, "Do not shorten IDs, images and errors")
	f.BoolVar(&o.NoResolve, "no-resolve", false, "Print IDs of services and nodes instead of their names")
}

// Print prints the tasks: those of a place together, the newest first.
func (o *Options) Print(ctx context.Context, a *verb.App, c *client.Client, tasks []swarm.Task) error {
	names := NewNames(c, o.NoResolve)
	for i := range tasks {
		t := &tasks[i]
		t.Name = names.Service(ctx, t.ServiceID)
		if t.Slot != 0 {
			t.Name = fmt.Sprintf("%s.%d", t.Name, t.Slot)
		} else {
			t.Name += "." + t.NodeID
		}
	}
	slices.SortStableFunc(tasks, func(x, y swarm.Task) int {
		return cmp.Or(verb.Natural(x.Name, y.Name), y.CreatedAt.Compare(x.CreatedAt))
	})
	format := formatOf(o.FormatOr(a.Config().TasksFormat), o.Quiet)
	rows := make([]table.Row, len(tasks))
	for i := range tasks {
		r := &row{t: &tasks[i], name: tasks[i].Name, node: names.Node(ctx, tasks[i].NodeID), trunc: !o.NoTrunc}
		if i > 0 && tasks[i-1].Name == r.name && format.IsTable() {
			r.name = ` \_ ` + r.name
		}
		rows[i] = r
	}
	return table.Write(a.Out, format, &row{t: &swarm.Task{}}, rows)
}

func formatOf(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table":
		return `table {{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}`
	case format == "raw" && quiet:
		return "id: {{.ID}}"
	case format == "raw":
		return "id: {{.ID}}\nname: {{.Name}}\nimage: {{.Image}}\nnode: {{.Node}}\ndesired_state: {{.DesiredState}}\ncurrent_state: {{.CurrentState}}\nerror: {{.Error}}\nports: {{.Ports}}\n"
	}
	return table.Format(format)
}

// row is a task in a list. Its methods are the fields of a template.
type row struct {
	t          *swarm.Task
	name, node string
	trunc      bool
}

// Headers gives the title of each column.
func (r *row) Headers() map[string]string {
	return map[string]string{
		"ID": "ID", "Name": "NAME", "Image": "IMAGE", "Node": "NODE", "DesiredState": "DESIRED STATE", "CurrentState": "CURRENT STATE",
		"Error": "ERROR", "Ports": "PORTS",
	}
}

// MarshalJSON gives every field by its name.
func (r *row) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the task's ID.
func (r *row) ID() string {
	if r.trunc {
		return ShortID(r.t.ID)
	}
	return r.t.ID
}

// Name is the place of the task: the service's name and a number, or a node.
func (r *row) Name() string { return r.name }

// Image is what it runs.
func (r *row) Image() string {
	image := ""
	if r.t.Spec.ContainerSpec != nil {
		image = r.t.Spec.ContainerSpec.Image
	}
	if r.trunc {
		return ShortImage(image)
	}
	return image
}

// Node is where it runs.
func (r *row) Node() string { return r.node }

// DesiredState is what is to become of it.
func (r *row) DesiredState() string { return Title(string(r.t.DesiredState)) }

// CurrentState is what it is, and since when.
func (r *row) CurrentState() string {
	return Title(string(r.t.Status.State)) + " " + strings.ToLower(units.HumanDuration(time.Since(r.t.Status.Timestamp))) + " ago"
}

// Error is what is wrong with it.
func (r *row) Error() string {
	text := r.t.Status.Err
	if r.trunc {
		text = table.Ellipsis(text, 30)
	}
	if text == "" {
		return ""
	}
	return `"` + text + `"`
}

// Ports are those of the node that lead to it.
func (r *row) Ports() string {
	var list []string
	for _, p := range r.t.Status.PortStatus.Ports {
		list = append(list, fmt.Sprintf("*:%d->%d/%s", p.PublishedPort, p.TargetPort, p.Protocol))
	}
	return strings.Join(list, ",")
}

// ShortID cuts an ID to what tells it from others.
func ShortID(id string) string { return id[:min(12, len(id))] }

// ShortImage leaves the digest out of an image with a tag.
func ShortImage(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	tagged, ok := ref.(reference.NamedTagged)
	if !ok {
		return image
	}
	short, err := reference.WithTag(reference.TrimNamed(tagged), tagged.Tag())
	if err != nil {
		return image
	}
	return reference.FamiliarString(short)
}

// Title makes the first letter a capital one, and the others small.
func Title(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + strings.ToLower(s[1:])
}

// Names finds the names of services and nodes, each once.
type Names struct {
	c    *client.Client
	off  bool
	seen map[string]string
}

// NewNames prepares; off gives IDs as they are.
func NewNames(c *client.Client, off bool) *Names {
	return &Names{c: c, off: off, seen: map[string]string{}}
}

func (n *Names) find(id string, ask func() (string, error)) string {
	if n.off || id == "" {
		return id
	}
	name, ok := n.seen[id]
	if !ok {
		var err error
		if name, err = ask(); err != nil || name == "" {
			name = id // it may have gone meanwhile
		}
		n.seen[id] = name
	}
	return name
}

// Service is the name of a service, or its ID when there is none.
func (n *Names) Service(ctx context.Context, id string) string {
	return n.find(id, func() (string, error) {
		res, err := n.c.ServiceInspect(ctx, id, moby.ServiceInspectOptions{})
		return res.Service.Spec.Name, err
	})
}

// Node is the name of a node, or its ID when there is none.
func (n *Names) Node(ctx context.Context, id string) string {
	return n.find(id, func() (string, error) {
		res, err := n.c.NodeInspect(ctx, id, moby.NodeInspectOptions{})
		return cmp.Or(res.Node.Spec.Name, res.Node.Description.Hostname), err
	})
}
