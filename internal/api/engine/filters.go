package engine

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
)

// filters are what a client sends as the filters parameter: for each key the
// values of which one must match.
type filters map[string][]string

// parseFilters reads filters in their two forms, {"key":{"value":true}} and the
// older {"key":["value"]}. Only the keys allowed may be there; nil allows any.
func parseFilters(raw string, allowed []string) (filters, error) {
	f := filters{}
	if raw == "" {
		return f, nil
	}
	var byKey map[string]map[string]bool
	if err := json.Unmarshal([]byte(raw), &byKey); err == nil {
		// A value is one also when it is mapped to false.
		for k, values := range byKey {
			f[k] = sortedKeys(nil, values)
		}
	} else {
		var lists map[string][]string
		if json.Unmarshal([]byte(raw), &lists) != nil {
			return nil, invalidf("invalid filter")
		}
		for k, values := range lists {
			f[k] = append(f[k], values...)
		}
	}
	for k, values := range f {
		if allowed != nil && !slices.Contains(allowed, k) {
			return nil, invalidf("invalid filter '%s'", k)
		}
		if len(values) == 0 {
			delete(f, k)
		}
	}
	return f, nil
}

func (f filters) has(key string) bool { return len(f[key]) > 0 }

// exact reports whether value is among those of key, or key is absent.
func (f filters) exact(key string, values ...string) bool {
	want := f[key]
	if len(want) == 0 {
		return true
	}
	for _, v := range values {
		if slices.Contains(want, v) {
			return true
		}
	}
	return false
}

// prefix reports whether value begins with one of those of key, or key is absent.
func (f filters) prefix(key string, values ...string) bool {
	want := f[key]
	if len(want) == 0 {
		return true
	}
	for _, v := range values {
		for _, p := range want {
			if strings.HasPrefix(v, p) {
				return true
			}
		}
	}
	return false
}

// labels reports whether all of the key's "name" and "name=value" hold for set.
func (f filters) labels(key string, set map[string]string) bool {
	for _, want := range f[key] {
		name, value, valued := strings.Cut(want, "=")
		have, ok := set[name]
		if !ok || (valued && have != value) {
			return false
		}
	}
	return true
}

// unlabelled reports whether none of the key's "name" and "name=value" holds.
func (f filters) unlabelled(key string, set map[string]string) bool {
	for _, not := range f[key] {
		name, value, valued := strings.Cut(not, "=")
		if have, ok := set[name]; ok && (!valued || have == value) {
			return false
		}
	}
	return true
}

// truth reads a filter that is a switch and may have one value.
func (f filters) truth(key string, fallback bool) (bool, error) {
	values := f[key]
	if len(values) == 0 {
		return fallback, nil
	}
	if len(values) > 1 {
		return false, invalidf("invalid filter '%s=[%s]'", key, strings.Join(values, " "))
	}
	switch values[0] {
	case "1", "true":
		return true, nil
	case "0", "false":
		return false, nil
	}
	return false, invalidf("invalid filter '%s=[%s]'", key, values[0])
}

// time reads a filter that is a point in time and may have one value.
func (f filters) time(key string, now time.Time) (time.Time, error) {
	values := f[key]
	if len(values) == 0 {
		return time.Time{}, nil
	}
	if len(values) > 1 {
		return time.Time{}, invalidf("more than one %s filter specified", key)
	}
	t, err := parseTime(values[0], now)
	if err != nil {
		return t, invalidf("invalid value for %s filter: %s", key, err)
	}
	return t, nil
}

// patterns compiles the values of key; one that is no regular expression is
// matched as it stands.
func (f filters) patterns(key string) []*regexp.Regexp {
	var all []*regexp.Regexp
	for _, v := range f[key] {
		re, err := regexp.Compile(v)
		if err != nil {
			re = regexp.MustCompile(regexp.QuoteMeta(v))
		}
		all = append(all, re)
	}
	return all
}

func anyMatch(patterns []*regexp.Regexp, values ...string) bool {
	for _, re := range patterns {
		for _, v := range values {
			if re.MatchString(v) {
				return true
			}
		}
	}
	return false
}
