package changes

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// expand puts variables of env ("NAME=value") into word and takes its quotes
// away, by the rules of the POSIX shell (2.6.2 Parameter Expansion) that
// Dockerfiles know, without splitting.
func expand(word string, env []string) (string, error) {
	e := &expander{in: []rune(word), env: env}
	out, err := e.until(0, false)
	if err != nil {
		return "", problemf("failed to process %q: %s", word, err)
	}
	return out, nil
}

// expandWords is expand with the result split at unquoted blanks.
func expandWords(word string, env []string) ([]string, error) {
	e := &expander{in: []rune(word), env: env, split: true}
	if _, err := e.until(0, false); err != nil {
		return nil, problemf("failed to process %q: %s", word, err)
	}
	e.cut()
	return e.words, nil
}

// maxDepth bounds ${a:-${b:-…}}, so that hostile input cannot exhaust the stack.
const maxDepth = 64

// maxExpanded bounds what substitution may make of a word, in bytes: the kernel
// takes no longer argument or variable (MAX_ARG_STRLEN), and repeated
// substitution doubles quickly.
const maxExpanded = 128 << 10

// expander reads one word. Splitting concerns the outermost level only.
type expander struct {
	in    []rune
	pos   int
	env   []string
	depth int

	split bool
	words []string
	word  strings.Builder
}

func (e *expander) cut() {
	if e.word.Len() > 0 {
		e.words = append(e.words, e.word.String())
		e.word.Reset()
	}
}

// emit adds to the current word; unquoted text is cut at blanks.
func (e *expander) emit(s string, quoted bool) {
	if !e.split || e.depth > 1 {
		return
	}
	if quoted {
		e.word.WriteString(s)
		return
	}
	for _, r := range s {
		if unicode.IsSpace(r) {
			e.cut()
		} else {
			e.word.WriteRune(r)
		}
	}
}

func (e *expander) peek() (rune, bool) {
	if e.pos >= len(e.in) {
		return 0, false
	}
	return e.in[e.pos], true
}

// until reads up to stop (0: to the end), which it takes away. With raw,
// backslashes stay: a pattern needs them.
func (e *expander) until(stop rune, raw bool) (string, error) {
	if e.depth++; e.depth > maxDepth {
		return "", errors.New("substitutions are nested too deeply")
	}
	defer func() { e.depth-- }()
	var b strings.Builder
	for {
		ch, ok := e.peek()
		if !ok {
			if stop != 0 {
				return "", errEnd
			}
			return b.String(), nil
		}
		if stop != 0 && ch == stop {
			e.pos++
			return b.String(), nil
		}
		part, quoted, err := e.part(ch, raw)
		if err != nil {
			return "", err
		}
		if b.Len()+len(part) > maxExpanded {
			return "", errors.New("the result is too long")
		}
		b.WriteString(part)
		e.emit(part, quoted)
	}
}

// errEnd: the text ended before what was looked for.
var errEnd = errors.New("unexpected end of statement")

