package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
)

// Row is one line of a list: a pointer to a struct whose exported methods
// without arguments are the fields a template may name.
type Row interface {
	// Headers gives the column title of each field.
	Headers() map[string]string
}

// headers is what a table's header line is rendered from. Label makes the
// title of {{.Label "a.b-c"}}: "b c".
type headers map[string]string

func (headers) Label(name string) string {
	parts := strings.Split(name, ".")
	return strings.NewReplacer("-", " ", "_", " ").Replace(parts[len(parts)-1])
}

// Format is "table TEMPLATE", "json" or a bare template.
type Format string

// IsTable reports whether columns are aligned under a header.
func (f Format) IsTable() bool { return strings.HasPrefix(string(f), "table") }

// body is the template behind the word table, with \t and \n made real.
func (f Format) body() string {
	s := string(f)
	switch {
	case f.IsTable():
		s = s[len("table"):]
	case s == "json":
		return "{{json .}}"
	}
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(strings.Trim(s, " "))
}

// Write prints the rows. empty is a row of the list's kind: it gives the
// header, also of a list without rows.
func Write(w io.Writer, f Format, empty Row, rows []Row) error {
	tmpl, err := Parse(f.body())
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	var b bytes.Buffer
	for _, r := range rows {
		if err := tmpl.Execute(&b, r); err != nil {
			return fmt.Errorf("template parsing error: %w", err)
		}
		b.WriteByte('\n')
	}
	if !f.IsTable() {
		_, err := b.WriteTo(w)
		return err
	}
	t := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	writeHeader(t, tmpl, empty)
	_, _ = b.WriteTo(t)
	return t.Flush()
}

func writeHeader(w io.Writer, tmpl *template.Template, empty Row) {
	var b bytes.Buffer
	// A template that fails on titles (a comparison with a number, say) still
	// prints its rows: what of the header came out is shown.
	_ = tmpl.Funcs(headerFuncs()).Execute(&b, headers(empty.Headers()))
	b.WriteByte('\n')
	_, _ = b.WriteTo(w)
}

// Uses reports whether a template, run on row, asks for what probe watches:
// row is executed to nowhere and probe asked afterwards.
func Uses(f Format, row Row, probe func() bool) (bool, error) {
	tmpl, err := Parse(string(f))
	if err != nil {
		return false, fmt.Errorf("failed to parse template: %w", err)
	}
	if err := tmpl.Execute(io.Discard, row); err != nil {
		return false, fmt.Errorf("failed to execute template: %w", err)
	}
	return probe(), nil
}

// MarshalRow gives a row as JSON: every field by its name.
func MarshalRow(r Row) ([]byte, error) {
	v := reflect.ValueOf(r)
	m := map[string]any{}
	for name := range r.Headers() {
		f := v.MethodByName(name)
		if f.IsValid() && f.Type().NumIn() == 0 && f.Type().NumOut() == 1 {
			m[name] = f.Call(nil)[0].Interface()
		}
	}
	return json.Marshal(m)
}

// Ellipsis cuts s to n columns, the last of them "…".
func Ellipsis(s string, n int) string {
	width := 0
	for _, r := range s {
		width += runeWidth(r)
	}
	if width <= n {
		return s
	}
	width = 0
	for i, r := range s {
		if width += runeWidth(r); width > n-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// runeWidth is the columns a character takes: two for East Asian wide ones.
func runeWidth(r rune) int {
	switch {
	case r < 0x1100:
		return 1
	case r <= 0x115f, r >= 0x2e80 && r <= 0x303e, r >= 0x3041 && r <= 0xa4cf,
		r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f,
		r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1f64f, r >= 0x1f900 && r <= 0x1f9ff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// Contains reports whether the format's text has sub in it.
func (f Format) Contains(sub string) bool { return strings.Contains(string(f), sub) }
