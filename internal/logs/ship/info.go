package ship

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"text/template"
	"time"
	"unicode"
)

// Info is what a driver is told of a container. Its fields and methods are what tag
// templates may name, so they are called as in Docker.
type Info struct {
	Config              map[string]string // the options
	ContainerID         string
	ContainerName       string // with a leading slash
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string
	ContainerLabels     map[string]string
	LogPath             string
	DaemonName          string
}

// ID is the container's short id.
func (i *Info) ID() string { return short(i.ContainerID) }

// FullID is the container's id.
func (i *Info) FullID() string { return i.ContainerID }

// Name is the container's name without a slash.
func (i *Info) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID is the beginning of the image's id, as Docker cuts it.
func (i *Info) ImageID() string { return short(i.ContainerImageID) }

// ImageFullID is the image's id.
func (i *Info) ImageFullID() string { return i.ContainerImageID }

// ImageName is the image as it was asked for.
func (i *Info) ImageName() string { return i.ContainerImageName }

// Command is what the container runs.
func (i *Info) Command() string {
	return strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " ")
}

// Hostname is the name of this machine.
func (i *Info) Hostname() (string, error) { return os.Hostname() }

func short(id string) string { return id[:min(12, len(id))] }

// ExtraAttributes are the labels and variables that the options name, their keys
// through rename unless that is nil.
func (i *Info) ExtraAttributes(rename func(string) string) (map[string]string, error) {
	out := map[string]string{}
	env := map[string]string{}
	for _, kv := range i.ContainerEnv {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	add := func(from map[string]string, list, pattern string) error {
		put := func(k string) {
			if v, ok := from[k]; ok && k != "" {
				if rename != nil {
					k = rename(k)
				}
				out[k] = v
			}
		}
		for k := range strings.SplitSeq(list, ",") {
			put(k)
		}
		if pattern == "" {
			return nil
		}
		rule, err := regexp.Compile(pattern)
		if err != nil {
			return err
		}
		for k := range from {
			if rule.MatchString(k) {
				put(k)
			}
		}
		return nil
	}
	if err := add(i.ContainerLabels, i.Config["labels"], i.Config["labels-regex"]); err != nil {
		return nil, fmt.Errorf("labels-regex: %w", err)
	}
	if err := add(env, i.Config["env"], i.Config["env-regex"]); err != nil {
		return nil, fmt.Errorf("env-regex: %w", err)
	}
	return out, nil
}

// DefaultTag is what most drivers use without the option tag.
const DefaultTag = "{{.ID}}"

// functions are what Docker's templates have beside the language's own.
var functions = template.FuncMap{
	"json": func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			return ""
		}
		return string(b)
	},
	"split": strings.Split,
	"join":  strings.Join,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"title": func(s string) string {
		before := ' '
		return strings.Map(func(r rune) rune {
			first := !unicode.IsLetter(before) && !unicode.IsDigit(before) && before != '_' && before != '\''
			if before = r; first {
				return unicode.ToTitle(r)
			}
			return r
		}, s)
	},
	"pad": func(s string, before, after int) string {
		if s == "" || before < 0 || after < 0 {
			return s
		}
		return strings.Repeat(" ", min(before, 1024)) + s + strings.Repeat(" ", min(after, 1024))
	},
	"truncate": func(s string, n int) string { return s[:max(0, min(n, len(s)))] },
}

// Tag fills in the option tag, or fallback where it is not given.
func (i *Info) Tag(fallback string) (string, error) {
	text := i.Config["tag"]
	if text == "" {
		text = fallback
	}
	t, err := template.New("log-tag").Funcs(functions).Parse(text)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, i); err != nil {
		return "", err
	}
	return b.String(), nil
}
