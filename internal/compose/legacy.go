package compose

import (
	"bytes"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// topLevel are the keys that the files of today have at the top.
var topLevel = []string{"version", "name", "services", "networks", "volumes", "secrets", "configs", "include", "models"}

// modern gives a file of the first version of compose, whose services are at the top,
// the form of today's, and a version that is a number the form of a text; others stay
// as they are. named tells whether the file names the
// project. A file that cannot be read is left for the loader, which says where.
func modern(content []byte) (out []byte, named bool, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil || len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return content, false, nil
	}
	top := doc.Content[0]
	services := 0
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i].Value, top.Content[i+1]
		switch {
		case key == "name" && value.Kind == yaml.ScalarNode:
			named = true
		case slices.Contains(topLevel, key), strings.HasPrefix(key, "x-"):
			if key == "services" || key == "version" || key == "include" {
				return quoted(content, top), named || names(top), nil
			}
		case value.Kind == yaml.MappingNode && isService(value):
			services++
		default:
			return content, named, nil
		}
	}
	if services == 0 {
		return content, named, nil
	}
	inner := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: top.Content}
	doc.Content[0] = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: "services"}, inner}}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	if err := e.Encode(&doc); err != nil {
		return nil, false, err
	}
	return b.Bytes(), false, e.Close()
}

// quoted writes the version as a text, in its place, so that lines stay where they are.
func quoted(content []byte, top *yaml.Node) []byte {
	for i := 0; i+1 < len(top.Content); i += 2 {
		v := top.Content[i+1]
		if top.Content[i].Value != "version" || v.Kind != yaml.ScalarNode || v.Tag == "!!str" {
			continue
		}
		lines := bytes.SplitAfter(content, []byte("\n"))
		if v.Line < 1 || v.Line > len(lines) || v.Column < 1 || !bytes.HasPrefix(lines[v.Line-1][min(v.Column-1, len(lines[v.Line-1])):], []byte(v.Value)) {
			return content
		}
		line, at := lines[v.Line-1], v.Column-1
		lines[v.Line-1] = slices.Concat(line[:at], []byte(`"`), []byte(v.Value), []byte(`"`), line[at+len(v.Value):])
		return bytes.Join(lines, nil)
	}
	return content
}

// names tells whether the file names the project.
func names(top *yaml.Node) bool {
	for i := 0; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == "name" {
			return true
		}
	}
	return false
}

// isService tells whether a mapping looks like a service.
func isService(n *yaml.Node) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i].Value; k == "image" || k == "build" || k == "extends" {
			return true
		}
	}
	return false
}
