package logs

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// decoder turns lines of a json-file log into Lines. Those written by a monitor or by
// dockerd take a path without allocation; any other JSON goes the general way.
type decoder struct {
	details bool // attributes are wanted

	data   []byte   // unescaped text of the current line
	minute [16]byte // "2006-01-02T15:04" whose second 0 is at base
	base   int64    // seconds of the epoch

	rawAttrs []byte // as last seen: they are the same in nearly every line
	attrs    map[string]string
}

var (
	logPrefix    = []byte(`{"log":"`)
	stdoutPart   = []byte(`,"stream":"stdout"`)
	stderrPart   = []byte(`,"stream":"stderr"`)
	attrsPart    = []byte(`,"attrs":{`)
	timePart     = []byte(`,"time":"`)
	attrsSkipped = len(`,"attrs":`)
)

// decode reads one line, without or with its newline, into l. What precedes the last
// beginning of an entry (half an entry that a power cut left, zeros) is skipped.
func (d *decoder) decode(line []byte, l *Line) bool {
	line = bytes.TrimRight(line, "\r\n")
	if d.fast(line, l) || d.general(line, l) {
		return true
	}
	// Inside an entry's strings quotes are escaped, so this can only be a beginning.
	if i := bytes.LastIndex(line, logPrefix); i > 0 {
		return d.fast(line[i:], l) || d.general(line[i:], l)
	}
	return false
}

func (d *decoder) fast(line []byte, l *Line) bool {
	rest, ok := bytes.CutPrefix(line, logPrefix)
	if !ok {
		return false
	}
	data, rest, ok := d.text(rest)
	if !ok {
		return false
	}
	stream := "stdout"
	if rest, ok = bytes.CutPrefix(rest, stdoutPart); !ok {
		stream = "stderr"
		if rest, ok = bytes.CutPrefix(rest, stderrPart); !ok {
			return false
		}
	}
	var attrs map[string]string
	if bytes.HasPrefix(rest, attrsPart) {
		rest = rest[attrsSkipped:]
		n := objectEnd(rest)
		if n < 0 || d.details && !d.attributes(rest[:n]) {
			return false
		}
		if rest = rest[n:]; d.details {
			attrs = d.attrs
		}
	}
	rest, ok = bytes.CutPrefix(rest, timePart)
	if !ok || !bytes.HasSuffix(rest, []byte(`"}`)) {
		return false
	}
	t, ok := d.time(rest[:len(rest)-2])
	if !ok {
		return false
	}
	*l = Line{Time: t, Stream: stream, Data: data, Attrs: attrs}
	return true
}

func (d *decoder) general(line []byte, l *Line) bool {
	var entry struct {
		Log    *string           `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if json.Unmarshal(line, &entry) != nil || entry.Log == nil || entry.Time.IsZero() {
		return false
	}
	d.data = append(d.data[:0], *entry.Log...)
	*l = Line{Time: entry.Time.UTC(), Stream: entry.Stream, Data: d.data}
	if d.details {
		l.Attrs = entry.Attrs
	}
	return true
}

// text reads a JSON string after its opening quote. The result lies in s itself when
// nothing is escaped, else in d.data.
func (d *decoder) text(s []byte) (data, rest []byte, ok bool) {
	quote := bytes.IndexByte(s, '"')
	if quote < 0 {
		return nil, nil, false
	}
	slash := bytes.IndexByte(s[:quote], '\\')
	if slash < 0 {
		return s[:quote], s[quote+1:], true
	}
	d.data = d.data[:0]
	pos := 0
	for {
		d.data = append(d.data, s[pos:pos+slash]...)
		pos += slash
		n := d.escape(s[pos:])
		if n == 0 {
			return nil, nil, false
		}
		if pos += n; quote < pos { // the quote found was escaped
			i := bytes.IndexByte(s[pos:], '"')
			if i < 0 {
				return nil, nil, false
			}
			quote = pos + i
		}
		if slash = bytes.IndexByte(s[pos:quote], '\\'); slash < 0 {
			d.data = append(d.data, s[pos:quote]...)
			return d.data, s[quote+1:], true
		}
	}
}

// escape appends what the escape sequence at the beginning of s stands for and
// returns its length, 0 for an unlawful one.
func (d *decoder) escape(s []byte) int {
	if len(s) < 2 {
		return 0
	}
	switch c := s[1]; c {
	case '"', '\\', '/':
		d.data = append(d.data, c)
	case 'n':
		d.data = append(d.data, '\n')
	case 't':
		d.data = append(d.data, '\t')
	case 'r':
		d.data = append(d.data, '\r')
	case 'b':
		d.data = append(d.data, '\b')
	case 'f':
		d.data = append(d.data, '\f')
	case 'u':
		r := hex4(s[2:])
		if r < 0 {
			return 0
		}
		n := 6
		if utf16.IsSurrogate(r) {
			low := rune(-1)
			if len(s) >= 12 && s[6] == '\\' && s[7] == 'u' {
				low = hex4(s[8:])
			}
			if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
				n = 12
			}
		}
		d.data = utf8.AppendRune(d.data, r)
		return n
	default:
		return 0
	}
	return 2
}

func hex4(s []byte) rune {
	if len(s) < 4 {
		return -1
	}
	var r rune
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// objectEnd is the length of the JSON object s begins with, -1 without an end. It
// looks no closer than at strings and braces.
func objectEnd(s []byte) int {
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// attributes reads the object into d.attrs.
func (d *decoder) attributes(raw []byte) bool {
	if d.attrs != nil && bytes.Equal(raw, d.rawAttrs) {
		return true
	}
	var attrs map[string]string
	if json.Unmarshal(raw, &attrs) != nil {
		return false
	}
	d.rawAttrs = append(d.rawAttrs[:0], raw...)
	d.attrs = attrs
	return true
}

// time reads RFC 3339 with a fraction of up to nine digits, in UTC.
func (d *decoder) time(s []byte) (time.Time, bool) {
	const whole = len("2006-01-02T15:04:05")
	if len(s) <= whole || s[len(s)-1] != 'Z' {
		t, err := time.Parse(time.RFC3339Nano, string(s))
		return t.UTC(), err == nil
	}
	if !bytes.Equal(s[:16], d.minute[:]) || d.base == 0 {
		t, err := time.Parse("2006-01-02T15:04Z", string(s[:16])+"Z")
		if err != nil {
			return time.Time{}, false
		}
		copy(d.minute[:], s)
		d.base = t.Unix()
	}
	sec, ok := digits(s[17:19])
	if !ok || s[16] != ':' || sec > 59 {
		return time.Time{}, false
	}
	var nano int64
	if frac := s[whole : len(s)-1]; len(frac) > 0 {
		if frac[0] != '.' || len(frac) < 2 || len(frac) > 10 {
			return time.Time{}, false
		}
		if nano, ok = digits(frac[1:]); !ok {
			return time.Time{}, false
		}
		for range 10 - len(frac) {
			nano *= 10
		}
	}
	return time.Unix(d.base+sec, nano).UTC(), true
}

func digits(s []byte) (n int64, ok bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// stamp reads only the time of a line as the monitors write it; false: decode must look.
func (d *decoder) stamp(line []byte) (time.Time, bool) {
	line = bytes.TrimRight(line, "\r\n")
	end, ok := bytes.CutSuffix(line, []byte(`"}`))
	if !ok {
		return time.Time{}, false
	}
	i := bytes.LastIndexByte(end, '"') + 1
	if !bytes.HasSuffix(end[:i], timePart) {
		return time.Time{}, false
	}
	return d.time(end[i:])
}
