package plainjson

import (
	"unicode/utf16"
	"unicode/utf8"
)

// quoted takes a string and gives what stands between the quotes, and whether that
// is its value as it is.
func (r *Reader) quoted() (raw []byte, plain bool) {
	r.at++
	from, plain := r.at, true
	for r.at < len(r.text) {
		switch c := r.text[r.at]; {
		case c == '"':
			raw = r.text[from:r.at]
			r.at++
			return raw, plain && utf8.Valid(raw)
		case c == '\\':
			plain = false
			if r.at++; !r.escape() {
				r.wrong("an escape's character is")
				return nil, false
			}
		case c < ' ':
			r.wrong("a character of a string is")
			return nil, false
		default:
			r.at++
		}
	}
	r.wrong("a quote is")
	return nil, false
}

// escape passes over what follows a backslash. If it is false r.at is where it is wrong.
func (r *Reader) escape() bool {
	if r.at == len(r.text) {
		return false
	}
	switch r.text[r.at] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		r.at++
		return true
	case 'u':
		r.at++
		for range 4 {
			if r.at == len(r.text) || digit(r.text[r.at]) < 0 {
				return false
			}
			r.at++
		}
		return true
	}
	return false
}

// digit is a hexadecimal digit's value; -1: it is none.
func digit(c byte) rune {
	switch {
	case '0' <= c && c <= '9':
		return rune(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return rune(c|0x20-'a') + 10
	}
	return -1
}

// unquoted takes a string and gives its value, which may be a part of the text.
func (r *Reader) unquoted() []byte {
	raw, plain := r.quoted()
	if plain || r.err != nil {
		return raw
	}
	b := make([]byte, 0, len(raw)+2*utf8.UTFMax)
	for i := 0; i < len(raw); {
		if raw[i] == '\\' {
			var n int
			b, n = appendEscaped(b, raw[i+1:])
			i += 1 + n
			continue
		}
		c, n := utf8.DecodeRune(raw[i:])
		b = utf8.AppendRune(b, c) // U+FFFD for a byte that is none
		i += n
	}
	return b
}

// appendEscaped appends what an escape stands for, without its backslash, and says how
// long the escape is.
func appendEscaped(b, escape []byte) ([]byte, int) {
	switch c := escape[0]; c {
	case 'b':
		return append(b, '\b'), 1
	case 'f':
		return append(b, '\f'), 1
	case 'n':
		return append(b, '\n'), 1
	case 'r':
		return append(b, '\r'), 1
	case 't':
		return append(b, '\t'), 1
	case 'u':
		c := hex(escape[1:])
		if !utf16.IsSurrogate(c) {
			return utf8.AppendRune(b, c), 5
		}
		if len(escape) >= 11 && escape[5] == '\\' && escape[6] == 'u' {
			if both := utf16.DecodeRune(c, hex(escape[7:])); both != utf8.RuneError {
				return utf8.AppendRune(b, both), 11
			}
		}
		return utf8.AppendRune(b, utf8.RuneError), 5
	default: // itself
		return append(b, c), 1
	}
}

// hex is the number of four hexadecimal digits.
func hex(b []byte) (c rune) {
	for _, d := range b[:4] {
		c = c<<4 | digit(d)
	}
	return c
}
