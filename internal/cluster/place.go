package cluster

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
)

// Place is where a task is: what templates in its spec, and in configs and secrets, can
// ask for. The zero Place serves to look whether a template can be expanded.
type Place struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     Platform
	}
	Task struct {
		ID, Name string
		Slot     string // a number, or a node's id
	}
}

// Place is where the task is, on a node.
func (t *Task) Place(n *Node) (p Place) {
	p.Service.ID, p.Service.Labels = t.Owner, t.Labels
	p.Service.Name, p.Task.Slot = t.split()
	if t.Slot != 0 {
		p.Task.Slot = strconv.FormatUint(t.Slot, 10)
	}
	p.Node.ID, p.Node.Hostname, p.Node.Platform = n.ID, n.Name, n.Status.Platform
	p.Task.ID, p.Task.Name = t.ID, t.Name+"."+t.ID
	return p
}

// split gives the service and the place that a task's name consists of.
func (t *Task) split() (service, slot string) {
	i := strings.LastIndexByte(t.Name, '.')
	if i < 0 {
		return t.Name, ""
	}
	return t.Name[:i], t.Name[i+1:]
}

// ServiceName is the name of the task's service, which may be no more.
func (t *Task) ServiceName() string {
	name, _ := t.split()
	return name
}

// Bounds of what a template makes, in bytes: as a whole, and of a text within.
const (
	maxExpanded = 1 << 20
	maxPrinted  = 64 << 10
)

// Expand gives a text with the values it asks for: {{.Task.Slot}}, {{.Node.Hostname}} …,
// and, by further functions, {{env "X"}}, {{secret "x"}}, {{config "x"}}. A template is
// no program: it has no loops but over labels, no templates in it, and prints little.
func (p Place) Expand(text string, functions template.FuncMap) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New("expansion").Option("missingkey=error").Funcs(printing).Funcs(functions).Parse(text)
	if err != nil {
		return "", err
	}
	if len(t.Templates()) > 1 {
		return "", errors.New("a template cannot define others")
	}
	if t.Tree == nil { // nothing but comments
		return "", nil
	}
	if err := plain(t.Root, false); err != nil {
		return "", err
	}
	var b bounded
	if err := t.Execute(&b, p); err != nil {
		return "", err
	}
	return b.String(), nil
}

// plain refuses what could go on for ever.
func plain(n parse.Node, looping bool) error {
	var lists []*parse.ListNode
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, part := range n.Nodes {
			if err := plain(part, looping); err != nil {
				return err
			}
		}
	case *parse.TemplateNode:
		return errors.New("a template cannot have others in it")
	case *parse.RangeNode:
		if looping || n.Pipe == nil || len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 1 || n.Pipe.Cmds[0].Args[0].String() != ".Service.Labels" {
			return errors.New("a template can only range over .Service.Labels, and not within another range")
		}
		lists, looping = []*parse.ListNode{n.List, n.ElseList}, true
	case *parse.IfNode:
		lists = []*parse.ListNode{n.List, n.ElseList}
	case *parse.WithNode:
		lists = []*parse.ListNode{n.List, n.ElseList}
	}
	for _, l := range lists {
		if l != nil {
			if err := plain(l, looping); err != nil {
				return err
			}
		}
	}
	return nil
}

// wide finds verbs of printf that give a width.
var wide = regexp.MustCompile(`%[^a-zA-Z%]*[0-9*]`)

// printing are the functions that make texts, with bounds.
var printing = template.FuncMap{
	"join":    strings.Join,
	"print":   func(a ...any) (string, error) { return short(fmt.Sprint(a...)) },
	"println": func(a ...any) (string, error) { return short(fmt.Sprintln(a...)) },
	"printf": func(format string, a ...any) (string, error) {
		if wide.MatchString(format) {
			return "", fmt.Errorf("format %q: a width is not possible", format)
		}
		return short(fmt.Sprintf(format, a...))
	},
}

func short(s string) (string, error) {
	if len(s) > maxPrinted {
		return "", fmt.Errorf("a text of %d bytes; %d are possible", len(s), maxPrinted)
	}
	return s, nil
}

// bounded is a text that does not grow without end.
type bounded struct{ strings.Builder }

// Write implements io.Writer.
func (b *bounded) Write(part []byte) (int, error) {
	if b.Len()+len(part) > maxExpanded {
		return 0, fmt.Errorf("it becomes larger than %d bytes", maxExpanded)
	}
	return b.Builder.Write(part)
}
