// Package secret holds the commands about secrets and about configs, which are alike:
// files that the cluster keeps and gives to tasks.
package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/endpoint"
	"escale.dev/escale/internal/cli/spec"
	"escale.dev/escale/internal/cli/swarm/inspect"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

// file is a secret or a config.
type file struct {
	id               string
	meta             swarm.Meta
	name             string
	labels           map[string]string
	driver, template string
	data             []byte
}

// kind tells secrets from configs.
type kind struct {
	name    string // secret or config
	drivers bool   // programs of others may keep them
	most    int64  // bytes
	value   any    // what a template of inspect sees
	format  func(endpoint.Config) string

	list    func(context.Context, *client.Client, verb.Filter) ([]file, error)
	inspect func(context.Context, *client.Client, string) (file, []byte, error)
	create  func(context.Context, *client.Client, file) (string, error)
	remove  func(context.Context, *client.Client, string) error
	renew   func(context.Context, *client.Client, string, []byte) (client.Renewed, error)
}

// Secrets are the commands of `secret`.
func Secrets(a *verb.App) []*cobra.Command { return secrets().commands(a) }

// Configs are the commands of `config`.
func Configs(a *verb.App) []*cobra.Command { return configs().commands(a) }

func (k *kind) commands(a *verb.App) []*cobra.Command {
	return []*cobra.Command{k.createCommand(a), k.inspectCommand(a), k.lsCommand(a), k.rmCommand(a), k.updateCommand(a)}
}

func (k *kind) names(a *verb.App) verb.Completer {
	return a.Complete(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := k.list(ctx, c, nil)
		var names []string
		for _, f := range list {
			names = append(names, f.name)
		}
		return names, err
	})
}

func (k *kind) createCommand(a *verb.App) *cobra.Command {
	var f file
	labels := spec.List{Check: spec.CheckLabel}
	word := strings.ToUpper(k.name)
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] " + word + " file|-",
		Short: "Make a " + k.name + " of a file, or of what is read (-)",
		Args:  verb.ExactArgs(2),
		Example: `escale ` + k.name + ` create app.conf ./app.conf
printf 's3cret' | escale ` + k.name + ` create --label team=shop key -`,
	}
	if k.drivers {
		cmd.Use, cmd.Args = "create [OPTIONS] "+word+" [file|-]", verb.RangeArgs(1, 2)
		cmd.Flags().StringVarP(&f.driver, "driver", "d", "", "Name of the driver that has it")
	}
	cmd.Flags().VarP(&labels, "label", "l", "Label: KEY[=VALUE]")
	cmd.Flags().StringVar(&f.template, "template-driver", "", "Fill its template in for each task: golang")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.name, f.labels = args[0], map[string]string{}
		maps.Copy(f.labels, spec.KeyValues(labels.Values))
		path := ""
		if len(args) > 1 {
			path = args[1]
		}
		var err error
		if f.data, err = k.content(a.In, f.driver, path); err != nil {
			return err
		}
		c, err := a.Connect()
		if err != nil {
			return err
		}
		id, err := k.create(cmd.Context(), c, f)
		if err == nil {
			a.Println(id)
		}
		return err
	}
	return cmd
}

// content reads what is to be kept: up to twice what may be, which the engine refuses.
func (k *kind) content(in io.Reader, driver, path string) ([]byte, error) {
	if driver != "" {
		if path != "" {
			return nil, errors.New("When using secret driver secret data must be empty") //nolint:staticcheck // Docker's words.
		}
		return nil, nil
	}
	data, err := k.read(in, path)
	if err != nil && !k.drivers {
		err = fmt.Errorf("Error reading content from %q: %w", path, err) //nolint:staticcheck // Docker's words.
	}
	return data, err
}

func (k *kind) read(in io.Reader, path string) ([]byte, error) {
	from := path
	switch path {
	case "":
		return nil, errors.New(k.name + " file is required")
	case "-":
		from = "STDIN"
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("error reading from %s: %w", path, err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, 2*k.most))
	if err != nil {
		return nil, fmt.Errorf("error reading from %s: %w", from, err)
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("error reading from %s: data is empty", from)
	}
	return data, nil
}

