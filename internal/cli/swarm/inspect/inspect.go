// Package inspect shows all that is known of an object of the cluster: as JSON, through
// a template, or as a page for people.
package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

// Options are those of inspect.
type Options struct {
	Format string
	Pretty bool
}

// Command makes the inspect of a kind of object.
func (o *Options) Command(kind, use string, names verb.Completer, run func(cmd *cobra.Command, names []string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect [OPTIONS] " + use,
		Short:             "Show everything the cluster knows about " + kind + "s",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Pretty {
				o.Format = "pretty"
			}
			if strings.HasPrefix(o.Format, "pretty") && o.Format != "pretty" {
				return errors.New("cannot supply extra formatting options to the pretty template")
			}
			return run(cmd, args)
		},
	}
	cmd.Flags().StringVarP(&o.Format, "format", "f", "", verb.InspectHelp)
	cmd.Flags().BoolVar(&o.Pretty, "pretty", false, "Print a page for people")
	return cmd
}

// Object is one that was found: as the engine sent it, and as a page.
type Object struct {
	Raw  json.RawMessage
	Type any // a value of the type that a template sees
	Page func(io.Writer)
}

// Run finds the objects and prints them. A page is printed when all were found.
func (o *Options) Run(out io.Writer, names []string, find func(name string) (Object, error)) error {
	if o.Format == "pretty" {
		var page strings.Builder
		for _, n := range names {
			ob, err := find(n)
			if err != nil {
				return err
			}
			ob.Page(&page)
		}
		_, err := io.WriteString(out, page.String())
		return err
	}
	in, err := table.NewInspector(o.Format)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		ob, err := find(n)
		if err == nil {
			err = in.Add(ob.Raw, ob.Type)
		}
		if err != nil {
			errs = append(errs, err)
		}
		if moby.IsErrConnectionFailed(err) {
			break
		}
	}
	return errors.Join(in.Flush(out), verb.Join(errs))
}

// Labels prints labels, one a line, each behind a mark.
func Labels(w io.Writer, title, mark string, labels map[string]string) {
	if len(labels) == 0 {
		return
	}
	fmt.Fprintln(w, title)
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprint(w, mark, k)
		if v := labels[k]; v != "" {
			fmt.Fprint(w, "=", v)
		}
		fmt.Fprintln(w)
	}
}
