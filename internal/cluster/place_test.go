package cluster

import (
	"strings"
	"testing"
	"text/template"
)

func placed() Place {
	task := &Task{Meta: Meta{ID: "t1", Name: "my.web.3", Owner: "s1", Labels: map[string]string{"zone": "a", "tier": "b"}}}
	return task.Place(&Node{Meta: Meta{ID: "n1", Name: "host"}, Status: NodeStatus{Platform: Platform{OS: "linux", Architecture: "amd64"}}})
}

func TestExpand(t *testing.T) {
	for text, want := range map[string]string{
		"plain": "plain", "{{.Service.ID}} {{.Service.Name}} {{.Service.Labels.zone}}": "s1 my.web a",
		"{{.Node.ID}}-{{.Node.Hostname}}-{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}": "n1-host-linux-amd64",
		"{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}":                                            "t1 my.web.3.t1 3",
		`{{index .Service.Labels "tier"}}`:                                                      "b",
		"{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}":                              "tier=b;zone=a;",
		`{{if eq .Task.Slot "3"}}third{{end}}{{printf "-%s" .Node.ID}}`:                         "third-n1",
		`{{env "X"}}`:  "x",
		"{{/* no */}}": "",
	} {
		got, err := placed().Expand(text, template.FuncMap{"env": func(string) string { return "x" }})
		if err != nil || got != want {
			t.Errorf("%s: %q %v", text, got, err)
		}
	}
	for _, text := range []string{
		"{{.Nope}}", "{{", "{{.Service.Labels.none}}", `{{secret "x"}}`, "{{range 1000000000000}}{{end}}", `{{printf "%1000000000d" 1}}`, `{{printf "%*d" 1000000 1}}`,
		`{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`, `{{template "x"}}`, `{{block "a" .}}{{end}}`,
		"{{range .Service.Labels}}{{range .Service.Labels}}{{end}}{{end}}", "{{if true}}{{range 9}}{{end}}{{end}}", "{{with 1}}{{else}}{{range 9}}{{end}}{{end}}",
		`{{$x := "xxxxxxxxxxxxxxxx"}}` + strings.Repeat("{{$x = print $x $x}}", 60),
	} {
		if got, err := placed().Expand(text, nil); err == nil {
			t.Errorf("%s: %d bytes", text, len(got))
		}
	}
}

// No template takes the engine down, or makes more than it may.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"{{.Task.Slot}}", "{{range .Service.Labels}}{{.}}{{end}}", `{{with $x := print 1 2}}{{$x}}{{else}}{{end}}`, `{{if and 1 (not 0)}}{{html "a"}}{{end}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := placed().Expand(text, nil); err == nil && strings.Contains(text, "{{") && len(got) > maxExpanded {
			t.Error(len(got))
		}
	})
}
