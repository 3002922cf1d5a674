package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

func eventsCommand(a *app) *cobra.Command {
	var o moby.EventsListOptions
	var filter filterFlag
	var format string
	cmd := &cobra.Command{
		Use: "events [OPTIONS]",
		Example: `escale events --since 10m --until 0s
escale events -f container=web -f event=die --format json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Filters = moby.Filters(filter)
			return runEvents(cmd.Context(), a, o, format)
		},
	}
	f := cmd.Flags()
	f.VarP(&filter, "filter", "f", filterHelp)
	f.StringVar(&format, "format", "", inspectHelp)
	f.StringVar(&o.Since, "since", "", "Begin with the events since this time or age")
	f.StringVar(&o.Until, "until", "", "End at this time")
	return cmd
}

func runEvents(ctx context.Context, a *app, o moby.EventsListOptions, format string) error {
	var tmpl *template.Template
	if format != "" {
		if format == "json" {
			format = "{{json .}}"
		}
		var err error
		if tmpl, err = table.Parse(format); err == nil {
			err = tmpl.Execute(io.Discard, eventRow(events.Message{}))
		}
		if err != nil {
			return &statusError{Code: 64, Text: "Error parsing format: " + err.Error()}
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.Events(ctx, o)
	for {
		select {
		case e := <-stream.Messages:
			if tmpl == nil {
				a.println(eventLine(e))
				continue
			}
			if err := tmpl.Execute(a.out, eventRow(e)); err != nil {
				return err
			}
			a.println()
		case err := <-stream.Err:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// event is what a template sees: the message, and the names its parts had
// before API 1.22, which scripts still use.
type event struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func eventRow(m events.Message) event {
	e := event{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		e.From = m.Actor.Attributes["image"]
		fallthrough
	case events.ImageEventType:
		e.Status, e.ID = string(m.Action), m.Actor.ID
	}
	return e
}

// eventLine is an event on one line: time, type, action, who, and its
// attributes by name.
func eventLine(e events.Message) string {
	const nano = "2006-01-02T15:04:05.000000000Z07:00"
	var b strings.Builder
	switch {
	case e.TimeNano != 0:
		b.WriteString(time.Unix(0, e.TimeNano).Format(nano) + " ")
	case e.Time != 0:
		b.WriteString(time.Unix(e.Time, 0).Format(nano) + " ")
	}
	fmt.Fprintf(&b, "%s %s %s", e.Type, e.Action, e.Actor.ID)
	if len(e.Actor.Attributes) > 0 {
		attrs := make([]string, 0, len(e.Actor.Attributes))
		for k := range e.Actor.Attributes {
			attrs = append(attrs, k)
		}
		slices.Sort(attrs)
		for i, k := range attrs {
			attrs[i] = k + "=" + e.Actor.Attributes[k]
		}
		b.WriteString(" (" + strings.Join(attrs, ", ") + ")")
	}
	return b.String()
}