// part reads a quoted stretch, a variable, an escape or one character.
func (e *expander) part(ch rune, raw bool) (s string, quoted bool, err error) {
	e.pos++
	switch ch {
	case '\'':
		s, err = e.single()
		return s, true, err
	case '"':
		s, err = e.double(raw)
		return s, true, err
	case '$':
		s, err = e.dollar()
		return s, false, err
	case '\\':
		next, ok := e.peek()
		if !ok {
			if raw {
				return `\`, true, nil
			}
			return "", true, nil
		}
		e.pos++
		if raw {
			return `\` + string(next), true, nil
		}
		return string(next), true, nil
	}
	return string(ch), false, nil
}

func (e *expander) single() (string, error) {
	for i := e.pos; i < len(e.in); i++ {
		if e.in[i] == '\'' {
			s := string(e.in[e.pos:i])
			e.pos = i + 1
			return s, nil
		}
	}
	e.pos = len(e.in)
	return "", errors.New("unexpected end of statement while looking for matching single-quote")
}

func (e *expander) double(raw bool) (string, error) {
	var b strings.Builder
	for {
		ch, ok := e.peek()
		if !ok {
			return "", errors.New("unexpected end of statement while looking for matching double-quote")
		}
		e.pos++
		switch ch {
		case '"':
			return b.String(), nil
		case '$':
			s, err := e.dollar()
			if err != nil {
				return "", err
			}
			b.WriteString(s)
		case '\\':
			next, ok := e.peek()
			if !ok {
				continue // the missing quote is reported next
			}
			if raw {
				b.WriteRune('\\')
			}
			if next == '"' || next == '$' || next == '\\' {
				e.pos++
				b.WriteRune(next)
			} else if !raw {
				b.WriteRune('\\')
			}
		default:
			b.WriteRune(ch)
		}
	}
}

// name reads a variable's name: letters, digits and _; digits only; or one of
// the shell's special parameters.
func (e *expander) name() string {
	start := e.pos
	ch, ok := e.peek()
	if !ok {
		return ""
	}
	if strings.ContainsRune("@*#?-$!0", ch) {
		e.pos++
		return string(ch)
	}
	digits := unicode.IsDigit(ch)
	for e.pos < len(e.in) {
		ch := e.in[e.pos]
		if digits && !unicode.IsDigit(ch) || !unicode.IsLetter(ch) && !unicode.IsDigit(ch) && ch != '_' {
			break
		}
		e.pos++
	}
	return string(e.in[start:e.pos])
}

func (e *expander) get(name string) (string, bool) {
	for _, entry := range e.env {
		if k, v, _ := strings.Cut(entry, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// dollar reads what follows a "$".
func (e *expander) dollar() (string, error) {
	ch, ok := e.peek()
	if !ok || ch != '{' {
		name := e.name()
		if name == "" {
			return "$", nil
		}
		value, _ := e.get(name)
		return value, nil
	}
	e.pos++
	if ch, ok = e.peek(); !ok {
		return "", errBrace
	}
	if ch == '{' || ch == '}' || ch == ':' {
		return "", errors.New("syntax error: bad substitution")
	}
	name := e.name()
	value, set := e.get(name)
	if ch, ok = e.peek(); !ok {
		return "", errBrace
	}
	e.pos++
	if ch == '}' {
		return value, nil
	}
	return e.modified(name, value, set, ch)
}

var errBrace = errors.New("syntax error: missing '}'")

// modified reads the modifier of "${name" that begins with ch, and its word.
func (e *expander) modified(name, value string, set bool, ch rune) (string, error) {
	mod := string(ch)
	nullIsUnset := ch == ':'
	if nullIsUnset {
		var ok bool
		if ch, ok = e.peek(); !ok {
			return "", errBrace
		}
		e.pos++
		mod += string(ch)
	}
	if ch == '/' && !nullIsUnset {
		return e.replace(value)
	}
	pattern := ch == '#' || ch == '%'
	if !strings.ContainsRune("+-?#%", ch) || pattern && nullIsUnset {
		return "", fmt.Errorf("unsupported modifier (%s) in substitution", mod)
	}
	word, err := e.until('}', pattern)
	if errors.Is(err, errEnd) {
		return "", errBrace
	}
	if err != nil {
		return "", err
	}
	missing := !set || nullIsUnset && value == ""
	switch {
	case ch == '-' && missing, ch == '+' && !missing:
		return word, nil
	case ch == '+':
		return "", nil
	case ch == '?' && missing:
		if word == "" {
			word = "is not allowed to be empty"
			if !set {
				word = "is not allowed to be unset"
			}
		}
		return "", fmt.Errorf("%s: %s", name, word)
	case pattern:
		return trim(value, word, ch)
	}
	return value, nil
}

// replace reads "/pattern/replacement}" or "//pattern/replacement}".
func (e *expander) replace(value string) (string, error) {
	all := false
	if ch, ok := e.peek(); ok && ch == '/' {
		all = true
		e.pos++
	}
	pattern, err := e.until('/', true)
	if errors.Is(err, errEnd) {
		return "", errors.New("syntax error: missing '/' in ${}")
	}
	if err != nil {
		return "", err
	}
	with, err := e.until('}', true)
	if errors.Is(err, errEnd) {
		return "", errBrace
	}
	if err != nil {
		return "", err
	}
	re, err := regexp.Compile(glob(pattern))
	if err != nil {
		return "", fmt.Errorf("invalid pattern (%s) in substitution: %s", pattern, err)
	}
	if all {
		return re.ReplaceAllLiteralString(value, with), nil
	}
	if at := re.FindStringIndex(value); at != nil {
		value = value[:at[0]] + with + value[at[1]:]
	}
	return value, nil
}

// trim takes away what pattern matches at the front ('#') or at the end ('%');
// a doubled sign takes the longest match, else the shortest goes.
func trim(value, pattern string, sign rune) (string, error) {
	greedy := strings.HasPrefix(pattern, string(sign))
	pattern = strings.TrimPrefix(pattern, string(sign))
	if pattern == "" {
		return value, nil
	}
	re, err := regexp.Compile("^(?:" + glob(pattern) + ")$")
	if err != nil {
		return "", fmt.Errorf("invalid pattern (%s) in substitution: %s", pattern, err)
	}
	best := -1
	for i := 0; i <= len(value); i++ {
		n, part := i, value[:i]
		if sign == '%' {
			n, part = len(value)-i, value[i:]
		}
		if re.MatchString(part) && (best < 0 || greedy == (n > best)) {
			best = n
		}
	}
	if best < 0 {
		return value, nil
	}
	if sign == '%' {
		return value[:len(value)-best], nil
	}
	return value[best:], nil
}

// glob makes a regular expression of a shell pattern.
func glob(pattern string) string {
	var b strings.Builder
	b.WriteString("(?s)")
	esc := false
	for _, r := range pattern {
		switch {
		case esc:
			b.WriteString(regexp.QuoteMeta(string(r)))
			esc = false
		case r == '\\':
			esc = true
		case r == '*':
			b.WriteString(".*")
		case r == '?':
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	if esc {
		b.WriteString(`\\`)
	}
	return b.String()
}
