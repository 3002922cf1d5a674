package compose

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v4"
)

// refusal is what cannot be had: InvalidArgument. Its key is where it is written, below
// the service, network or other thing that it is of.
type refusal struct{ key, text string }

// Error implements error.
func (r *refusal) Error() string {
	if r.key == "" {
		return r.text
	}
	return r.key + ": " + r.text
}

// Unwrap gives the kind.
func (r *refusal) Unwrap() error { return errdefs.ErrInvalidArgument }

// refused is what cannot be had.
func refused(key, format string, args ...any) error {
	return &refusal{key, fmt.Sprintf(format, args...)}
}

// below says where a refusal is: in a part of a section.
func below(p *types.Project, section, name string, err error) error {
	var r *refusal
	key := ""
	if errors.As(err, &r) {
		key = r.key
	}
	path := []string{section, name}
	if key != "" {
		path = append(path, strings.Split(key, ".")...)
	}
	return fmt.Errorf("%s%s %q: %w", placed(p.ComposeFiles, path), strings.TrimSuffix(section, "s"), name, err)
}

// placed is "file:line: " of a key, or of the nearest above it; the last file that has
// it counts, as it does for its value. "" when no file has it: it may come from one that
// is included or extended.
func placed(files, path []string) string {
	best, where := 0, ""
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // the standard input
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(content, &doc); err != nil || len(doc.Content) == 0 {
			continue
		}
		line, depth := find(doc.Content[0], path)
		if depth == 0 && path[0] == "services" { // a file of the first version
			if line, depth = find(doc.Content[0], path[1:]); depth > 0 {
				depth++
			}
		}
		if depth > 1 && depth >= best {
			best, where = depth, fmt.Sprintf("%s:%d: ", file, line)
		}
	}
	return where
}

// find goes down a path, so far as it goes.
func find(n *yaml.Node, path []string) (line, depth int) {
	for _, key := range path {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind != yaml.MappingNode {
			return line, depth
		}
		i := 0
		for i+1 < len(n.Content) && n.Content[i].Value != key {
			i += 2
		}
		if i+1 >= len(n.Content) {
			return line, depth
		}
		line, depth, n = n.Content[i].Line, depth+1, n.Content[i+1]
	}
	return line, depth
}

// Check tells whether all that a project asks can be had, short of reading the files of
// secrets and configs; see App. InvalidArgument, with file and line where they are known.
func Check(p *types.Project, swarm bool) error {
	if len(p.Jobs) > 0 {
		names := make([]string, 0, len(p.Jobs))
		for name := range p.Jobs {
			names = append(names, name)
		}
		slices.Sort(names)
		return below(p, "jobs", names[0], refused("", "jobs are not possible: write a service with deploy.mode: replicated-job, or with x-escale-schedule"))
	}
	for _, name := range p.NetworkNames() {
		if _, err := networkSpec(p, name); err != nil {
			return below(p, "networks", name, err)
		}
	}
	for _, name := range p.SecretNames() {
		if err := checkFile(types.FileObjectConfig(p.Secrets[name]), swarm); err != nil {
			return below(p, "secrets", name, err)
		}
	}
	for _, name := range p.ConfigNames() {
		if err := checkFile(types.FileObjectConfig(p.Configs[name]), swarm); err != nil {
			return below(p, "configs", name, err)
		}
	}
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		if _, err := service(p, &s); err != nil {
			return below(p, "services", name, err)
		}
	}
	return nil
}

// checkFile refuses what a secret or config cannot be.
func checkFile(f types.FileObjectConfig, swarm bool) error {
	switch {
	case bool(f.External) && swarm:
		return nil
	case bool(f.External):
		return refused("external", "there is no store of secrets and configs outside an app (a swarm has one): give it a file, a content or an environment variable")
	case f.Driver != "":
		return refused("driver", "a driver is not possible: give it a file or an environment variable")
	case f.TemplateDriver != "":
		return refused("template_driver", "a template is not possible: variables of the compose file are filled in")
	}
	return nil
}