func (k *kind) inspectCommand(a *verb.App) *cobra.Command {
	var o inspect.Options
	word := strings.ToUpper(k.name)
	return o.Command(k.name, word+" ["+word+"...]", k.names(a), func(cmd *cobra.Command, names []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		return o.Run(a.Out, names, func(name string) (inspect.Object, error) {
			f, raw, err := k.inspect(cmd.Context(), c, name)
			return inspect.Object{Raw: raw, Type: k.value, Page: func(w io.Writer) { k.page(w, f) }}, err
		})
	})
}

// page writes a page for people, in the columns of Docker's client.
func (k *kind) page(w io.Writer, f file) {
	if k.drivers {
		fmt.Fprintf(w, "ID:              %s\nName:              %s\n", f.id, f.name)
	} else {
		fmt.Fprintf(w, "ID:\t\t\t%s\nName:\t\t\t%s\n", f.id, f.name)
	}
	inspect.Labels(w, "Labels:", " - ", f.labels)
	created, updated := task.Title(f.meta.CreatedAt.String()), task.Title(f.meta.UpdatedAt.String())
	if k.drivers {
		fmt.Fprintf(w, "Driver:            %s\nCreated at:        %s\nUpdated at:        %s\n", f.driver, created, updated)
		return
	}
	fmt.Fprintf(w, "Created at:            \t%s\nUpdated at:            \t%s\nData:\n%s\n", created, updated, f.data)
}

func (k *kind) lsCommand(a *verb.App) *cobra.Command {
	var o verb.List
	return o.Command("List "+k.name+"s", "Print only IDs", func(ctx context.Context) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		list, err := k.list(ctx, c, o.Filter)
		if err != nil {
			return err
		}
		slices.SortStableFunc(list, func(x, y file) int { return verb.Natural(x.name, y.name) })
		rows := make([]table.Row, len(list))
		for i := range list {
			rows[i] = k.row(list[i])
		}
		return table.Write(a.Out, k.formatOf(o.FormatOr(k.format(a.Config())), o.Quiet), k.row(file{}), rows)
	})
}

func (k *kind) formatOf(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table" && k.drivers:
		return `table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}`
	case format == "table":
		return `table {{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}`
	}
	return table.Format(format)
}

func (k *kind) rmCommand(a *verb.App) *cobra.Command {
	word := strings.ToUpper(k.name)
	return &cobra.Command{
		Use:               "rm " + word + " [" + word + "...]",
		Aliases:           []string{"remove"},
		Short:             "Remove " + k.name + "s that no service uses",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: k.names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return a.InTurn(args, func(name string) error { return k.remove(cmd.Context(), c, name) })
		},
	}
}

func (k *kind) row(f file) table.Row {
	if k.drivers {
		return &secretRow{row{f}}
	}
	return &row{f}
}

// row is a config in a list. Its methods are the fields of a template.
type row struct{ f file }

// Headers gives the title of each column.
func (r *row) Headers() map[string]string {
	return map[string]string{"ID": "ID", "Name": "NAME", "CreatedAt": "CREATED", "UpdatedAt": "UPDATED", "Labels": "LABELS"}
}

// MarshalJSON gives every field by its name.
func (r *row) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the ID.
func (r *row) ID() string { return r.f.id }

// Name is the name.
func (r *row) Name() string { return r.f.name }

// CreatedAt is how long ago it was made.
func (r *row) CreatedAt() string { return ago(r.f.meta.CreatedAt) }

// UpdatedAt is how long ago it was changed.
func (r *row) UpdatedAt() string { return ago(r.f.meta.UpdatedAt) }

// Labels lists the labels.
func (r *row) Labels() string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(r.f.labels)) {
		list = append(list, k+"="+r.f.labels[k])
	}
	return strings.Join(list, ",")
}

// Label is the value of one label.
func (r *row) Label(name string) string { return r.f.labels[name] }

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

// secretRow is a secret in a list.
type secretRow struct{ row }

// Headers gives the title of each column.
func (r *secretRow) Headers() map[string]string {
	h := r.row.Headers()
	h["Driver"] = "DRIVER"
	return h
}

// MarshalJSON gives every field by its name.
func (r *secretRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Driver is the driver that has it.
func (r *secretRow) Driver() string { return r.f.driver }
