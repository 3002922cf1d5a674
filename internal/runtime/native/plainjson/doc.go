// Package plainjson reads and writes JSON (RFC 8259) without reflection, for a program
// that lives for milliseconds: encoding/json takes longer to find out about the
// specification's types than to read a container's. Functions for structures are
// generated (package codec); here are those for what structures are made of.
//
// What is taken and what is written are encoding/json's, version 1, to the byte: unknown
// keys are passed over, names are matched without regard to case when none is the
// same, null leaves what cannot be null, a key that comes again is read over what
// is there, and what is no UTF-8 becomes U+FFFD. Only words of errors differ.
package plainjson

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep arrays and objects lie in each other.
const maxDepth = 10000

// Reader goes through one JSON text. The first error stays; after it everything
// else does nothing.
type Reader struct {
	text  []byte
	at    int
	path  []string // names of the objects' fields that it is in; "" of unknown ones
	depth int
	err   error
}

// Read reads a text that is one value, all of it, by the function for its type. The
// error names the field, or the byte (from 0) at which this is no JSON; v may have been
// set in part.
func Read[T any](text []byte, v *T, read func(*Reader, *T)) error {
	r := &Reader{text: text}
	read(r, v)
	if r.space(); r.err == nil && r.at < len(r.text) {
		r.wrong("the end is")
	}
	return r.err
}

// wrong fails at the current byte.
func (r *Reader) wrong(due string) {
	if r.err != nil {
		return
	}
	what := "the end"
	if r.at < len(r.text) {
		c, _ := utf8.DecodeRune(r.text[r.at:])
		what = strconv.QuoteRune(c)
	}
	r.err = errors.New("byte " + strconv.Itoa(r.at) + ": " + what + " where " + due + " due")
}

// unfit fails for what is JSON but not for this field, after passing it over.
func (r *Reader) unfit(due string) {
	from := r.at
	if r.Skip(); r.err == nil {
		r.refuse(due, r.text[from:r.at])
	}
}

// refuse fails for a value that has been read.
func (r *Reader) refuse(due string, value []byte) {
	if r.err != nil {
		return
	}
	names := make([]string, len(r.path))
	for i, name := range r.path {
		names[i] = shown(name)
	}
	where := strings.Join(names, ".")
	if where != "" {
		where += ": "
	}
	r.err = errors.New(where + shown(string(value)) + " where " + due + " due")
}

// shown is a part of the text for people: not all of what is long, and nothing that a
// terminal would act on.
func shown(s string) string {
	const most = 40 // bytes
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\t' || c == '\n' || c == '\r':
			return ' '
		case strconv.IsPrint(c):
			return c
		}
		return utf8.RuneError
	}, s)
}

// space passes over white space.
func (r *Reader) space() {
	for r.at < len(r.text) {
		switch r.text[r.at] {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// next is the first byte of the next token; 0: there is none, or an error.
func (r *Reader) next() byte {
	if r.err != nil {
		return 0
	}
	r.space()
	if r.at == len(r.text) {
		return 0
	}
	return r.text[r.at]
}

// word takes a literal.
func (r *Reader) word(w string) {
	for i := range len(w) {
		if r.at == len(r.text) || r.text[r.at] != w[i] {
			r.wrong(strconv.Quote(w) + " is")
			return
		}
		r.at++
	}
}

// null takes a null, if that is what comes.
func (r *Reader) null() bool {
	if r.next() != 'n' {
		return false
	}
	r.word("null")
	return true
}

// open takes the first byte of an array or object. It says whether there is something
// in it; if not the last is taken too.
func (r *Reader) open(last byte) bool {
	r.at++
	if r.depth++; r.depth > maxDepth {
		r.wrong("less depth is")
		return false
	}
	if r.next() == last {
		r.at++
		r.depth--
		return false
	}
	return r.err == nil
}

// more takes what stands after an element, and says whether another follows.
func (r *Reader) more(last byte) bool {
	switch r.next() {
	case ',':
		r.at++
		return true
	case last:
		r.at++
		r.depth--
		return false
	}
	r.wrong("a comma or " + strconv.QuoteRune(rune(last)) + " is")
	return false
}

// Object begins an object; false: it has no fields, or is null. While it is true, Field
// and a function for the field's value are to be called, then More.
func (r *Reader) Object() bool {
	switch {
	case r.null():
		return false
	case r.next() != '{':
		r.unfit("an object is")
		return false
	}
	if !r.open('}') {
		return false
	}
	r.path = append(r.path, "")
	return true
}

// More says whether the object has another field.
func (r *Reader) More() bool {
	more := r.more('}')
	if !more && r.err == nil {
		r.path = r.path[:len(r.path)-1]
	}
	return more
}

// Field reads a name and says which of these it is, -1: none.
func (r *Reader) Field(names []string) int {
	key, ok := r.key()
	if !ok {
		return -1
	}
	found := -1
	for i, n := range names {
		if n == string(key) {
			found = i
			break
		}
	}
	for i := 0; found < 0 && i < len(names); i++ {
		if strings.EqualFold(names[i], string(key)) {
			found = i
		}
	}
	name := ""
	if found >= 0 {
		name = names[found]
	}
	r.path[len(r.path)-1] = name
	return found
}

// key reads a field's name and the colon. The bytes are good until the next call.
func (r *Reader) key() ([]byte, bool) {
	if r.next() != '"' {
		r.wrong("a name is")
		return nil, false
	}
	key := r.unquoted()
	if r.next() != ':' {
		r.wrong("a colon is")
		return nil, false
	}
	r.at++
	return key, true
}

// Skip passes over a value, which must be JSON.
func (r *Reader) Skip() {
	switch c := r.next(); c {
	case '{':
		for more := r.open('}'); more; more = r.more('}') {
			if _, ok := r.key(); !ok {
				return
			}
			r.Skip()
		}
	case '[':
		for more := r.open(']'); more; more = r.more(']') {
			r.Skip()
		}
	case '"':
		r.quoted()
	case 'n':
		r.word("null")
	case 't':
		r.word("true")
	case 'f':
		r.word("false")
	default:
		r.number()
	}
}

// number takes a number and gives its text.
func (r *Reader) number() []byte {
	if c := r.next(); c != '-' && (c < '0' || c > '9') {
		r.wrong("a value is")
		return nil
	}
	from := r.at
	if r.text[r.at] == '-' {
		r.at++
	}
	if r.at < len(r.text) && r.text[r.at] == '0' {
		r.at++
	} else {
		r.digits()
	}
	if r.at < len(r.text) && r.text[r.at] == '.' {
		r.at++
		r.digits()
	}
	if r.at < len(r.text) && r.text[r.at]|0x20 == 'e' {
		r.at++
		if r.at < len(r.text) && (r.text[r.at] == '+' || r.text[r.at] == '-') {
			r.at++
		}
		r.digits()
	}
	return r.text[from:r.at]
}

// digits takes one or more.
func (r *Reader) digits() {
	from := r.at
	for r.at < len(r.text) && '0' <= r.text[r.at] && r.text[r.at] <= '9' {
		r.at++
	}
	if r.at == from {
		r.wrong("a digit is")
	}
}
