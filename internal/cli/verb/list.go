package verb

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Filter is -f NAME=VALUE, repeatable.
type Filter map[string]map[string]bool

// Set adds one.
func (m *Filter) Set(s string) error {
	if s == "" {
		return nil
	}
	name, value, ok := CutFilter(s)
	if !ok {
		return errors.New("bad format of filter (expected name=value)")
	}
	m.Add(name, value)
	return nil
}

// CutFilter takes a filter apart.
func CutFilter(s string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(s, "=")
	return strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value), ok
}

// Add adds a value to those of a name.
func (m *Filter) Add(name, value string) {
	if *m == nil {
		*m = Filter{}
	}
	if (*m)[name] == nil {
		(*m)[name] = map[string]bool{}
	}
	(*m)[name][value] = true
}

// With gives a copy that has one more value.
func (m Filter) With(name, value string) Filter {
	out := Filter{}
	for n, values := range m {
		out[n] = maps.Clone(values)
	}
	out.Add(name, value)
	return out
}

// API is the filter as the client takes it.
func (m Filter) API() moby.Filters { return moby.Filters(m) }

// String is nothing: filters have no default.
func (m *Filter) String() string { return "" }

// Type is the word of help.
func (m *Filter) Type() string { return "filter" }

// List are the options of a list.
type List struct {
	Quiet  bool
	Format string
	Filter Filter
}

// Command makes the ls of a kind of object.
func (o *List) Command(short, quietHelp string, run func(context.Context) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "ls [OPTIONS]",
		Aliases:           []string{"list"},
		Short:             short,
		Args:              NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return run(cmd.Context()) },
	}
	o.AddFlags(cmd.Flags(), quietHelp)
	return cmd
}

// AddFlags defines the options.
func (o *List) AddFlags(f *pflag.FlagSet, quietHelp string) {
	f.VarP(&o.Filter, "filter", "f", FilterHelp)
	f.StringVar(&o.Format, "format", "", FormatHelp)
	f.BoolVarP(&o.Quiet, "quiet", "q", false, quietHelp)
}

// FormatOr is what was asked for, or what the configuration has, or a table.
func (o *List) FormatOr(configured string) string {
	if o.Format == "" && !o.Quiet {
		return cmp.Or(configured, "table")
	}
	return cmp.Or(o.Format, "table")
}

// Natural compares names as people sort them: web.2 comes before web.10.
func Natural(x, y string) int {
	for x != "" && y != "" {
		a, b := digits(x), digits(y)
		if a == 0 || b == 0 {
			if x[0] != y[0] {
				return cmp.Compare(x[0], y[0])
			}
			x, y = x[1:], y[1:]
			continue
		}
		m, n := strings.TrimLeft(x[:a], "0"), strings.TrimLeft(y[:b], "0")
		if c := cmp.Or(cmp.Compare(len(m), len(n)), cmp.Compare(m, n), cmp.Compare(a, b)); c != 0 {
			return c
		}
		x, y = x[a:], y[b:]
	}
	return cmp.Compare(len(x), len(y))
}

// digits counts those that a word begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
