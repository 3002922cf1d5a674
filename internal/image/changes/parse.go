package changes

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLine bounds a line, as Docker's parser does.
const maxLine = 64<<10 - 1

// instruction is one logical line, taken apart.
type instruction struct {
	name  string   // as written
	flags []string // the words that begin with "--"
	rest  string   // what follows them
}

// noFlags refuses the flags of an instruction that takes none.
func (in instruction) noFlags() error {
	_, err := in.values(nil)
	return err
}

// values reads "--name=value" flags; each may be given once.
func (in instruction) values(names []string) (map[string]string, error) {
	out := map[string]string{}
	for _, f := range in.flags {
		name, value, has := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		if !contains(names, name) {
			return nil, problemf("unknown flag: %s", name)
		}
		if _, twice := out[name]; twice {
			return nil, problemf("duplicate flag specified: %s", name)
		}
		if !has {
			return nil, problemf("missing a value on flag: %s", name)
		}
		out[name] = value
	}
	return out, nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

var (
	blanks       = regexp.MustCompile(`[\t\v\f\r ]+`)
	continuation = regexp.MustCompile(`([^\\])\\[ \t]*$|^\\[ \t]*$`)
)

// fields splits at blanks, as Docker's parser does.
func fields(s string) []string {
	if s == "" {
		return nil
	}
	return blanks.Split(s, -1)
}

// parse splits text into instructions, joining continued lines and leaving out
// comments, and refuses those that a change may not use.
func parse(text string) ([]instruction, error) {
	var out []instruction
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line, done := trimContinuation(strip(lines[i], true))
		if done && line == "" {
			continue
		}
		for !done && i+1 < len(lines) {
			i++
			next := strip(lines[i], false)
			if strings.TrimLeftFunc(next, unicode.IsSpace) == "" {
				continue // a comment or an empty line amid continued ones
			}
			next, done = trimContinuation(next)
			line += next
		}
		if len(line) > maxLine {
			return nil, problemf("dockerfile line greater than max allowed size of %d", maxLine)
		}
		in := split(line)
		if _, ok := known[strings.ToLower(in.name)]; !ok {
			return nil, problemf("%s is not a valid change command", in.name)
		}
		out = append(out, in)
	}
	if len(out) == 0 {
		return nil, problemf("file with no instructions")
	}
	return out, nil
}

// strip takes line ends and comments away, and, on a first line, indentation.
func strip(line string, first bool) string {
	line = strings.TrimRight(line, "\r\n")
	bare := strings.TrimLeftFunc(line, unicode.IsSpace)
	if strings.HasPrefix(bare, "#") {
		return ""
	}
	if first {
		return bare
	}
	return line
}

// trimContinuation tells whether the instruction ends with this line.
func trimContinuation(line string) (string, bool) {
	if !continuation.MatchString(line) {
		return line, true
	}
	return continuation.ReplaceAllString(line, "$1"), false
}

// split takes a logical line apart.
func split(line string) instruction {
	parts := blanks.Split(strings.TrimSpace(line), 2)
	in := instruction{name: parts[0]}
	if len(parts) == 2 {
		in.flags, in.rest = leadingFlags(strings.TrimSpace(parts[1]))
	}
	return in
}

// leadingFlags takes the leading words that begin with "--"; a lone "--" ends
// them. Quotes and escapes work as in a shell.
func leadingFlags(s string) (flags []string, rest string) {
	for {
		s = strings.TrimLeftFunc(s, unicode.IsSpace)
		if !strings.HasPrefix(s, "--") {
			return flags, s
		}
		word, n := flagWord(s)
		s = s[n:]
		if word == "--" {
			return flags, strings.TrimLeftFunc(s, unicode.IsSpace)
		}
		flags = append(flags, word)
	}
}

// flagWord reads one word and tells how many bytes it took.
func flagWord(s string) (string, int) {
	var b strings.Builder
	var quote rune
	for i := 0; i < len(s); {
		ch, w := utf8.DecodeRuneInString(s[i:])
		switch {
		case quote == 0 && unicode.IsSpace(ch):
			return b.String(), i
		case quote == 0 && (ch == '\'' || ch == '"'):
			quote = ch
		case quote != 0 && ch == quote:
			quote = 0
		case ch == '\\':
			if i+w < len(s) {
				i += w
				ch, w = utf8.DecodeRuneInString(s[i:])
				b.WriteRune(ch)
			}
		default:
			b.WriteString(s[i : i+w])
		}
		i += w
	}
	return b.String(), len(s)
}

// jsonOrText reads a JSON array of strings, else gives the text as one word.
func jsonOrText(rest string) (words []string, isJSON bool, err error) {
	if strings.HasPrefix(strings.TrimLeftFunc(rest, unicode.IsSpace), "[") {
		var list []any
		if json.Unmarshal([]byte(rest), &list) == nil {
			words = make([]string, 0, len(list))
			for _, item := range list {
				s, ok := item.(string)
				if !ok {
					return nil, false, problemf("when using JSON array syntax, arrays must be comprised of strings only")
				}
				words = append(words, s)
			}
			return words, true, nil
		}
	}
	if rest == "" {
		return nil, false, nil
	}
	return []string{rest}, false, nil
}

// nameValues reads "a=b c=d", or the old form "name value".
func nameValues(rest, instr string) ([][2]string, error) {
	words := quotedWords(rest)
	if len(words) == 0 {
		return nil, nil
	}
	if !strings.Contains(words[0], "=") {
		parts := blanks.Split(rest, 2)
		if len(parts) < 2 {
			return nil, problemf("%s must have two arguments", instr)
		}
		return [][2]string{{parts[0], parts[1]}}, nil
	}
	out := make([][2]string, 0, len(words))
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok {
			return nil, problemf("Syntax error - can't find = in %q. Must be of the form: name=value", w)
		}
		out = append(out, [2]string{name, value})
	}
	return out, nil
}

// quotedWords splits at blanks outside quotes and keeps the quotes. A
// backslash protects what follows, but not within single quotes; at the very
// end it is dropped.
func quotedWords(s string) []string {
	var (
		words []string
		b     strings.Builder
		quote rune
		open  bool // a word has begun, if only with an empty pair of quotes
	)
	end := func() {
		if open || b.Len() > 0 {
			words = append(words, b.String())
		}
		b.Reset()
		open = false
	}
	for i := 0; i < len(s); {
		ch, w := utf8.DecodeRuneInString(s[i:])
		switch {
		case ch == '\\' && quote != '\'':
			if i+w == len(s) {
				i += w
				continue
			}
			_, n := utf8.DecodeRuneInString(s[i+w:])
			b.WriteString(s[i : i+w+n])
			i += w + n
			continue
		case quote == 0 && unicode.IsSpace(ch):
			end()
			i += w
			continue
		case quote == 0 && (ch == '\'' || ch == '"'):
			quote, open = ch, true
		case quote != 0 && ch == quote:
			quote = 0
		}
		b.WriteString(s[i : i+w])
		i += w
	}
	end()
	return words
}
