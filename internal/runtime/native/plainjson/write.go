package plainjson

import (
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Writer makes one JSON text. The first error stays.
type Writer struct {
	text []byte
	err  error
}

// Write makes the text of a value by the function for its type. The error is that of a
// time that RFC 3339 cannot tell.
func Write[T any](v *T, write func(*Writer, *T)) ([]byte, error) {
	w := &Writer{text: make([]byte, 0, 4096)}
	write(w, v)
	if w.err != nil {
		return nil, w.err
	}
	return w.text, nil
}

// Open begins an object.
func (w *Writer) Open() { w.text = append(w.text, '{') }

// Close ends an object.
func (w *Writer) Close() { w.text = append(w.text, '}') }

// Key begins a field, whose value has to follow.
func (w *Writer) Key(name string) {
	if w.text[len(w.text)-1] != '{' {
		w.text = append(w.text, ',')
	}
	w.quote(name)
	w.text = append(w.text, ':')
}

// WriteText writes a string.
func WriteText[T ~string](w *Writer, v *T) { w.quote(string(*v)) }

// WriteBool writes true or false.
func WriteBool[T ~bool](w *Writer, v *T) { w.text = strconv.AppendBool(w.text, bool(*v)) }

// WriteInt writes a number.
func WriteInt[T ~int | ~int8 | ~int16 | ~int32 | ~int64](w *Writer, v *T) {
	w.text = strconv.AppendInt(w.text, int64(*v), 10)
}

// WriteUint writes a number.
func WriteUint[T ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr](w *Writer, v *T) {
	w.text = strconv.AppendUint(w.text, uint64(*v), 10)
}

// WriteTime writes a time of RFC 3339, to the nanosecond.
func WriteTime(w *Writer, v *time.Time) {
	b, err := v.MarshalJSON()
	if err != nil && w.err == nil {
		w.err = err
	}
	w.text = append(w.text, b...)
}

// WritePointer writes what is pointed at, or null.
func WritePointer[T any](w *Writer, v **T, write func(*Writer, *T)) {
	if *v == nil {
		w.text = append(w.text, "null"...)
		return
	}
	write(w, *v)
}

// WriteSlice writes an array, or null for nil.
func WriteSlice[T any](w *Writer, v *[]T, write func(*Writer, *T)) {
	if *v == nil {
		w.text = append(w.text, "null"...)
		return
	}
	w.text = append(w.text, '[')
	for i := range *v {
		if i > 0 {
			w.text = append(w.text, ',')
		}
		write(w, &(*v)[i])
	}
	w.text = append(w.text, ']')
}

// WriteMap writes an object with its names in order, or null for nil.
func WriteMap[K ~string, T any](w *Writer, v *map[K]T, write func(*Writer, *T)) {
	if *v == nil {
		w.text = append(w.text, "null"...)
		return
	}
	w.Open()
	for _, k := range slices.Sorted(maps.Keys(*v)) {
		w.Key(string(k))
		value := (*v)[k]
		write(w, &value)
	}
	w.Close()
}

// quote writes a string. As encoding/json has it, what could end a script in a page of
// HTML, and the two separators that JavaScript takes for ends of lines, are escaped.
func (w *Writer) quote(s string) {
	const digits = "0123456789abcdef"
	b, done := append(w.text, '"'), 0
	for i := 0; i < len(s); {
		c, n := rune(s[i]), 1
		if c >= utf8.RuneSelf {
			c, n = utf8.DecodeRuneInString(s[i:])
		}
		escape := ""
		switch {
		case c == utf8.RuneError && n == 1:
			escape = `\ufffd`
		case c == '\u2028' || c == '\u2029':
			escape = `\u202` + digits[c&15:c&15+1]
		case c == '"' || c == '\\':
			escape = `\` + string(c)
		case c == '\b':
			escape = `\b`
		case c == '\f':
			escape = `\f`
		case c == '\n':
			escape = `\n`
		case c == '\r':
			escape = `\r`
		case c == '\t':
			escape = `\t`
		case c < ' ' || c == '<' || c == '>' || c == '&':
			escape = `\u00` + digits[c>>4:c>>4+1] + digits[c&15:c&15+1]
		}
		if escape != "" {
			b = append(append(b, s[done:i]...), escape...)
			done = i + n
		}
		i += n
	}
	w.text = append(append(b, s[done:]...), '"')
}

// Indent spreads a text that Write has made over lines, two spaces a level.
func Indent(text []byte) []byte {
	out := make([]byte, 0, 2*len(text))
	level, quoted := 0, false
	line := func() {
		out = append(out, '\n')
		for range level {
			out = append(out, "  "...)
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quoted:
			if out = append(out, c); c == '\\' {
				i++
				out = append(out, text[i])
			}
			quoted = c != '"'
		case c == '"':
			quoted = true
			out = append(out, c)
		case c == ':':
			out = append(out, ": "...)
		case c == ',':
			out = append(out, c)
			line()
		case (c == '{' || c == '[') && text[i+1] == c+2: // the two characters of a kind stand two apart
			out = append(out, c, c+2)
			i++
		case c == '{' || c == '[':
			out = append(out, c)
			level++
			line()
		case c == '}' || c == ']':
			level--
			line()
			out = append(out, c)
		default:
			out = append(out, c)
		}
	}
	return out
}
