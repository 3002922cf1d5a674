package client

import (
	"encoding/csv"
	"fmt"
	"strings"
)

// fields reads an option of the form type=x,dest=y; names are in lower case. A
// word that is no pair is refused.
func fields(s string) (map[string]string, error) {
	list, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, fmt.Errorf("invalid value %q: %w", s, err)
	}
	out := map[string]string{}
	for _, field := range list {
		name, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, fmt.Errorf("invalid value %s", field)
		}
		out[strings.ToLower(strings.TrimSpace(name))] = value
	}
	return out, nil
}

// bare tells that an option is one word alone, as in --output DIR.
func bare(s string) bool { return !strings.ContainsAny(s, "=,") }
