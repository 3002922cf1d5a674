package compose

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cluster"
)

const psTable = "table {{.Name}}\t{{.Image}}\t{{.Command}}\t{{.Service}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}"

// psRow is a container, or a task that has none yet.
type psRow struct {
	c       container.Summary
	code    int
	project string
	waits   string // of a task without a container: for what
	trunc   bool
}

// publisher is a published port.
type publisher struct {
	URL           string
	TargetPort    uint16
	PublishedPort uint16
	Protocol      string
}

// Headers gives the title of each column.
func (r *psRow) Headers() map[string]string {
	return map[string]string{
		"ID": "CONTAINER ID", "Name": "NAME", "Names": "NAMES", "Project": "PROJECT", "Service": "SERVICE", "Image": "IMAGE", "Command": "COMMAND",
		"CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS",
		"Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Health": "HEALTH", "ExitCode": "EXIT CODE", "Publishers": "PUBLISHERS",
	}
}

// MarshalJSON gives all fields, by their names.
func (r *psRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the container's.
func (r *psRow) ID() string {
	if r.trunc && len(r.c.ID) > 12 {
		return r.c.ID[:12]
	}
	return r.c.ID
}

// Name is the container's name.
func (r *psRow) Name() string { return nameOf(&r.c) }

// Names are all of them.
func (r *psRow) Names() string { return nameOf(&r.c) }

// Project is the app.
func (r *psRow) Project() string { return r.project }

// Service is the service it belongs to.
func (r *psRow) Service() string { return serviceOf(&r.c) }

// Image is the image it was made from.
func (r *psRow) Image() string { return r.c.Image }

// Command is what it runs.
func (r *psRow) Command() string {
	if r.waits != "" {
		return ""
	}
	if r.trunc {
		return strconv.Quote(table.Ellipsis(r.c.Command, 20))
	}
	return strconv.Quote(r.c.Command)
}

// CreatedAt is when it was made.
func (r *psRow) CreatedAt() string { return time.Unix(r.c.Created, 0).String() }

// RunningFor is how long ago that is.
func (r *psRow) RunningFor() string {
	if r.c.Created == 0 {
		return ""
	}
	return units.HumanDuration(time.Since(time.Unix(r.c.Created, 0))) + " ago"
}

// State is one word.
func (r *psRow) State() string { return string(r.c.State) }

// Status is the state with its age, exit code and health.
func (r *psRow) Status() string { return cmp.Or(r.waits, r.c.Status) }

// Health is that of its check.
func (r *psRow) Health() string {
	if r.c.Health == nil || r.c.Health.Status == container.NoHealthcheck {
		return ""
	}
	return string(r.c.Health.Status)
}

// ExitCode is that of what has ended.
func (r *psRow) ExitCode() int { return r.code }

// Ports lists published and exposed ports.
func (r *psRow) Ports() string { return cli.PortList(r.c.Ports) }

// Publishers are the published ports.
func (r *psRow) Publishers() []publisher {
	out := []publisher{}
	for _, p := range r.c.Ports {
		url := ""
		if p.IP.IsValid() {
			url = p.IP.String()
		}
		out = append(out, publisher{url, p.PrivatePort, p.PublicPort, p.Type})
	}
	return out
}

// Labels lists all labels.
func (r *psRow) Labels() string {
	var list []string
	for k, v := range r.c.Labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// Label is the value of one label.
func (r *psRow) Label(name string) string { return r.c.Labels[name] }

// Mounts lists volumes and paths.
func (r *psRow) Mounts() string {
	var list []string
	for _, m := range r.c.Mounts {
		list = append(list, cmp.Or(m.Name, m.Source))
	}
	return strings.Join(list, ",")
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

// Networks lists the networks.
func (r *psRow) Networks() string {
	if r.c.NetworkSettings == nil {
		return ""
	}
	return strings.Join(slices.Sorted(maps.Keys(r.c.NetworkSettings.Networks)), ",")
}

// Size is what the container has written.
func (r *psRow) Size() string {
	return units.HumanSizeWithPrecision(float64(r.c.SizeRw), 3)
}

type psOptions struct {
	all, quiet, services, orphans, noTrunc bool
	format, filter                         string
	status                                 []string
}

func psCommand(s *session) *cobra.Command {
	var o psOptions
	cmd := command("ps [OPTIONS] [SERVICE...]", "List containers", func(ctx context.Context, args []string) error { return lists{s}.ps(ctx, o, args) })
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Those that have stopped, too, and those that run made")
	f.StringVar(&o.filter, "filter", "", "Show only what matches: status=running")
	f.StringVar(&o.format, "format", "table", "Print as a table, as json, or with a Go template")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten what is long")
	f.BoolVar(&o.orphans, "orphans", true, "Services that the file does not have, too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print only IDs")
	f.BoolVar(&o.services, "services", false, "Print only services")
	f.StringArrayVar(&o.status, "status", nil, "Only those in this state: paused, restarting, removing, running, dead, created or exited")
	return cmd
}

func (s lists) ps(ctx context.Context, o psOptions, services []string) error {
	p, name, err := s.named(ctx, services...)
	if err != nil {
		return err
	}
	if o.filter != "" {
		key, value, ok := strings.Cut(o.filter, "=")
		switch {
		case !ok:
			return errors.New("arguments to --filter should be in form KEY=VAL")
		case key != "status":
			return fmt.Errorf("unknown filter %s", key)
		}
		o.status = append(o.status, value)
	}
	if p != nil && len(services) == 0 && !o.orphans {
		services = p.ServiceNames()
	}
	rows, err := s.psRows(ctx, name, o, services)
	if err != nil {
		return err
	}
	switch {
	case o.quiet:
		for _, r := range rows {
			if r.c.ID != "" {
				s.printf("%s\n", r.c.ID)
			}
		}
		return nil
	case o.services:
		var names []string
		for _, r := range rows {
			if !slices.Contains(names, r.Service()) {
				names = append(names, r.Service())
			}
		}
		s.printf("%s\n", strings.Join(names, "\n"))
		return nil
	case o.format == "table" || o.format == "":
		o.format = psTable
	case o.format == "json":
		for _, r := range rows {
			line, err := json.Marshal(r)
			if err != nil {
				return err
			}
			s.printf("%s\n", line)
		}
		return nil
	}
	list := make([]table.Row, len(rows))
	for i, r := range rows {
		list[i] = r
	}
	return table.Write(s.out, table.Format(o.format), &psRow{}, list)
}

// psRows are the project's containers, and the tasks of a kept app that have none.
func (s lists) psRows(ctx context.Context, name string, o psOptions, services []string) ([]*psRow, error) {
	list, err := s.containers(ctx, name, pick{services: services, stopped: o.all || len(o.status) > 0, oneOff: o.all})
	if err != nil {
		return nil, err
	}
	var rows []*psRow
	for i := range list {
		r := &psRow{c: list[i], project: name, trunc: !o.noTrunc}
		if list[i].State == container.StateExited {
			_, text, _ := strings.Cut(list[i].Status, "(")
			_, _ = fmt.Sscanf(text, "%d", &r.code) // a status without a code has none
		}
		rows = append(rows, r)
	}
	waiting, err := s.waiting(ctx, name, services, list)
	if err != nil {
		return nil, err
	}
	rows = append(rows, waiting...)
	if len(o.status) > 0 {
		rows = slices.DeleteFunc(rows, func(r *psRow) bool { return !slices.Contains(o.status, r.State()) })
	}
	slices.SortStableFunc(rows, func(a, b *psRow) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, r := range rows {
		r.trunc = !o.noTrunc
	}
	return rows, nil
}

// waiting are tasks of a kept app that have no container among those of list: they wait for
// something, or could not be made.
func (s lists) waiting(ctx context.Context, name string, services []string, list []container.Summary) ([]*psRow, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	app, err := c.App(ctx, name)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		return nil, err
	}
	listed := map[string]bool{}
	for i := range list {
		listed[list[i].Labels[cluster.LabelTask]] = true
	}
	var rows []*psRow
	for _, sv := range app.Services {
		if len(services) > 0 && !slices.Contains(services, sv.Name) {
			continue
		}
		for _, t := range sv.Tasks {
			if t.Container != "" || listed[t.ID] || t.Desired == "shutdown" || t.Desired == "remove" {
				continue
			}
			rows = append(rows, &psRow{project: name, waits: taskState(&t), c: container.Summary{
				Names: []string{t.Name}, Image: sv.Image, State: container.ContainerState(t.State), Created: t.Since.Unix(),
				Labels: map[string]string{"com.docker.compose.service": sv.Name, "com.docker.compose.project": name},
			}})
		}
	}
	return rows, nil
}

// taskState says what a task is about, in a few words.
func taskState(t *client.AppTask) string {
	state := t.State
	if state != "" {
		state = strings.ToUpper(state[:1]) + state[1:]
	}
	if why := cmp.Or(t.Err, t.Message); why != "" {
		return state + ": " + why
	}
	return state
}

func portCommand(s *session) *cobra.Command {
	var proto string
	var index int
	cmd := command("port [OPTIONS] SERVICE PRIVATE_PORT", "Show where a port of a service is published", func(ctx context.Context, args []string) error {
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return err
		}
		c, err := s.one(ctx, args[0], index, true)
		if err != nil {
			return err
		}
		for _, p := range c.Ports {
			if uint64(p.PrivatePort) == port && strings.EqualFold(p.Type, proto) && p.PublicPort != 0 {
				addr := p.IP
				if !addr.IsValid() {
					addr = netip.IPv4Unspecified()
				}
				s.printf("%s\n", netip.AddrPortFrom(addr, p.PublicPort))
				return nil
			}
		}
		return fmt.Errorf("no port %d/%s for container %s", port, proto, nameOf(c))
	})
	cmd.Args = cobra.ExactArgs(2)
	cmd.Flags().StringVar(&proto, "protocol", "tcp", "tcp or udp")
	indexFlag(cmd.Flags(), &index)
	return cmd
}

func topCommand(s *session) *cobra.Command {
	return command("top [SERVICES...]", "Show the processes of services", func(ctx context.Context, args []string) error {
		_, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		list, err := s.containers(ctx, name, pick{services: args})
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		titles := []string{"SERVICE", "#"}
		var rows []map[string]string
		for i := range list {
			res, err := c.ContainerTop(ctx, list[i].ID, moby.ContainerTopOptions{})
			if err != nil {
				return err
			}
			for _, title := range res.Titles {
				if !slices.Contains(titles, title) {
					titles = append(titles, title)
				}
			}
			for _, process := range res.Processes {
				row := map[string]string{"SERVICE": serviceOf(&list[i]), "#": strconv.Itoa(number(&list[i]))}
				for n, v := range process {
					row[res.Titles[n]] = v
				}
				rows = append(rows, row)
			}
		}
		if len(rows) == 0 {
			return nil
		}
		if at := slices.Index(titles, "CMD"); at >= 0 { // it is long: to the end
			titles = append(slices.Delete(titles, at, at+1), "CMD")
		}
		return lists{s}.columns(titles, func(line func(...string)) {
			for _, row := range rows {
				cells := make([]string, len(titles))
				for i, t := range titles {
					cells[i] = cmp.Or(row[t], "-")
				}
				line(cells...)
			}
		})
	})
}
