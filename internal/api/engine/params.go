package engine

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// params are the query parameters of a request.
type params struct{ values url.Values }

func parseParams(raw string) (params, error) {
	if raw == "" {
		return params{}, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return params{}, invalidf("invalid query: %s", err)
	}
	return params{values}, nil
}

func (p params) get(key string) string   { return p.values.Get(key) }
func (p params) has(key string) bool     { return p.values.Has(key) }
func (p params) all(key string) []string { return p.values[key] }

// bool reads a switch as Docker does: whatever is not one of the words for no
// is yes.
func (p params) bool(key string) bool { return truth(p.get(key)) }

// boolOr is bool, or what is meant when the client is silent.
func (p params) boolOr(key string, silent bool) bool {
	if !p.has(key) {
		return silent
	}
	return p.bool(key)
}

func truth(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// int reads a number; absent is nil.
func (p params) int(key string) (*int, error) {
	s := p.get(key)
	if s == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, invalidf("invalid value for %s: %q is not a number", key, s)
	}
	return &n, nil
}

// size reads rows and columns of a terminal, both of them required.
func (p params) size() (rows, cols uint16, err error) {
	var n [2]uint16
	for i, key := range []string{"h", "w"} {
		u, err := strconv.ParseUint(p.get(key), 10, 16)
		if err != nil {
			word := "height"
			if key == "w" {
				word = "width"
			}
			return 0, 0, invalidf("invalid resize %s %q: %s", word, p.get(key), errors.Unwrap(err))
		}
		n[i] = uint16(u)
	}
	return n[0], n[1], nil
}

// time reads a point in time; absent is the zero time.
func (p params) time(key string, now time.Time) (time.Time, error) {
	s := p.get(key)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(s, now)
	if err != nil {
		return time.Time{}, invalidf("invalid value for %s: %s", key, err)
	}
	return t, nil
}

// Layouts of dates without a zone, which are read as UTC, and with one.
var layouts = []string{
	"2006-01-02T15:04:05.999999999Z07:00",
	"2006-01-02T15:04:05.999999999",
	"2006-01-02T15:04Z07:00",
	"2006-01-02T15:04",
	"2006-01-02T15Z07:00",
	"2006-01-02T15",
	"2006-01-02Z07:00",
	"2006-01-02",
}

// parseTime reads a Unix time in seconds with an optional fraction, a date of
// RFC 3339 that may lack its end, or a duration back from now.
func parseTime(s string, now time.Time) (time.Time, error) {
	if t, ok := parseUnix(s); ok {
		return t, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalidf("%q is neither a Unix timestamp nor a date nor a duration", s)
}

// maxSeconds keeps times within what nanoseconds of the epoch can count.
const maxSeconds = 9_000_000_000

// parseUnix reads "1700000000.000000001". Digits after the ninth do not count.
func parseUnix(s string) (time.Time, bool) {
	whole, frac, dotted := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	sec = min(max(sec, -maxSeconds), maxSeconds)
	if !dotted {
		return time.Unix(sec, 0), true
	}
	if frac == "" || strings.Trim(frac, "0123456789") != "" {
		return time.Time{}, false
	}
	if len(frac) > 9 {
		frac = frac[:9]
	}
	nano, _ := strconv.ParseInt(frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	return time.Unix(sec, nano), true
}
