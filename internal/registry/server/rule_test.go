package server

import (
	"strings"
	"testing"
	"time"
)

func TestParseRule(t *testing.T) {
	for text, want := range map[string]Rule{
		"lab/*:ci-* last=10 older=30d": {"lab/*", "ci-*", 10, 30 * 24 * time.Hour},
		"** last=0":                    {"**", "*", 0, -1},
		"a:v? older=90m":               {"a", "v?", -1, 90 * time.Minute},
	} {
		if got, err := ParseRule(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "a", "a last=-1", "a last=x", "a last=1 last=2", "a older=-1h", "a older=soon", "a: last=1", "[ last=1", "a:[ last=1",
		"a since=1d", "a older=99999999d", strings.Repeat("a", 2000) + " last=1"} {
		if r, err := ParseRule(text); err == nil {
			t.Errorf("%.50q is taken as %+v", text, r)
		}
	}
}

func TestRuleIsAbout(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"lab/*", "lab/x", true}, {"lab/*", "lab/x/y", false}, {"lab/*", "lab", false}, {"lab/**", "lab/x/y", true}, {"**", "a/b/c", true},
		{"**/x", "a/b/x", true}, {"**/x", "x", true}, {"**/x", "a/y", false}, {"*", "lab", true}, {"lab", "lab", true}, {"lab", "labs", false},
		{"**/a/**/b", "a/b/a/c/b", true}, {"**/a/*/b", "a/b/a/c/b", true}, {"a/**/a", "a", false}, {"**/**", "x", true}, {"a/**", "a", true},
		{strings.Repeat("**/a/", 60) + "b", strings.Repeat("a/", 120) + "a", false},
	} {
		if got := (Rule{Repos: c.pattern}).about(c.name); got != c.want {
			t.Errorf("%s about %s: %v", c.pattern, c.name, got)
		}
	}
}

func FuzzRule(f *testing.F) {
	f.Add("lab/*:ci-* last=10 older=30d", "lab/x", "ci-1")
	f.Add("**/a/** last=0", "a/a/a", "t")
	f.Fuzz(func(t *testing.T, text, name, tag string) {
		r, err := ParseRule(text)
		if err != nil || len(name) > maxName {
			return
		}
		r.about(name)
		now := time.Now()
		if got := r.expired([]tagState{{tag, now.Add(-time.Hour)}}, now); len(got) == 1 && (r.Last > 0 || r.Older > time.Hour) {
			t.Errorf("%q removes the newest tag, an hour old", text)
		}
	})
}

func FuzzRoute(f *testing.F) {
	f.Add("/v2/a/b/manifests/latest")
	f.Add("/v2/../x/blobs/uploads/..")
	f.Fuzz(func(t *testing.T, path string) {
		r, ok := parseRoute(path)
		if ok && r.kind != other && (strings.Contains(r.name, "..") || strings.HasPrefix(r.name, "_") || strings.Contains(r.name, "/_") || strings.HasPrefix(r.name, "/")) {
			t.Errorf("%q is a repository's name in %q", r.name, path)
		}
	})
}
