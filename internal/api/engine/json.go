package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// maxBody bounds a JSON body in bytes.
const maxBody = 8 << 20

// bodyTimeout is how long a JSON body may take.
var bodyTimeout = time.Minute

// checkJSON refuses bodies that are not declared as JSON, which also keeps
// simple cross-site requests of browsers out.
func checkJSON(r *request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" && r.ContentLength == 0 {
		return nil
	}
	media, _, err := mime.ParseMediaType(ct)
	if err != nil && ct != "" {
		return invalidf("malformed Content-Type header (%s): %s", ct, err)
	}
	if media != "application/json" {
		return invalidf("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}

// readJSON decodes the body, which must hold one JSON value or nothing at all.
func readJSON(w *response, r *request, into any) error {
	if err := checkJSON(r); err != nil {
		return err
	}
	if r.ContentLength == 0 {
		return nil
	}
	// A client that sends byte after byte, for ever, is given up; one that listens to a stream is not.
	ctl := http.NewResponseController(w.ResponseWriter)
	_ = ctl.SetReadDeadline(time.Now().Add(bodyTimeout)) // tests have responses without a connection
	dec := json.NewDecoder(http.MaxBytesReader(w.ResponseWriter, r.Body, maxBody))
	if err := dec.Decode(into); err != nil {
		return jsonError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return err
		}
		return invalidf("unexpected content after JSON")
	}
	_ = ctl.SetReadDeadline(time.Time{}) // after an error nothing more is read
	return nil
}

func jsonError(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return err
	case errors.Is(err, io.EOF):
		return invalidf("invalid JSON: got EOF while reading request body")
	}
	return invalidf("invalid JSON: %s", err)
}

// writeJSON answers with a value as JSON.
func writeJSON(w *response, status int, value any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return err
	}
	writeBytes(w, status, b.Bytes())
	return nil
}

// writeBytes answers with ready JSON. What is lost when the client has gone is
// its own loss.
func writeBytes(w *response, status int, b []byte) {
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// The append functions write JSON without reflection, for answers that clients
// ask for again and again.

const hex = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become the
// replacement character.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(append(b, s[start:i]...), `\ufffd`...)
			start = i + size
		case r == '\u2028' || r == '\u2029': // line ends in JavaScript
			b = append(append(b, s[start:i]...), `\u202`...)
			b = append(b, hex[r&15])
			start = i + size
		}
		i += size
	}
	return append(append(b, s[start:]...), '"')
}

func appendStrings(b []byte, list []string) []byte {
	if list == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

// appendStringMap appends a map with its keys in order; nil is null.
func appendStringMap(b []byte, m map[string]string) []byte {
	if m == nil {
		return append(b, "null"...)
	}
	var space [8]string
	b = append(b, '{')
	for i, k := range sortedKeys(space[:0], m) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, k), ':')
		b = appendString(b, m[k])
	}
	return append(b, '}')
}

// sortedKeys appends the keys of m to space, in order.
func sortedKeys[V any](space []string, m map[string]V) []string {
	for k := range m {
		space = append(space, k)
	}
	slices.Sort(space)
	return space
}

// appendAddr appends an address; the zero address is the empty string.
func appendAddr(b []byte, a netip.Addr) []byte {
	b = append(b, '"')
	if a.IsValid() {
		b = a.AppendTo(b)
	}
	return append(b, '"')
}

func appendInt[T int | int64 | uint16](b []byte, n T) []byte {
	return strconv.AppendInt(b, int64(n), 10)
}
