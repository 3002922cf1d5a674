package format

import (
	"bytes"
	"unicode/utf8"
)

// MaxText is the most text that goes into one entry, in bytes, its newline
// included. A longer line goes into several, of which only the last ends with
// the newline: that is how readers know what belongs together.
const MaxText = 16 << 10

// Splitter cuts a stream into the entries of a log. It keeps the beginning of
// a line whose end has not arrived. The zero value is ready.
type Splitter struct {
	rest []byte // at most MaxText
	used int    // how much of rest the last call handed out
}

// Next takes the next entry from data and returns it with what of data is left.
// Without an entry (ok false) all of data has been taken in. The entry is valid
// until the next call and shares memory with data or the Splitter. No cut goes
// through a UTF-8 character.
func (s *Splitter) Next(data []byte) (entry, left []byte, ok bool) {
	s.compact()
	if len(s.rest) == 0 {
		if n := entryLen(data); n > 0 {
			return data[:n], data[n:], true
		}
		s.rest = append(s.rest, data...)
		return nil, nil, false
	}
	// Take over only what completes the kept line.
	take := min(MaxText-len(s.rest), len(data))
	if i := bytes.IndexByte(data[:take], '\n'); i >= 0 {
		take = i + 1
	}
	s.rest = append(s.rest, data[:take]...)
	n := entryLen(s.rest)
	if n == 0 {
		return nil, nil, false
	}
	s.used = n
	return s.rest[:n], data[take:], true
}

// Rest takes the text whose newline has not come; it is valid until the next
// call.
func (s *Splitter) Rest() []byte {
	s.compact()
	s.used = len(s.rest)
	return s.rest
}

func (s *Splitter) compact() {
	if s.used > 0 {
		s.rest = s.rest[:copy(s.rest, s.rest[s.used:])]
		s.used = 0
	}
}

// entryLen is the length of the entry that b starts with, 0 if its end is not there.
func entryLen(b []byte) int {
	if i := bytes.IndexByte(b[:min(len(b), MaxText)], '\n'); i >= 0 {
		return i + 1
	}
	if len(b) < MaxText {
		return 0
	}
	for k := 1; k < utf8.UTFMax; k++ {
		if utf8.RuneStart(b[MaxText-k]) {
			if !utf8.FullRune(b[MaxText-k : MaxText]) {
				return MaxText - k
			}
			break
		}
	}
	return MaxText
}
