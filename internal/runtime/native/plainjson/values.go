package plainjson

import (
	"strconv"
	"time"
)

// Text reads a string.
func Text[T ~string](r *Reader, v *T) {
	switch r.next() {
	case '"':
		if b := r.unquoted(); r.err == nil {
			*v = T(b)
		}
	case 'n':
		r.word("null")
	default:
		r.unfit("a string is")
	}
}

// Bool reads true or false.
func Bool[T ~bool](r *Reader, v *T) {
	switch r.next() {
	case 't':
		r.word("true")
		*v = true
	case 'f':
		r.word("false")
		*v = false
	case 'n':
		r.word("null")
	default:
		r.unfit("true or false is")
	}
}

// numeral takes a number's text; false: it was null, or something else.
func (r *Reader) numeral() ([]byte, bool) {
	switch c := r.next(); {
	case c == '-' || '0' <= c && c <= '9':
		b := r.number()
		return b, r.err == nil
	case c == 'n':
		r.word("null")
	default:
		r.unfit("a number is")
	}
	return nil, false
}

// Int reads a number that has no fraction and fits.
func Int[T ~int | ~int8 | ~int16 | ~int32 | ~int64](r *Reader, v *T) {
	b, ok := r.numeral()
	if !ok {
		return
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || int64(T(n)) != n {
		r.refuse("a whole number that fits is", b)
		return
	}
	*v = T(n)
}

// Uint reads a number that has neither sign nor fraction and fits.
func Uint[T ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr](r *Reader, v *T) {
	b, ok := r.numeral()
	if !ok {
		return
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil || uint64(T(n)) != n {
		r.refuse("a whole number that is not negative and fits is", b)
		return
	}
	*v = T(n)
}

// Time reads a time of RFC 3339.
func Time(r *Reader, v *time.Time) {
	r.next()
	from := r.at
	if r.Skip(); r.err != nil {
		return
	}
	if v.UnmarshalJSON(r.text[from:r.at]) != nil {
		r.refuse("a time of RFC 3339 is", r.text[from:r.at])
	}
}

// Pointer reads null, or what is pointed at: over what is there.
func Pointer[T any](r *Reader, v **T, read func(*Reader, *T)) {
	if r.null() {
		*v = nil
		return
	}
	if *v == nil {
		*v = new(T)
	}
	read(r, *v)
}

// Slice reads an array or null. Elements are read over those that are there, and, as
// encoding/json has it, over those that once were there.
func Slice[T any](r *Reader, v *[]T, read func(*Reader, *T)) {
	switch {
	case r.null():
		*v = nil
		return
	case r.next() != '[':
		r.unfit("an array is")
		return
	}
	s, n := *v, 0
	for more := r.open(']'); more; more = r.more(']') {
		switch {
		case n < len(s):
		case n < cap(s):
			s = s[:n+1]
		default:
			var zero T
			s = append(s, zero)
		}
		read(r, &s[n])
		n++
	}
	if *v = s[:n]; n == 0 {
		*v = []T{}
	}
}

// Map reads an object or null into a map, beside what is there.
func Map[K ~string, T any](r *Reader, v *map[K]T, read func(*Reader, *T)) {
	if r.null() {
		*v = nil
		return
	}
	if r.next() != '{' {
		r.unfit("an object is")
		return
	}
	if *v == nil {
		*v = map[K]T{}
	}
	r.path = append(r.path, "")
	for more := r.open('}'); more; more = r.more('}') {
		b, ok := r.key()
		if !ok {
			return
		}
		key := string(b)
		r.path[len(r.path)-1] = key
		var value T
		read(r, &value)
		(*v)[K(key)] = value
	}
	if r.err == nil {
		r.path = r.path[:len(r.path)-1]
	}
}

// Any reads a value into what encoding/json has for it: nil, bool, float64, string, []any
// or map[string]any.
func Any(r *Reader, v *any) {
	switch c := r.next(); c {
	case '{':
		var m map[string]any
		Map(r, &m, Any)
		*v = m
	case '[':
		var s []any
		Slice(r, &s, Any)
		*v = s
	case '"':
		*v = string(r.unquoted())
	case 'n':
		r.word("null")
		*v = nil
	case 't', 'f':
		var b bool
		Bool(r, &b)
		*v = b
	default:
		b := r.number()
		if r.err != nil {
			return
		}
		f, err := strconv.ParseFloat(string(b), 64)
		if err != nil {
			r.refuse("a number that fits is", b)
			return
		}
		*v = f
	}
}
