package cluster

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// Constraint is a condition on a node: an attribute that has a value, or has it not.
type Constraint struct {
	Attribute string // "node.role", "node.labels.zone" …, in small letters but for a label's name
	Value     string
	Not       bool
}

var (
	attribute = regexp.MustCompile(`^(?i)[a-z_][a-z0-9\-_.]+$`)
	value     = regexp.MustCompile(`^(?i)[a-z0-9:\-_\s\.\*\(\)\?\+\[\]\\\^\$\|\/]+$`)
)

// ParseConstraints reads constraints, "node.role == manager" or "node.labels.zone != b".
// InvalidArgument when one is none.
func ParseConstraints(list []string) ([]Constraint, error) {
	var out []Constraint
	for _, s := range list {
		c, err := parseConstraint(s)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func parseConstraint(s string) (Constraint, error) {
	for _, op := range []string{"==", "!="} {
		name, v, ok := strings.Cut(s, op)
		if !ok {
			continue
		}
		name, v = strings.TrimSpace(name), strings.TrimSpace(v)
		switch {
		case !attribute.MatchString(name):
			return Constraint{}, fmt.Errorf("key '%s' is invalid: %w", name, errdefs.ErrInvalidArgument)
		case !value.MatchString(v):
			return Constraint{}, fmt.Errorf("value '%s' is invalid: %w", v, errdefs.ErrInvalidArgument)
		}
		return Constraint{Attribute: AttributeOf(name), Value: v, Not: op == "!="}, nil
	}
	return Constraint{}, fmt.Errorf("constraint expected one operator from ==, !=: %w", errdefs.ErrInvalidArgument)
}

// AttributeOf writes what is no label's name in small letters.
func AttributeOf(name string) string {
	for _, prefix := range []string{"node.labels.", "engine.labels."} {
		if len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
			return prefix + name[len(prefix):]
		}
	}
	return strings.ToLower(name)
}

// Holds tells whether the node is as the constraint wants it. One on an attribute
// that there is not holds on no node.
func (c Constraint) Holds(n *Node) bool {
	is, want := c.Of(n), c.Value
	switch {
	case !c.known():
		return false
	case c.Attribute == "node.platform.arch":
		is, want = architecture(is), architecture(want)
	}
	return strings.EqualFold(is, want) != c.Not
}

// attributes are what a node has beside labels.
var attributes = map[string]func(*Node) string{
	"node.id":            func(n *Node) string { return n.ID },
	"node.hostname":      func(n *Node) string { return n.Name },
	"node.ip":            func(n *Node) string { return n.Status.Addr },
	"node.platform.os":   func(n *Node) string { return n.Status.Platform.OS },
	"node.platform.arch": func(n *Node) string { return n.Status.Platform.Architecture },
	"node.role": func(n *Node) string {
		if n.Spec.Manager {
			return "manager"
		}
		return "worker"
	},
}

// known tells whether nodes have the attribute, if only as a label they could have.
func (c Constraint) known() bool {
	return attributes[c.Attribute] != nil || strings.HasPrefix(c.Attribute, "node.labels.") || strings.HasPrefix(c.Attribute, "engine.labels.")
}

// Of is the node's value of the attribute, "" when it has none.
func (c Constraint) Of(n *Node) string {
	if label, ok := strings.CutPrefix(c.Attribute, "node.labels."); ok {
		return n.Spec.Labels[label]
	}
	if label, ok := strings.CutPrefix(c.Attribute, "engine.labels."); ok {
		return n.Status.EngineLabels[label]
	}
	if of := attributes[c.Attribute]; of != nil {
		return of(n)
	}
	return ""
}

// Suits tells whether the nodes of p run what is for the platform of an image; what
// an image leaves out is any.
func (p Platform) Suits(image Platform) bool {
	return (image.OS == "" || image.OS == p.OS) && (image.Architecture == "" || architecture(image.Architecture) == architecture(p.Architecture))
}

// architecture writes the names that kernels have for architectures as images do.
func architecture(name string) string {
	switch strings.ToLower(name) {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return strings.ToLower(name)
}
