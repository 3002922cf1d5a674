package spec

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// readKeyValues reads the files in order and puts extra behind what they hold.
// lookup gives the value of a bare NAME; when nil, or when it does not know
// NAME, the line is left out.
func readKeyValues(files, extra []string, lookup func(string) (string, bool)) ([]string, error) {
	var all []string
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines, err := ParseKeyValues(f, lookup)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("invalid env file (%s): %w", name, err)
		}
		all = append(all, lines...)
	}
	return append(all, extra...), nil
}

// ParseKeyValues reads NAME=VALUE lines: blank lines and lines that begin with
// # are skipped, blanks before the name are dropped, everything behind = is
// the value as it stands, quotes too. lookup gives the value of a bare NAME, as for --env-file;
// without one, or when it does not know NAME, the line is left out.
func ParseKeyValues(r io.Reader, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		b := sc.Bytes()
		if !utf8.Valid(b) {
			return nil, fmt.Errorf("invalid utf8 bytes at line %d: %v", n, b)
		}
		if n == 1 {
			b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
		}
		line := strings.TrimLeftFunc(string(b), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, hasValue := strings.Cut(line, "=")
		switch {
		case name == "":
			return nil, fmt.Errorf("no variable name on line '%s'", line)
		case strings.ContainsAny(name, blanks):
			return nil, fmt.Errorf("variable '%s' contains whitespaces", name)
		case hasValue:
			out = append(out, line)
		case lookup != nil:
			if v, ok := lookup(line); ok {
				out = append(out, name+"="+v)
			}
		}
	}
	return out, sc.Err()
}

// KeyValues splits KEY=VALUE entries; the last of a key wins. No entries are nil.
func KeyValues(entries []string) map[string]string {
	if len(entries) == 0 {
		return nil
	}
	return toMap(entries)
}

// toMap splits KEY=VALUE entries; the last of a key wins.
func toMap(entries []string) map[string]string {
	m := make(map[string]string, len(entries))
	for _, e := range entries {
		k, v, _ := strings.Cut(e, "=")
		m[k] = v
	}
	return m
}

// lastOfEach keeps one entry a name, the last one given, at the place where
// the name first stood.
func lastOfEach(entries []string) []string {
	at := make(map[string]int, len(entries))
	out := entries[:0:0]
	for _, e := range entries {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// Environment gives the variables of --env-file and -e for `exec`, in the
// order given.
func Environment(files, vars []string) ([]string, error) {
	return readKeyValues(files, vars, os.LookupEnv)
}
