package cgroups

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/sys/systemd"
)

const annotation = "org.systemd.property."

// Annotated are the properties that annotations "org.systemd.property.NAME" ask for, as runc
// takes them: a value in GVariant's text format, of numbers, words, truths and lists of
// words, with the type before it or not ("uint64 5", "'word'", "true", "['a', 'b']"). A name that
// ends in Sec is taken in seconds for the one in USec that systemd has.
func Annotated(annotations map[string]string) (list []systemd.Property, err error) {
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(key, annotation)
		if !ok {
			continue
		}
		if len(name) < 3 || strings.ContainsFunc(name, func(r rune) bool { return r|0x20 < 'a' || r|0x20 > 'z' }) {
			return nil, fmt.Errorf("annotation %s name incorrect: %q", key, name)
		}
		v, err := parseVariant(annotations[key])
		if err == nil && strings.HasSuffix(name, "Sec") && !strings.HasSuffix(name, "USec") {
			name = strings.TrimSuffix(name, "Sec") + "USec"
			v, err = micro(v)
		}
		if err != nil {
			return nil, fmt.Errorf("annotation %s=%s value parse error: %w", key, annotations[key], err)
		}
		list = append(list, systemd.Property{Name: name, Value: v})
	}
	return list, nil
}

var errVariant = errors.New("not a value that is supported")

// parseVariant reads a value.
func parseVariant(s string) (any, error) {
	s = strings.TrimSpace(s)
	switch kind, rest, _ := strings.Cut(s, " "); kind {
	case "int32", "uint32", "int64", "uint64", "double", "boolean", "string":
		return typed(kind, strings.TrimSpace(rest))
	}
	switch {
	case s == "true" || s == "false":
		return s == "true", nil
	case strings.HasPrefix(s, "["):
		return words(s)
	case strings.HasPrefix(s, "'") || strings.HasPrefix(s, `"`):
		w, rest, err := quoted(s)
		if err == nil && rest != "" {
			err = errVariant
		}
		return w, err
	case strings.ContainsAny(s, ".eE") && !strings.HasPrefix(s, "0x"):
		return typed("double", s)
	}
	return typed("int32", s)
}

func typed(kind, s string) (any, error) {
	switch kind {
	case "int32":
		n, err := strconv.ParseInt(s, 0, 32)
		return int32(n), err
	case "uint32":
		n, err := strconv.ParseUint(s, 0, 32)
		return uint32(n), err
	case "int64":
		n, err := strconv.ParseInt(s, 0, 64)
		return n, err
	case "uint64":
		n, err := strconv.ParseUint(s, 0, 64)
		return n, err
	case "double":
		n, err := strconv.ParseFloat(s, 64)
		return n, err
	}
	v, err := parseVariant(s)
	if _, ok := v.(bool); err == nil && ok != (kind == "boolean") {
		return nil, errVariant
	}
	if _, ok := v.(string); err == nil && ok != (kind == "string") {
		return nil, errVariant
	}
	return v, err
}

// quoted reads a word in quotes, and gives what follows it.
func quoted(s string) (word, rest string, err error) {
	if s == "" || s[0] != '\'' && s[0] != '"' {
		return "", "", errVariant
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == s[0]:
			return b.String(), strings.TrimSpace(s[i+1:]), nil
		case s[i] == '\\':
			if i++; i == len(s) || !strings.ContainsRune(`\'"`, rune(s[i])) {
				return "", "", errVariant
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", errVariant
}

// words reads a list of words in quotes.
func words(s string) (any, error) {
	list := []string{}
	for s = strings.TrimSpace(s[1:]); s != "]"; {
		word, rest, err := quoted(s)
		if err != nil {
			return nil, err
		}
		list, s = append(list, word), rest
		if next, ok := strings.CutPrefix(s, ","); ok {
			s = strings.TrimSpace(next)
		} else if s != "]" {
			return nil, errVariant
		}
	}
	return list, nil
}

// micro turns seconds into microseconds.
func micro(v any) (any, error) {
	var f float64
	switch v := v.(type) {
	case int32:
		f = float64(v)
	case int64:
		f = float64(v)
	case uint32:
		f = float64(v)
	case uint64:
		f = float64(v)
	case float64:
		f = v
	default:
		return nil, errors.New("not a number")
	}
	if f < 0 || f*1e6 >= math.MaxInt64 || f != f {
		return nil, errors.New("no time")
	}
	return uint64(f * 1e6), nil
}
