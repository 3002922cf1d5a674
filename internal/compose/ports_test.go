package compose

import (
	"fmt"
	"strings"
	"testing"
)

func TestPublished(t *testing.T) {
	for text, want := range map[string]string{
		"": "0 0 true", "0": "0 0 true", "80": "80 0 true", "80-80": "80 0 true", "8000-8002": "8000 8002 true", "1-65535": "1 65535 true",
		"9-8": "0 0 false", "0-9": "0 0 false", "9-": "0 0 false", "-9": "0 0 false", "-": "0 0 false", "1-2-3": "0 0 false", "65536": "0 0 false", "http": "0 0 false", "+1": "0 0 false",
	} {
		first, last, ok := published(text)
		if got := fmt.Sprint(first, last, ok); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// FuzzPublished looks for text that is read as another range than it names.
func FuzzPublished(f *testing.F) {
	for _, s := range []string{"", "80", "8000-8002", "9-8", "0-0", "65535-65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, ok := published(s)
		if !ok && (first != 0 || last != 0) || last != 0 && last <= first {
			t.Fatalf("%q: %d %d %v", s, first, last, ok)
		}
		if _, _, again := published(fmt.Sprint(first, "-", max(first, last))); ok && !again {
			t.Fatalf("%q is read as what is no range: %d-%d", s, first, last)
		}
	})
}

// Ranges of the host and of containers, as files have them.
func TestRanges(t *testing.T) {
	for yaml, want := range map[string]string{
		`["8000-8002:80"]`:                                        `"Ports":[{"Proto":"tcp","Target":80,"Published":8000,"Last":8002}]`,
		`["127.0.0.1:8000-8002:80/udp"]`:                          `"Ports":[{"Proto":"udp","Target":80,"Published":8000,"Last":8002,"Address":"127.0.0.1"}]`,
		`[{target: 80, published: "7040-7042", mode: host}]`:      `"Ports":[{"Proto":"tcp","Target":80,"Published":7040,"Last":7042,"Host":true}]`,
		`["8000-8001:80-81"]`:                                     `"Ports":[{"Proto":"tcp","Target":80,"Published":8000},{"Proto":"tcp","Target":81,"Published":8001}]`,
		`[{target: 80, published: "7040-7040"}]`:                  `"Ports":[{"Proto":"tcp","Target":80,"Published":7040}]`,
		`[{target: 80, published: "7042-7040"}]`:                  `!published port "7042-7040": a number or a range wanted`,
		`["8000-8002:80", {target: 81, published: "8000"}, "82"]`: `"Last":8002},{"Proto":"tcp","Target":81,"Published":8000},{"Proto":"tcp","Target":82}]`,
	} {
		t.Run(strings.Trim(yaml, "[]{}"), func(t *testing.T) { checkKey(t, "services:\n  a: {image: i, ports: "+yaml+"}\n", want) })
	}
}
