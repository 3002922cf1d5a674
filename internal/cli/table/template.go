// Package table prints lists and objects: as columns, as JSON, or through a Go
// template of the user's (--format), with the functions and the header rules
// of Docker's client.
package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"text/template"
)

// Parse compiles a format with the functions json, split, join, title, lower,
// upper, pad and truncate.
func Parse(format string) (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"json":     toJSON,
		"split":    strings.Split,
		"join":     join,
		"title":    title,
		"lower":    strings.ToLower,
		"upper":    strings.ToUpper,
		"pad":      pad,
		"truncate": truncate,
	}).Parse(format)
}

// headerFuncs leave a column's title as it is, whatever the template does to
// the values below it.
func headerFuncs() template.FuncMap {
	same := func(s string, _ ...any) string { return s }
	return template.FuncMap{
		"json": same, "split": same, "title": same, "lower": same, "upper": same, "truncate": same,
		"join": same,
	}
}

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}

// join takes any list, because named string types are common in the API.
func join(list any, sep string) (string, error) {
	if s, ok := list.([]string); ok {
		return strings.Join(s, sep), nil
	}
	v := reflect.ValueOf(list)
	if v.Kind() != reflect.Slice && v.Kind() != reflect.Array {
		return "", fmt.Errorf("join: %T is no list", list)
	}
	parts := make([]string, v.Len())
	for i := range parts {
		parts[i] = fmt.Sprint(v.Index(i).Interface())
	}
	return strings.Join(parts, sep), nil
}

// title capitalises words, which here are always ASCII.
func title(s string) string {
	b := []byte(s)
	start := true
	for i, c := range b {
		if start && c >= 'a' && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
		start = c == ' ' || c == '\t' || c == '-' || c == '.' || c == '/'
	}
	return string(b)
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
}

func truncate(s string, n int) string {
	if n < 0 || len(s) < n {
		return s
	}
	return s[:n]
}
