// Package format writes the lines of json-file logs as Docker's json-file
// driver does, without allocating.
//
// A log is a file of JSON objects, one a line:
//
//	{"log":"text\n","stream":"stdout","attrs":{…},"time":"2006-01-02T15:04:05.999999999Z"}
//
// The monitor links this package, so it imports next to nothing: no fmt, no
// encoding/json.
package format

import "unicode/utf8"

const hex = "0123456789abcdef"

// LinesBefore is an extended attribute of each file of a log: how many lines the log
// had before the file, as a decimal number. It tells who reads late how many
// lines were rotated away. A file may lack it.
const LinesBefore = "user.escale.lines"

// plain says which ASCII bytes stand for themselves inside a JSON string.
// Like Docker, the encoder also escapes <, > and &.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = true
	}
	for _, c := range `"\<>&` {
		t[c] = false
	}
	return t
}()

// Append appends one line of the log to dst: text as it was read (a newline
// included, when it has one), the stream's name, attrs (a JSON object, or
// empty for none) and the time. It allocates only when dst is too small.
func Append(dst, text []byte, stream, attrs string, at *Clock) []byte {
	dst = append(dst, `{"log":"`...)
	dst = appendText(dst, text)
	dst = append(dst, `","stream":"`...)
	dst = append(dst, stream...)
	if attrs != "" {
		dst = append(dst, `","attrs":`...)
		dst = append(dst, attrs...)
		dst = append(dst, `,"time":"`...)
	} else {
		dst = append(dst, `","time":"`...)
	}
	dst = at.append(dst)
	return append(dst, '"', '}', '\n')
}

// Bound is the longest line that Append can make of text with n bytes and
// attrs with m.
func Bound(n, m int) int { return 6*n + m + 128 }

func appendText(dst, s []byte) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\ufffd`...)
			i++
			start = i
		case r == '\u2028' || r == '\u2029':
			dst = append(dst, s[start:i]...)
			dst = append(dst, '\\', 'u', '2', '0', '2', hex[r&15])
			i += size
			start = i
		default:
			i += size
		}
	}
	return append(dst, s[start:]...)
}
