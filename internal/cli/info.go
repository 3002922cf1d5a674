package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"regexp"
	"strings"

	"github.com/moby/moby/api/types/system"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

func infoCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "info [OPTIONS]",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format == "" {
				return printInfo(cmd.Context(), a)
			}
			return formatInfo(cmd.Context(), a, format)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectHelp)
	return cmd
}

// clientInfo is the client's part of the answer.
type clientInfo struct {
	Debug bool
	clientVersion
	Plugins  []string
	Warnings []string
}

func newClientInfo(a *app) clientInfo {
	return clientInfo{Debug: a.debug, clientVersion: clientVersionOf(a.endpoint.Context), Plugins: []string{}}
}

// formatInfo runs a template on the engine's answer and the client's.
func formatInfo(ctx context.Context, a *app, format string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	tmpl, err := table.Parse(format)
	if err != nil {
		return &statusError{Code: 64, Text: "template parsing error: " + err.Error()}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	ci := newClientInfo(a)
	// A template about the client alone needs no engine.
	if regexp.MustCompile(`\.[a-zA-Z]`).MatchString(format) {
		err := tmpl.Execute(io.Discard, struct {
			ClientInfo   *clientInfo
			ClientErrors []string
		}{ClientInfo: &ci})
		if err == nil {
			err = tmpl.Execute(a.out, struct{ ClientInfo *clientInfo }{&ci})
			a.println()
			return err
		}
	}
	var raw []byte
	resp, connErr := c.Do(ctx, "GET", "/info", nil, nil)
	if connErr == nil {
		raw, connErr = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	ci.APIVersion = c.ClientVersion()
	data, err := infoValue(raw, ci)
	if err != nil {
		return errors.Join(connErr, err)
	}
	if connErr != nil && !moby.IsErrConnectionFailed(connErr) {
		a.complain(connErr)
		connErr = nil
	}
	if err = tmpl.Execute(a.out, data); err != nil {
		// The type was made at run time and has no name, only a page of fields.
		text, _, _ := strings.Cut(err.Error(), " in type struct {")
		err = errors.New(text)
	}
	a.println()
	return errors.Join(connErr, err)
}

// infoValue joins the engine's answer and the client's in one value, whose
// type has addresses as strings.
func infoValue(raw []byte, ci clientInfo) (any, error) {
	t := table.Plain(reflect.TypeFor[system.Info]())
	var fields []reflect.StructField
	for i := range t.NumField() {
		f := t.Field(i)
		fields = append(fields, reflect.StructField{Name: f.Name, Type: f.Type, Tag: f.Tag})
	}
	fields = append(fields,
		reflect.StructField{Name: "ServerErrors", Type: reflect.TypeFor[[]string](), Tag: `json:",omitempty"`},
		reflect.StructField{Name: "ClientInfo", Type: reflect.TypeFor[*clientInfo](), Tag: `json:",omitempty"`},
		reflect.StructField{Name: "ClientErrors", Type: reflect.TypeFor[[]string](), Tag: `json:",omitempty"`},
	)
	v := reflect.New(reflect.StructOf(fields))
	if raw != nil {
		if err := json.Unmarshal(raw, v.Interface()); err != nil {
			return nil, err
		}
	}
	v.Elem().FieldByName("ClientInfo").Set(reflect.ValueOf(&ci))
	return v.Elem().Interface(), nil
}

// printInfo writes the page for people.
func printInfo(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	a.println("Client:")
	ci := newClientInfo(a)
	a.println(" Version:   ", ci.Version)
	a.println(" Context:   ", ci.Context)
	a.println(" Debug Mode:", ci.Debug)
	a.println("\nServer:")
	res, err := c.Info(ctx, moby.InfoOptions{})
	switch {
	case moby.IsErrConnectionFailed(err):
		return err
	case err != nil:
		a.complain("ERROR:", err)
		return errors.New("errors pretty printing info")
	}
	p := infoPage{a: a, i: &res.Info}
	p.print()
	for _, w := range res.Info.Warnings {
		a.complain(w)
	}
	return nil
}
