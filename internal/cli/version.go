package cli

import (
	"context"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/moby/moby/api/types/system"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

// What the linker fills in (-X escale.dev/escale/internal/cli.Version=…).
var (
	Version   = "0.1.0-dev"
	GitCommit = ""
	BuildTime = "" // RFC 3339
)

// commit is the revision of the source, from the linker or from what the Go
// command noted.
func commit() string {
	if GitCommit != "" {
		return GitCommit
	}
	return short(buildSetting("vcs.revision"), 7)
}

func buildSetting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

func short(s string, n int) string { return s[:min(n, len(s))] }

type clientVersion struct {
	Platform          *system.PlatformInfo `json:",omitempty"`
	Version           string               `json:",omitempty"`
	APIVersion        string               `json:"ApiVersion,omitempty"`
	DefaultAPIVersion string               `json:",omitempty"`
	GitCommit         string               `json:",omitempty"`
	GoVersion         string               `json:",omitempty"`
	Os                string               `json:",omitempty"`
	Arch              string               `json:",omitempty"`
	BuildTime         string               `json:",omitempty"`
	Context           string
}

type bothVersions struct {
	Client clientVersion
	Server *system.VersionResponse
}

const versionFormat = `{{with .Client -}}
Client:{{if .Platform}}{{if .Platform.Name}} {{.Platform.Name}}{{end}}{{end}}
 Version:	{{.Version}}
 API version:	{{.APIVersion}}{{if ne .APIVersion .DefaultAPIVersion}} (downgraded from {{.DefaultAPIVersion}}){{end}}
 Go version:	{{.GoVersion}}
 Git commit:	{{.GitCommit}}
 Built:	{{.BuildTime}}
 OS/Arch:	{{.Os}}/{{.Arch}}
 Context:	{{.Context}}
{{- end}}
{{- with .Server}}

Server:{{if .Platform.Name}} {{.Platform.Name}}{{end}}
 {{- range $c := .Components}}
 {{$c.Name}}:
  {{- if eq $c.Name "Engine"}}{{with .Details}}
  Version:	{{$c.Version}}
  API version:	{{index . "ApiVersion"}} (minimum version {{index . "MinAPIVersion"}})
  Go version:	{{index . "GoVersion"}}
  Git commit:	{{index . "GitCommit"}}
  Built:	{{index . "BuildTime"}}
  OS/Arch:	{{index . "Os"}}/{{index . "Arch"}}
  Experimental:	{{index . "Experimental"}}
  {{- end}}{{else}}
  Version:	{{$c.Version}}
  {{- range $k := keys $c.Details}}
  {{$k}}:	{{index $c.Details $k}}
  {{- end}}{{end}}
 {{- end}}{{end}}`

func versionCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "version [OPTIONS]",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runVersion(cmd.Context(), a, format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", inspectHelp)
	return cmd
}

func clientVersionOf(context string) clientVersion {
	built := BuildTime
	if built == "" {
		built = buildSetting("vcs.time")
	}
	return clientVersion{
		Version: Version, DefaultAPIVersion: moby.MaxAPIVersion, GoVersion: runtime.Version(), GitCommit: commit(),
		Os: runtime.GOOS, Arch: runtime.GOARCH, BuildTime: ansiTime(built), Context: context,
	}
}

// ansiTime writes an RFC 3339 time as Docker's client does.
func ansiTime(s string) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return s
	}
	return t.Format(time.ANSIC)
}

func runVersion(ctx context.Context, a *app, format string) error {
	switch format {
	case "":
		format = versionFormat
	case "json":
		format = "{{json .}}"
	}
	base, err := table.Parse("")
	if err != nil {
		return err
	}
	tmpl, err := base.New("version").Funcs(template.FuncMap{
		"keys": func(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) },
	}).Parse(format)
	if err != nil {
		return &statusError{Code: 64, Text: "template parsing error: " + err.Error()}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v := bothVersions{}
	var srv system.VersionResponse
	resp, connErr := c.Do(ctx, "GET", "/version", nil, nil)
	if connErr == nil {
		connErr = decode(resp, &srv)
	}
	v.Client = clientVersionOf(a.endpoint.Context)
	v.Client.APIVersion = c.ClientVersion()
	if connErr == nil {
		v.Server = withEngine(srv)
	}
	t := tabwriter.NewWriter(a.out, 20, 1, 1, ' ', 0)
	execErr := tmpl.Execute(t, v)
	_, _ = t.Write([]byte("\n"))
	_ = t.Flush()
	if connErr != nil {
		return connErr
	}
	return execErr
}

// withEngine adds the component that engines before 18.06 do not list.
func withEngine(v system.VersionResponse) *system.VersionResponse {
	for _, c := range v.Components {
		if c.Name == "Engine" {
			if t, ok := c.Details["BuildTime"]; ok {
				c.Details["BuildTime"] = ansiTime(t)
			}
			return &v
		}
	}
	v.Components = append(v.Components, system.ComponentVersion{
		Name: "Engine", Version: v.Version,
		Details: map[string]string{
			"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "GitCommit": v.GitCommit, "GoVersion": v.GoVersion,
			"Os": v.Os, "Arch": v.Arch, "BuildTime": ansiTime(v.BuildTime), "Experimental": strconv.FormatBool(v.Experimental),
		},
	})
	return &v
}
